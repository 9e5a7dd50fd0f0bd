"""The compiled steps: few programs, prefill equal to decode, nothing written past its place."""

import chex
import jax
import numpy as np
import pytest

import rfjax
from rfjax.engine import state as steps
from rfjax.engine.config import EngineConfig
from rfjax.engine.request import make_request
from rfjax.engine.runner import Runner
from rfjax.engine.sampling_params import SamplingParams
from rfjax.errors import CapacityError


@pytest.fixture(scope="module")
def model(tiny_llama_path):
    return rfjax.load(tiny_llama_path)


def requests(model, prompts, **params):
    settings = SamplingParams(**{"temperature": 0.0, "max_tokens": 6, **params})
    return [
        make_request(
            prompt,
            settings,
            vocab_size=model.config.vocab_size,
            max_context=model.config.context_length,
            end_ids=frozenset(),
        )
        for prompt in prompts
    ]


def last(progresses):
    *_, progress = progresses
    return progress


def test_prompts_of_many_lengths_share_one_program(model, monkeypatch):
    chex.clear_trace_counter()
    monkeypatch.setattr(steps, "decode", chex.assert_max_traces(steps.decode, n=1))
    monkeypatch.setattr(steps, "prefill", chex.assert_max_traces(steps.prefill, n=1))
    runner = Runner(model.params, model.config, EngineConfig(burst=3))
    rng = np.random.default_rng(0)
    for lengths in ((3, 4), (5, 16), (9, 2)):
        prompts = [rng.integers(0, 300, n).tolist() for n in lengths]
        for params in ({}, {"temperature": 0.7, "top_k": 5, "seed": 1}, {"top_p": 0.5}):
            assert last(runner.run(requests(model, prompts, **params))).finished.all()


def test_a_program_that_is_traced_twice_is_noticed(model, monkeypatch):
    chex.clear_trace_counter()
    monkeypatch.setattr(steps, "decode", chex.assert_max_traces(steps.decode, n=1))
    runner = Runner(model.params, model.config, EngineConfig())
    last(runner.run(requests(model, [[1]])))
    with pytest.raises(AssertionError, match="traced"):
        last(runner.run(requests(model, [[1]], max_tokens=100)))


def test_prefill_equals_decode_steps_bit_for_bit(model):
    """The same tokens, as one prefill and as decode steps that are fed them one by one."""
    prompt = np.random.default_rng(1).integers(0, 300, 40).tolist()
    engine = EngineConfig(prefill_chunk=64)
    whole = last(Runner(model.params, model.config, engine).run(requests(model, [prompt])))
    chunked = last(
        Runner(model.params, model.config, EngineConfig(prefill_chunk=16)).run(
            requests(model, [prompt])
        )
    )
    n = whole.lengths[0]
    np.testing.assert_array_equal(whole.tokens[0, :n], chunked.tokens[0, :n])
    np.testing.assert_array_equal(whole.logprobs[0, :n], chunked.logprobs[0, :n])

    # One decode step per token: a state that knows one token more each time.
    runner = Runner(model.params, model.config, engine)
    state = runner._start(requests(model, [prompt]))
    step = jax.jit(steps.decode_step, static_argnames="config")
    for length in range(1, len(prompt) + 1):
        state = state.replace(lengths=np.asarray([length], np.int32))
        stepped = step(model.params, state, config=model.config)
        state = state.replace(cache=stepped.cache)
    first = len(prompt)
    assert stepped.tokens[0, first] == whole.tokens[0, first]
    assert stepped.logprobs[0, first] == whole.logprobs[0, first]


def test_a_row_in_a_batch_equals_the_row_alone(model):
    rng = np.random.default_rng(2)
    prompts = [rng.integers(0, 300, n).tolist() for n in (1, 7, 30, 12, 3)]
    runner = Runner(model.params, model.config, EngineConfig())
    together = last(runner.run(requests(model, prompts)))
    for row, prompt in enumerate(prompts):
        alone = last(runner.run(requests(model, [prompt])))
        n = alone.lengths[0]
        assert together.lengths[row] == n
        np.testing.assert_array_equal(together.tokens[row, :n], alone.tokens[0, :n])
        np.testing.assert_array_equal(together.logprobs[row, :n], alone.logprobs[0, :n])


def test_finished_rows_stay_as_they_are(model):
    short, long = requests(model, [[5, 6]], max_tokens=1) + requests(model, [[7]], max_tokens=20)
    runner = Runner(model.params, model.config, EngineConfig(burst=4))
    seen = list(runner.run([short, long]))
    assert [int(p.lengths[0]) for p in seen] == [3] * len(seen)
    assert int(seen[-1].lengths[1]) == 21
    np.testing.assert_array_equal(seen[0].tokens[0], seen[-1].tokens[0])
    assert (seen[-1].tokens[0, 3:] == 0).all()


def test_a_cache_that_does_not_fit_is_refused_before_it_is_allocated(model, monkeypatch):
    monkeypatch.setattr("rfjax.io.memory.free_bytes", lambda device: 1000)
    runner = Runner(model.params, model.config, EngineConfig())
    with pytest.raises(CapacityError, match=r"1 sequences of 64 tokens takes .*nothing would fit"):
        last(runner.run(requests(model, [[1]])))
    monkeypatch.setattr("rfjax.io.memory.free_bytes", lambda device: 4 << 20)
    prompts = [[1, 2]] * 16
    with pytest.raises(CapacityError, match=r"what would fit: \d+ sequences of 256 tokens"):
        last(runner.run(requests(model, prompts, max_tokens=200)))


def test_the_decode_loop_runs_without_the_host(model):
    """One burst is one program with a loop in it, and no callback to the host."""
    runner = Runner(model.params, model.config, EngineConfig())
    state = runner._start(requests(model, [[1, 2]]))
    text = (
        jax.jit(steps.decode, static_argnames="config")
        .lower(model.params, state, np.int32(8), config=model.config)
        .as_text()
    )
    assert "stablehlo.while" in text
    assert "callback" not in text and "outfeed" not in text
