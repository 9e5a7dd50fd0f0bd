"""The compiled steps: few programs, nothing written past its place, memory counted before."""

import chex
import jax
import numpy as np
import pytest
from support.runs import last, requests

import rfjax
from rfjax.engine import state as steps
from rfjax.engine.config import EngineConfig
from rfjax.engine.runner import Runner
from rfjax.errors import CapacityError

pytestmark = pytest.mark.quick_compile


@pytest.fixture(scope="module")
def model(tiny_llama_path):
    return rfjax.load(tiny_llama_path)


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
