"""An engine over a model of two layers, and requests for it that share few programs."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from support.tiny_model import tiny_llama

import rfjax
from rfjax.engine.engine import Engine
from rfjax.engine.output import RequestOutput
from rfjax.engine.page_table import CacheGroup
from rfjax.engine.plan_runner import PlanRunner
from rfjax.engine.sampling_params import SamplingParams
from rfjax.engine.scheduler_config import SchedulerConfig
from rfjax.io.load import Model
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


def windowed_model(folder: pathlib.Path) -> Model:
    """A layer of full attention, and one of a window that prompts cross."""
    model = rfjax.load(tiny_llama(folder / "two.gguf", n_layers=2))
    first, second = model.config.layers
    layers = first, dataclasses.replace(second, mask=Mask("window", 24))
    return dataclasses.replace(model, config=dataclasses.replace(model.config, layers=layers))


def make_engine(
    model: Model, *, depth=2, kv_dtype=None, processors=(), few_programs=True, **sizes
) -> Engine:
    """An engine over it.

    Args:
        model: of `windowed_model`.
        depth: bursts under way.
        kv_dtype: of the pages.
        processors: of logits.
        few_programs: sizes of steps as on GPUs; otherwise as on CPUs.
        sizes: fields of `SchedulerConfig` other than those of `SIZES`.
    """
    made = dataclasses.replace(SIZES, **sizes)
    runner = PlanRunner(
        model.params, model.config, made, kv_dtype=kv_dtype, logits_processors=processors
    )
    runner._rounded = dataclasses.replace(runner._rounded, few_programs=few_programs)
    vocab_size = model.config.vocab_size
    return Engine(runner, made, vocab_size=vocab_size, tokenizer=model.tokenizer, depth=depth)


def prompt(n: int, seed: int = 0) -> list[int]:
    """Random tokens."""
    return np.random.default_rng((seed, n)).integers(3, 300, n).tolist()


def params_of(i: int, **settings) -> SamplingParams:
    """Greedy ones and sampled ones, with and without what few ask for."""
    mixed = {"max_tokens": 24, "temperature": 0.0 if i % 2 == 0 else 0.9, "seed": i}
    mixed |= {1: {"logprobs": 3, "top_p": 0.8}, 3: {"repetition_penalty": 1.3}}.get(i, {})
    mixed |= {4: {"frequency_penalty": 0.5, "logit_bias": {7: 2.0}}}.get(i, {})
    return SamplingParams(**(mixed | settings))


def generate(
    engine: Engine, prompts: Sequence[list[int]], params: Sequence[SamplingParams]
) -> list[RequestOutput]:
    """Outputs of requests that run together."""
    made = [engine.make_request(p, s) for p, s in zip(prompts, params, strict=True)]
    handles = [engine.submit(request) for request in made]
    engine.run_until_done(handles)
    return [handle.output() for handle in handles]


def same(one: RequestOutput, other: RequestOutput) -> None:
    """Assert that two requests gave the same, to the bit."""
    assert one.samples == other.samples
    assert one.prompt_logprobs == other.prompt_logprobs
