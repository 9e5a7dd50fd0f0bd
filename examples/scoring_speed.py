"""How fast texts and choices are scored, on random weights of a model's shape.

    python examples/scoring_speed.py llama-8b:q4_k_m
    python examples/scoring_speed.py llama-8b:bf16 --questions 100

Prints the perplexity's tokens per second at two contexts; then, for four-way questions, the time
of all choices together beside that of each choice alone (one padded row a call), and whether
scores keep their bits in batches of 1, 3, 8 and 64. Compiling is not counted.
"""

import argparse
import functools
import statistics
import time

import jax
import numpy as np

from rfjax import Model
from rfjax.evals.perplexity import perplexity
from rfjax.evals.score import score
from rfjax.evals.scoring.continuation import Continuation
from rfjax.evals.scoring.scorer import Scorer
from rfjax.models.random_params import random_params, tensor_types
from rfjax.models.shape import load_shape

ROUNDS = 3


def make_model(name: str, dtype: str) -> Model:
    """Random weights; `name` is a shape and a mix of types."""
    shape_name, _, mix = name.partition(":")
    shape = load_shape(shape_name)
    config = shape.model_config(dtype)
    params = random_params(config, tensor_types(config, mix or "q4_k_m", shape.mix_model()))
    return Model(params, config, tokenizer=None, path=name, mesh=None, plan=None)


def questions(n: int, vocab_size: int, seed: int = 0) -> list[Continuation]:
    """Contexts of 40 to 120 tokens, each with four choices of 5 to 30."""
    rng = np.random.default_rng(seed)
    ids = lambda low, high: tuple(rng.integers(0, vocab_size, rng.integers(low, high)).tolist())  # noqa: E731
    contexts = [ids(40, 121) for _ in range(n)]
    return [Continuation(context, ids(5, 31)) for context in contexts for _ in range(4)]


def median_seconds(run) -> float:
    """Of a few runs after one that compiles."""
    run()
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def text_speed(model: Model, n_ctx: int, n_tokens: int, at_a_time: int | None) -> float:
    """Tokens per second of a perplexity, scoring included."""
    batch_size = None if at_a_time is None else max(1, at_a_time // n_ctx)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, n_tokens).tolist()
    run = functools.partial(perplexity, model, ids, n_ctx=n_ctx, batch_size=batch_size)
    return n_tokens // n_ctx * n_ctx / median_seconds(run)


def each_alone(model: Model, choices: list[Continuation]) -> float:
    """Seconds for one call a choice, which takes the whole row."""
    one = jax.jit(score, static_argnames=("config", "first"))

    def run(choice: Continuation) -> float:
        row, length = choice.context + choice.tokens, 192
        tokens, mask = np.zeros((1, length), np.int32), np.zeros((1, length), np.bool_)
        tokens[0, : len(row)] = row
        mask[0, len(choice.context) : len(row)] = True
        return float(one(model.params, tokens, mask, config=model.config).sum())

    return median_seconds(lambda: [run(choice) for choice in choices])


def changed_bits(scorer: Scorer, choices: list[Continuation], size: int) -> int:
    """How many scores in shuffled batches of that size differ from those of all together."""
    together = scorer.score(choices)
    order = np.random.default_rng(size).permutation(len(choices))[: 8 * size]
    changed = 0
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        alone = scorer.score([choices[i] for i in batch])
        pairs = zip(batch, alone, strict=True)
        changed += sum(s.logprobs.tobytes() != together[i].logprobs.tobytes() for i, s in pairs)
    return changed


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a shape and a mix of types, such as llama-8b:q4_k_m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--tokens", type=int, default=65536, help="of the text")
    parser.add_argument("--batch-tokens", type=int, help="of a text, computed at a time")
    parser.add_argument("--questions", type=int, default=1000)
    given = parser.parse_args(arguments)
    model = make_model(given.model, given.dtype)
    found: dict[str, float] = {}
    for n_ctx in given.contexts:
        speed = text_speed(model, n_ctx, given.tokens, given.batch_tokens)
        found[f"perplexity at {n_ctx}, tokens/s"] = speed
    if given.questions:
        choices = questions(given.questions, model.config.vocab_size)
        few = choices[: max(4, len(choices) // 10)]
        for name, invariant in (("batch-invariant", True), ("free", False)):
            scorer = Scorer(model, batch_invariant=invariant)
            run = functools.partial(scorer.score, choices)
            found[f"choices together, {name}, s"] = median_seconds(run)
        alone = each_alone(model, few) * len(choices) / len(few)
        found[f"choices alone, s (of {len(few)})"] = alone
        found["alone / together"] = alone / found["choices together, batch-invariant, s"]
        scorer = Scorer(model)
        for size in (1, 3, 8, 64):
            found[f"scores with other bits in batches of {size}"] = changed_bits(scorer, few, size)
    for name, value in found.items():
        print(f"{name}: {value:,.3f}")
    return found


if __name__ == "__main__":
    main()
