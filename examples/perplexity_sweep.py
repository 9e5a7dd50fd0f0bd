"""Perplexity over context lengths and dtypes, each cell of the table one jitted program.

python examples/perplexity_sweep.py [MODEL.gguf TEXT.txt] prints how much a longer context helps,
and what activations of 16 bits cost. The same tokens are scored in every cell.
"""

import dataclasses
import functools
import math
import pathlib
import sys

import jax
import numpy as np

import rfjax
from rfjax.evals.score import score

MODELS = pathlib.Path(__file__).parent / "models"
CONTEXTS = (32, 64, 128, 256)
DTYPES = ("float32", "bfloat16")
SCORED, WINDOWS = 16, 24
"""Tokens at the end of each window, and windows."""


@functools.partial(jax.jit, static_argnames=("config", "first"))
def mean_nll(params, rows, mask, *, config, first):
    """Nats per token, of the masked tokens."""
    return -score(params, rows, mask, config=config, first=first).mean(where=mask)


def main(
    path: str | pathlib.Path = MODELS / "shakespeare.gguf",
    text: str | pathlib.Path = MODELS / "shakespeare-heldout.txt",
) -> dict[tuple[int, str], float]:
    model = rfjax.load(path, dtype="float32")
    assert model.tokenizer is not None
    ids = model.tokenizer.encode(pathlib.Path(text).read_text(encoding="utf-8"))
    lengths = [n for n in CONTEXTS if n <= model.config.context_length]
    ends = max(lengths) + SCORED * np.arange(WINDOWS)
    table = {}
    print(f"perplexity of {SCORED * WINDOWS} tokens in windows of")
    print("tokens " + "".join(f"{dtype:>12}" for dtype in DTYPES))
    for length in lengths:
        rows = np.asarray([ids[end - length : end] for end in ends], np.int32)
        if model.tokenizer.add_bos:
            rows[:, 0] = model.tokenizer.bos_id
        first = length - SCORED - 1
        mask = np.broadcast_to(np.arange(length) > first, rows.shape)
        for dtype in DTYPES:
            config = dataclasses.replace(model.config, dtype=dtype)
            nll = mean_nll(model.params, rows, mask, config=config, first=first)
            table[length, dtype] = math.exp(nll)
        print(f"{length:7}" + "".join(f"{table[length, dtype]:12.4f}" for dtype in DTYPES))
    return table


if __name__ == "__main__":
    main(*sys.argv[1:3])
