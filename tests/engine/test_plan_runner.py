"""The engine over a model: the same tokens and likelihoods however they come about."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from support.tiny_model import tiny_llama

import rfjax
from rfjax.engine.engine import Engine
from rfjax.engine.page_table import CacheGroup
from rfjax.engine.plan_runner import PlanRunner
from rfjax.engine.sampling_params import SamplingParams
from rfjax.engine.scheduler_config import SchedulerConfig
from rfjax.models.decoder import output_projection
from rfjax.ops.mask import Mask

# Few pages, and the same in all tests: so that some of them preempt, and all share programs.
GROUPS = (CacheGroup("full", 24), CacheGroup("window 24", 24, 24))
SIZES = SchedulerConfig(
    groups=GROUPS,
    page_size=16,
    max_context=256,
    slots=8,
    token_budget=128,
    prefill_chunk=64,
    burst=5,
    mixed_burst=2,
)
LENGTHS = (5, 40, 100, 3, 17, 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Layers of full attention, and of a window that prompts cross."""
    path = tmp_path_factory.mktemp("models") / "two.gguf"
    model = rfjax.load(tiny_llama(path, n_layers=2))
    first, second = model.config.layers
    layers = first, dataclasses.replace(second, mask=Mask("window", 24))
    return dataclasses.replace(model, config=dataclasses.replace(model.config, layers=layers))


def make_engine(model, *, depth=2, kv_dtype=None, processors=(), **sizes):
    sizes = dataclasses.replace(SIZES, **sizes)
    runner = PlanRunner(
        model.params, model.config, sizes, kv_dtype=kv_dtype, logits_processors=processors
    )
    vocab_size = model.config.vocab_size
    return Engine(runner, sizes, vocab_size=vocab_size, tokenizer=model.tokenizer, depth=depth)


def prompt(n, seed=0):
    return np.random.default_rng((seed, n)).integers(3, 300, n).tolist()


def params_of(i, **settings):
    """Greedy ones and sampled ones, with and without what few ask for."""
    mixed = {"max_tokens": 24, "temperature": 0.0 if i % 2 == 0 else 0.9, "seed": i}
    mixed |= {1: {"logprobs": 3, "top_p": 0.8}, 3: {"repetition_penalty": 1.3}}.get(i, {})
    mixed |= {4: {"frequency_penalty": 0.5, "logit_bias": {7: 2.0}}}.get(i, {})
    return SamplingParams(**(mixed | settings))


def generate(engine, prompts, params):
    """Outputs of requests that run together."""
    made = [engine.make_request(p, s) for p, s in zip(prompts, params, strict=True)]
    handles = [engine.submit(request) for request in made]
    engine.run_until_done(handles)
    return [handle.output() for handle in handles]


def same(one, other):
    assert one.samples == other.samples
    assert one.prompt_logprobs == other.prompt_logprobs


@pytest.fixture(scope="module")
def alone(model):
    """Every request by itself, in an engine that keeps no prefixes."""
    engine = make_engine(model, depth=1, prefix_caching=False)
    return [generate(engine, [prompt(n)], [params_of(i)])[0] for i, n in enumerate(LENGTHS)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"depth": 1, "burst": 3, "mixed_burst": 5, "prefill_chunk": 16},
        {"n_growing": 3},
    ],
    ids=["together", "short chunks and bursts", "preempted"],
)
def test_a_requests_tokens_are_the_same_whatever_is_beside_it(model, alone, settings):
    n_growing = settings.get("n_growing", 0)
    engine = make_engine(model, **{k: v for k, v in settings.items() if k != "n_growing"})
    for n in range(3, 3 + n_growing):  # these drive the others out
        growing = params_of(0, max_tokens=150, ignore_eos=True)
        engine.submit(engine.make_request(prompt(n), growing))
    prompts = [prompt(n) for n in LENGTHS]
    params = [params_of(i) for i in range(len(LENGTHS))]
    for output, expected in zip(generate(engine, prompts, params), alone, strict=True):
        same(output, expected)
    engine.run_until_done()
    assert (engine.metrics.preemptions > 0) == (n_growing > 0)
    assert engine.free_pages == tuple(group.n_pages - 1 for group in GROUPS)


def test_prefill_equals_decode_steps_bit_for_bit(model):
    """What was generated token by token, given as a prompt, goes on in the same way."""
    engine = make_engine(model, prefix_caching=False)
    (whole,) = generate(engine, [prompt(17)], [params_of(0)])
    for n in (1, 8, 15, 23):
        longer = [*prompt(17), *whole.token_ids[:n]]
        (rest,) = generate(engine, [longer], [params_of(0, max_tokens=24 - n)])
        assert rest.token_ids == whole.token_ids[n:]
        assert rest.logprobs == whole.logprobs[n:]


def test_a_cached_prefix_changes_nothing(model, alone):
    engine = make_engine(model)
    long = LENGTHS.index(100)
    first, again = (generate(engine, [prompt(100)], [params_of(long)])[0] for _ in range(2))
    assert engine.metrics.prefix_hits == 96
    same(first, alone[long])
    same(again, alone[long])
    # Another end behind the same beginning.
    longer = [*prompt(100)[:70], *prompt(20, seed=1)]
    cached = generate(engine, [longer], [params_of(1)])[0]
    assert engine.metrics.prefix_hits == 96 + 64
    same(cached, generate(make_engine(model), [longer], [params_of(1)])[0])


def test_samples_of_a_request_are_those_of_their_seeds(model):
    engine = make_engine(model)
    several = SamplingParams(max_tokens=20, n=3, seed=5)
    (forked,) = generate(engine, [prompt(40)], [several])
    for index, sample in enumerate(forked.samples):
        single = SamplingParams(max_tokens=20, seed=5 + index)
        (own,) = generate(make_engine(model), [prompt(40)], [single])
        assert sample == own.samples[0]
    assert len({tuple(sample.token_ids) for sample in forked.samples}) == 3


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
    (after,) = generate(engine, [prompt(9)], [plain])
    same(after, free)


def test_a_row_of_nan_ends_alone(model, alone):
    """A token whose embedding is damaged; the others do not notice."""
    damaged = model.params.token_embd.weight.at[299].set(jnp.nan)
    params = dataclasses.replace(
        model.params,
        token_embd=dataclasses.replace(model.params.token_embd, weight=damaged),
        output=output_projection(model.params),
    )
    engine = make_engine(dataclasses.replace(model, params=params))
    bad = [*prompt(30)[:20], 299, *prompt(30)[20:]]
    outputs = generate(engine, [prompt(5), bad, prompt(40)], [params_of(i) for i in (0, 0, 1)])
    assert outputs[1].finish_reason == "error" and "NaN" in outputs[1].error
    assert not outputs[1].token_ids
    same(outputs[0], alone[0])
    same(outputs[2], alone[1])
    # Its pages serve others, who do not see what is left there.
    again = generate(engine, [prompt(n) for n in LENGTHS], [params_of(i) for i in range(6)])
    for output, expected in zip(again, alone, strict=True):
        same(output, expected)


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
