"""How fast many requests are served, on random weights of a model's shape.

    python examples/serving_speed.py llama-8b:q4_k_m --sequences 64
    python examples/serving_speed.py llama-8b:q4_k_m --sequences 256 --mixed

The first run compiles; the second is the one that counts. `--mixed` draws lengths of prompts and
outputs as conversations have them (log-normal, seeded) instead of 128 and 128.
"""

import argparse
import dataclasses
import itertools
import time

import numpy as np

from rfjax import SamplingParams
from rfjax.engine.cache_plan import plan_cache
from rfjax.engine.config import EngineConfig
from rfjax.engine.engine import Engine
from rfjax.engine.plan_runner import PlanRunner
from rfjax.models.random_params import random_params, tensor_types
from rfjax.models.shape import load_shape


def make_engine(model: str, dtype: str, slots: int) -> Engine:
    """An engine of random weights; `model` is a shape and a mix of types."""
    name, _, mix = model.partition(":")
    shape = load_shape(name)
    config = shape.model_config(dtype)
    params = random_params(config, tensor_types(config, mix or "q4_k_m", shape.mix_model()))
    context = min(2048, config.context_length)
    settings = EngineConfig(max_batch_size=slots, max_context=context, prefix_caching=False)
    settings = dataclasses.replace(settings, token_budget=4096, prefill_chunk=1024)
    plan = plan_cache(params, config, settings)
    print(plan)
    runner = PlanRunner(params, config, plan.sizes)
    return Engine(runner, plan.sizes, vocab_size=config.vocab_size)


def lengths(n: int, mixed: bool, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of prompts and of outputs."""
    if not mixed:
        return np.full(n, min(128, most)), np.full(n, min(128, most))
    rng = np.random.default_rng(0)
    prompts = np.clip(rng.lognormal(5.0, 1.0, n), 4, most).astype(int)
    return prompts, np.clip(rng.lognormal(5.1, 0.8, n), 4, most).astype(int)


def run(engine: Engine, prompts: np.ndarray, outputs: np.ndarray, vocab_size: int) -> dict:
    """Submit everything at once, and step until all of it is done."""
    rng = np.random.default_rng(1)
    for n, most in zip(prompts, outputs, strict=True):
        greedy = SamplingParams(max_tokens=int(most), temperature=0, ignore_eos=True)
        tokens = rng.integers(0, vocab_size, int(n)).tolist()
        engine.submit(engine.make_request(tokens, greedy))
    start, arrivals = time.perf_counter(), {}
    while engine.has_work:
        for piece in engine.step():
            now = time.perf_counter() - start
            arrivals.setdefault(piece.request_id, []).append((now, len(piece.token_ids)))
    seconds = time.perf_counter() - start
    first = [times[0][0] for times in arrivals.values()]
    # A piece holds all tokens of a burst: each is counted with its share of the time.
    between = [
        (later - earlier) / n
        for times in arrivals.values()
        for (earlier, _), (later, n) in itertools.pairwise(times)
        for _ in range(n)
    ]
    return {
        "output tokens/s": float(outputs.sum()) / seconds,
        "time to first token, p50 and p99, s": np.percentile(first, [50, 99]).round(3).tolist(),
        "between tokens, p50 and p99, s": np.percentile(between or [0], [50, 99]).round(4).tolist(),
    }


def main(arguments: list[str] | None = None) -> list[dict]:
    """Parse, run twice, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a shape and a mix of types, such as llama-8b:q4_k_m")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--most", type=int, default=900, help="most tokens of a prompt or an output"
    )
    parser.add_argument("--mixed", action="store_true")
    given = parser.parse_args(arguments)
    engine = make_engine(given.model, given.dtype, given.sequences)
    vocab_size = load_shape(given.model.partition(":")[0]).vocab_size
    asked = lengths(given.sequences, given.mixed, given.most)
    results = [run(engine, *asked, vocab_size) for _ in range(2)]
    for result in results:
        print(result)
    return results


if __name__ == "__main__":
    main()
