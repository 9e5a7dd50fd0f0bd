"""The engine over a model: the same tokens, bit for bit, however they come about."""

import dataclasses

import jax.numpy as jnp
import pytest
from support.small_engine import (
    GROUPS,
    generate,
    make_engine,
    params_of,
    prompt,
    same,
    windowed_model,
)

from rfjax.engine.sampling_params import SamplingParams
from rfjax.models.decoder import output_projection

LENGTHS = (5, 40, 100, 3, 17, 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return windowed_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def alone(model):
    """Every request by itself, in an engine that keeps no prefixes."""
    engine = make_engine(model, depth=1, prefix_caching=False)
    return [generate(engine, [prompt(n)], [params_of(i)])[0] for i, n in enumerate(LENGTHS)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"depth": 1, "burst": 3, "mixed_burst": 5, "prefill_chunk": 16, "few_programs": False},
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
