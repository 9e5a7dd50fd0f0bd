"""The functional level: a model is a pytree, and scoring is a pure function inside your own jit.

python examples/score_in_jit.py [MODEL.gguf] ranks endings of a sentence by their likelihood, all
of them in one compiled call.
"""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

import rfjax

BUNDLED = pathlib.Path(__file__).parent / "models" / "shakespeare.gguf"


def log_likelihood(params, tokens, start, length, *, config):
    """Sum of log-probabilities of tokens[start:length] given those before, for one padded row."""
    logprobs = jax.nn.log_softmax(rfjax.forward(params, tokens, config=config)[:-1])
    chosen = jnp.take_along_axis(logprobs, tokens[1:, None], axis=1)[:, 0]
    position = jnp.arange(1, tokens.shape[0])
    return jnp.sum(jnp.where((position >= start) & (position < length), chosen, 0.0))


def main(path: str | pathlib.Path = BUNDLED) -> dict[str, float]:
    model = rfjax.load(path)
    assert model.tokenizer is not None
    context = "GLOUCESTER:\nGood morrow to my"
    endings = [" lord", " sword", " of", " horse"]
    start = len(model.tokenizer.encode(context))
    rows = [model.tokenizer.encode(context + ending) for ending in endings]
    lengths = np.asarray([len(row) for row in rows])
    padded = np.zeros((len(rows), lengths.max()), np.int32)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids

    one = functools.partial(log_likelihood, config=model.config)
    score = jax.jit(jax.vmap(one, in_axes=(None, 0, None, 0)))
    scores = dict(zip(endings, score(model.params, padded, start, lengths).tolist(), strict=True))
    for ending, value in sorted(scores.items(), key=lambda item: -item[1]):
        print(f"{value:8.3f}  {context.splitlines()[-1]}{ending}")
    return scores


if __name__ == "__main__":
    main(*sys.argv[1:2])
