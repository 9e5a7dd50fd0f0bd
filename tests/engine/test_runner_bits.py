"""What is generated is the same bit for bit, whatever it is computed with or beside."""

import jax
import numpy as np
import pytest
from support.runs import last, requests

import rfjax
from rfjax.engine import state as steps
from rfjax.engine.config import EngineConfig
from rfjax.engine.runner import Runner


@pytest.fixture(scope="module")
def model(tiny_llama_path):
    return rfjax.load(tiny_llama_path)


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
