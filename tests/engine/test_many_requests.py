"""A thousand requests on a model: cancelled ones leave no trace, and nothing grows."""

import random

import jax
import numpy as np
import pytest

import rfjax
from rfjax.engine.config import EngineConfig

pytestmark = pytest.mark.quick_compile

ENGINE = EngineConfig(
    max_batch_size=8,
    max_context=96,
    prefill_chunk=16,
    token_budget=40,
    page_size=16,
    burst=8,
    mixed_burst=4,
)


@pytest.fixture(scope="module")
def llm(tiny_llama_path):
    return rfjax.LLM(tiny_llama_path, engine=ENGINE, compilation_cache=False)


def drawn(seed, engine, vocab_size):
    """A request of random lengths and parameters; many begin alike."""
    rng = random.Random(seed)
    prompt = [1, *([7, 8, 9] * 10)[: rng.choice([0, 0, 16, 25])]]
    prompt += [rng.randrange(3, vocab_size) for _ in range(int(rng.expovariate(1 / 8)) % 50)]
    params = rfjax.SamplingParams(
        max_tokens=1 + int(rng.expovariate(1 / 6)) % 40,
        temperature=rng.choice([0.0, 0.8, 1.5]),
        seed=seed,
        top_k=rng.choice([0, 40]),
        ignore_eos=True,
    )
    return engine.make_request(prompt, params, request_id=str(seed))


def serve(engine, vocab_size, seeds, rng):
    """Serve requests that arrive bit by bit, and cancel some; their handles by seed."""
    handles, arriving = {}, list(seeds)
    while arriving or engine.has_work:
        for seed in arriving[: rng.randrange(12)]:
            handles[seed] = engine.submit(drawn(seed, engine, vocab_size))
            arriving.remove(seed)
        engine.step()
        live = [seed for seed, handle in handles.items() if not handle.done]
        for seed in rng.sample(live, len(live) // 24):
            engine.cancel(str(seed))
    return handles


def test_a_thousand_requests_leave_no_trace(llm):
    engine, vocab_size = llm.engine, llm.config.vocab_size
    pages, rng = engine.free_pages, random.Random(0)
    serve(engine, vocab_size, range(100), rng)
    before = len(jax.live_arrays())
    handles = serve(engine, vocab_size, range(100, 1000), rng)
    assert len(jax.live_arrays()) <= before
    assert engine.free_pages == pages
    finished = engine.metrics.finished
    assert sum(finished.values()) == 1000
    assert finished["abort"] > 50
    assert finished["length"] > 500
    whole = [seed for seed, handle in handles.items() if handle.output().finish_reason == "length"]
    for seed in whole[:: len(whole) // 12]:  # the same as alone, prefixes cached or not
        request = drawn(seed, engine, vocab_size)
        handle = engine.submit(request)
        engine.run_until_done()
        assert handle.output().token_ids == handles[seed].output().token_ids
        np.testing.assert_array_equal(handle.output().logprobs, handles[seed].output().logprobs)
    for handle in handles.values():
        assert handle.done
