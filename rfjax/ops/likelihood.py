"""Log-likelihoods of given tokens, without ever holding `[T, V]` logits."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rfjax.ops.linear import linear
from rfjax.ops.logits import finished
from rfjax.ops.logprobs import normalizer, of_tokens
from rfjax.quant.qtensor import QTensor, Weight, dequantize_packed
from rfjax.typing import Array, Bool, Float, Int

_MAX_LOGITS = 1 << 24
"""Most logits held at a time (64 MiB in f32)."""

_MAX_LOGITS_ON_GPU = 1 << 26
"""The same on GPUs, where small chunks would read the weights for too few rows (256 MiB)."""


class TokenScores(NamedTuple):
    """Of every row's target."""

    logprobs: Float[Array, " T"]
    greedy: Bool[Array, " T"]  # whether it is the most likely token; of equals, the lowest id


def token_scores(
    hidden: Float[Array, "T D"],
    weight: Weight,
    bias: Float[Array, " V"] | None,
    targets: Int[Array, " T"],
    *,
    scale: float = 1.0,
    softcap: float = 0.0,
) -> TokenScores:
    """`log softmax(logits)[target]` of every row, f32, in nats, and whether no logit is higher.

    The logits are `hidden @ weight.T + bias`, then `rfjax.ops.logits.finished` with `scale` and
    `softcap`. A row's scores do not depend on the others, bit for bit in f32 on the CPU.

    Projection, log-sum-exp and gather run over chunks of rows, so that memory is bounded by
    `_MAX_LOGITS` values (on GPUs `_MAX_LOGITS_ON_GPU`) whatever T and V.
    """
    if isinstance(weight, QTensor):  # once, not for every chunk
        weight = dequantize_packed(weight, hidden.dtype)

    def one(inputs):
        rows, wanted = inputs
        logits = linear(rows, weight, bias, out_dtype=jnp.dtype("float32"))
        logits = finished(logits, scale, softcap)
        likeliest = jnp.argmax(logits, axis=-1).astype(wanted.dtype)
        return TokenScores(of_tokens(logits, wanted, normalizer(logits)), likeliest == wanted)

    return over_rows(one, (hidden, targets), logits_per_row=weight.shape[0])


def over_rows(function: Callable[[Any], Any], arrays: Any, *, logits_per_row: int) -> Any:
    """`function(arrays)` for a few rows at a time, put together again.

    Gradients compute it once more, so that they do not keep the logits of all rows.

    Args:
        function: of arrays of some rows; what it returns has the same first axis, and a row's
            results depend on that row alone.
        arrays: a tree of `[T, ...]`. The last rows are filled up with zeros.
        logits_per_row: how many `function` holds for each.
    """
    n_rows = jax.tree.leaves(arrays)[0].shape[0]
    size = rows_at_a_time(n_rows, logits_per_row)
    n = -(-n_rows // size)

    def cut(x: Array) -> Array:
        padding = ((0, n * size - n_rows), *((0, 0) for _ in x.shape[1:]))
        return jnp.pad(x, padding).reshape(n, size, *x.shape[1:])

    pieces = jax.tree.map(cut, arrays)
    found = jax.lax.map(jax.checkpoint(function, prevent_cse=False), pieces)
    return jax.tree.map(lambda x: x.reshape(n * size, *x.shape[2:])[:n_rows], found)


def rows_at_a_time(n_tokens: int, logits_per_row: int) -> int:
    """Of so many rows, those whose logits are held together."""
    most = _MAX_LOGITS if jax.default_backend() == "cpu" else _MAX_LOGITS_ON_GPU
    return min(max(16, min(1024, most // logits_per_row)), max(2, n_tokens))


def token_nll(
    hidden: Float[Array, "T D"],
    weight: Weight,
    bias: Float[Array, " V"] | None,
    targets: Int[Array, " T"],
    *,
    scale: float = 1.0,
    softcap: float = 0.0,
) -> Float[Array, " T"]:
    """`-log softmax(logits)[target]` of every row: `token_scores`, negated."""
    scores = token_scores(hidden, weight, bias, targets, scale=scale, softcap=softcap)
    return -scores.logprobs
