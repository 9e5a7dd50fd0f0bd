"""Few programs serve all requests, and a burst is one of them, without the host."""

import chex
import jax
import numpy as np
import pytest

import rfjax
from rfjax.engine import steps
from rfjax.engine.cache_plan import plan_cache
from rfjax.engine.config import EngineConfig
from rfjax.engine.engine import Engine
from rfjax.engine.plan_runner import PlanRunner

pytestmark = pytest.mark.quick_compile

PARAMS = ({}, {"temperature": 0.7, "top_k": 5, "seed": 1}, {"top_p": 0.5}, {"stop": "a", "n": 2})


@pytest.fixture(scope="module")
def model(tiny_llama_path):
    return rfjax.load(tiny_llama_path)


def make_engine(model, burst=3):
    # A burst of its own, so that no program of another test serves.
    settings = EngineConfig(burst=burst, mixed_burst=2, max_batch_size=4)
    sizes = plan_cache(model.params, model.config, settings).sizes
    runner = PlanRunner(model.params, model.config, sizes)
    vocab_size = model.config.vocab_size
    return Engine(runner, sizes, vocab_size=vocab_size, tokenizer=model.tokenizer), runner


def serve(engine, prompts, **params):
    params = rfjax.SamplingParams(**{"max_tokens": 6, **params})
    for prompt in prompts:
        engine.submit(engine.make_request(prompt, params))
    engine.run_until_done()


def test_prompts_of_many_lengths_share_programs(model, monkeypatch):
    """As many as there are sizes: one, two and four rows, pieces of 16, and of them up to four."""
    chex.clear_trace_counter()
    monkeypatch.setattr(steps, "decode", chex.assert_max_traces(steps.decode, n=3))
    monkeypatch.setattr(steps, "prefill", chex.assert_max_traces(steps.prefill, n=4))
    engine, _ = make_engine(model, burst=3)
    rng = np.random.default_rng(0)
    for lengths in ((3, 4), (5, 16), (9, 2, 3), (17,)):
        prompts = [rng.integers(3, 300, n).tolist() for n in lengths]
        for params in PARAMS:
            serve(engine, prompts, **params)


def test_a_program_that_is_traced_twice_is_noticed(model, monkeypatch):
    chex.clear_trace_counter()
    monkeypatch.setattr(steps, "decode", chex.assert_max_traces(steps.decode, n=1))
    engine, _ = make_engine(model, burst=5)
    serve(engine, [[5]])
    with pytest.raises(AssertionError, match="traced"):
        serve(engine, [[5], [6]])


def test_a_burst_runs_without_the_host(model):
    """One program with a loop in it, and no callback."""
    engine, runner = make_engine(model)
    serve(engine, [[5]])
    text = (
        jax.jit(steps.decode, static_argnames=("burst", "n_top", "processors", "config"))
        .lower(
            model.params,
            runner._cache,
            runner._rows,
            runner._counts,
            runner._tables,
            np.zeros(1, np.int32),
            np.ones(1, np.int32),
            np.int32(8),
            burst=8,
            n_top=1,
            processors=(),
            config=model.config,
        )
        .as_text()
    )
    assert "stablehlo.while" in text
    assert "callback" not in text and "outfeed" not in text
