"""The engine over a model: what requests may ask for, and what stays of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from support.small_engine import (
    GROUPS,
    generate,
    make_engine,
    params_of,
    prompt,
    windowed_model,
)

import rfjax
from rfjax.engine.sampling_params import SamplingParams

pytestmark = pytest.mark.quick_compile


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return windowed_model(tmp_path_factory.mktemp("models"))


def test_likelihoods_are_those_of_the_model(model):
    engine = make_engine(model)
    asked = SamplingParams(max_tokens=12, temperature=0, logprobs=2, prompt_logprobs=3)
    (output,) = generate(engine, [prompt(100)], [asked])
    ids = [*prompt(100), *output.token_ids]
    logits = rfjax.forward(model.params, jnp.asarray(ids, jnp.int32), config=model.config)
    expected = np.asarray(jax.nn.log_softmax(logits))
    assert output.prompt_logprobs[0] is None
    for at, found in enumerate(output.prompt_logprobs[1:]):
        best = np.argsort(-expected[at])[:3]
        assert_allclose(found[ids[at + 1]], expected[at, ids[at + 1]], atol=1e-4)
        assert set(found) == {ids[at + 1], *best.tolist()}
        assert_allclose([found[token] for token in best], expected[at, best], atol=1e-4)
    for at, (own, tops) in enumerate(zip(output.logprobs, output.top_logprobs, strict=True)):
        row = expected[99 + at]
        assert_allclose(own, row[output.token_ids[at]], atol=1e-4)
        assert list(tops) == np.argsort(-row)[:2].tolist()
        assert output.token_ids[at] == row.argmax()


def test_logits_processors_see_every_row(model):
    def forbid_even(logits, context):
        even = jnp.arange(logits.shape[1]) % 2 == 0
        odd_rows = (context.positions >= 0)[:, None]
        return jnp.where(even[None, :] & odd_rows, -jnp.inf, logits)

    engine = make_engine(model, processors=(forbid_even,))
    outputs = generate(engine, [prompt(5), prompt(9)], [params_of(0), params_of(1)])
    assert all(token % 2 for output in outputs for token in output.token_ids)


def test_bias_stop_and_allowed_tokens_of_any_number(model):
    """More than there is room for at first."""
    engine = make_engine(model)
    plain = SamplingParams(max_tokens=10, temperature=0)
    (free,) = generate(engine, [prompt(9)], [plain])
    stop = free.token_ids[4]
    stops = tuple(sorted({*range(290, 302), stop}))
    stopping = dataclasses.replace(plain, stop_token_ids=stops)
    waiting = dataclasses.replace(stopping, min_tokens=8)
    biased = dataclasses.replace(plain, logit_bias=dict.fromkeys(range(20, 32), 100.0))
    allowed = dataclasses.replace(plain, allowed_token_ids=(31, 33, 64, 300))
    outputs = generate(engine, [prompt(9)] * 4, [stopping, waiting, biased, allowed])
    end = next(i for i, token in enumerate(free.token_ids) if token in stops)
    assert outputs[0].token_ids == free.token_ids[: end + 1]
    assert outputs[0].finish_reason == "stop"
    assert len(outputs[1].token_ids) >= 9 or not set(outputs[1].token_ids) & set(stops)
    assert not set(outputs[1].token_ids[:8]) & set(stops)
    assert set(outputs[2].token_ids) <= set(range(20, 32))
    assert set(outputs[3].token_ids) <= {31, 33, 64, 300}
    for after in generate(engine, [prompt(9)] * 4, [plain] * 4):
        assert after.token_ids == free.token_ids
        assert_allclose(after.logprobs, free.logprobs, atol=1e-4)


def test_eight_bit_pages_come_close(model):
    asked = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    exact, rounded = (
        generate(make_engine(model, kv_dtype=kv_dtype), [prompt(200)], [asked])[0]
        for kv_dtype in (None, "int8")
    )
    nll = [
        -np.mean([next(iter(p.values())) for p in output.prompt_logprobs[1:]])
        for output in (exact, rounded)
    ]
    assert nll[0] != nll[1]
    assert_allclose(nll[1], nll[0], rtol=1e-3)


def test_a_thousand_steps_keep_the_number_of_buffers(model):
    engine = make_engine(model)
    rng = np.random.default_rng(0)
    counts = []
    for _ in range(3):
        for _ in range(20):
            request = engine.make_request(
                prompt(int(rng.integers(1, 60))), params_of(0, max_tokens=int(rng.integers(1, 20)))
            )
            engine.submit(request)
            engine.step()
            if rng.random() < 0.4:
                engine.cancel(request.id)
        engine.run_until_done()
        counts.append(len(jax.live_arrays()))
    assert engine.free_pages == tuple(group.n_pages - 1 for group in GROUPS)
    assert counts[1] == counts[2]
