"""A model that computes NaN is noticed, in generation and in perplexity."""

import dataclasses

import jax
import numpy as np
import pytest

import rfjax
from rfjax.engine.cache_plan import plan_cache
from rfjax.engine.config import EngineConfig
from rfjax.engine.engine import Engine
from rfjax.engine.finite import check_not_nan
from rfjax.engine.plan_runner import PlanRunner
from rfjax.errors import ModelFormatError
from rfjax.evals.perplexity import perplexity

pytestmark = pytest.mark.quick_compile


def test_infinities_pass_and_nan_does_not():
    check_not_nan(np.asarray([0.0, -np.inf]), "float16")
    with pytest.raises(ModelFormatError, match=r"NaN in float16.*load it with dtype='float32'"):
        check_not_nan(np.asarray([0.0, np.nan]), "float16")
    with pytest.raises(ModelFormatError, match=r"NaN in float32.*weights are damaged"):
        check_not_nan(np.asarray([np.nan]), "float32")


def test_a_damaged_model_is_noticed(tiny_llama_path):
    model = rfjax.load(tiny_llama_path)
    damaged = dataclasses.replace(model, params=jax.tree.map(lambda w: w * np.nan, model.params))
    with pytest.raises(ModelFormatError, match="computes NaN"):
        perplexity(damaged, [5] * 40, n_ctx=16)
    sizes = plan_cache(damaged.params, model.config, EngineConfig(max_context=64)).sizes
    runner = PlanRunner(damaged.params, model.config, sizes)
    engine = Engine(runner, sizes, vocab_size=model.config.vocab_size)
    handle = engine.submit(engine.make_request([1], rfjax.SamplingParams(max_tokens=2)))
    engine.run_until_done()
    assert handle.output().finish_reason == "error"
    assert "computes NaN" in handle.output().error
    assert handle.output().token_ids == []
