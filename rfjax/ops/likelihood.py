"""Log-likelihoods of given tokens, without ever holding `[T, V]` logits."""

import jax
import jax.numpy as jnp

from rfjax.ops.linear import linear
from rfjax.ops.logits import finished
from rfjax.quant.qtensor import QTensor, Weight, dequantize_packed
from rfjax.typing import Array, Float, Int

_MAX_LOGITS = 1 << 24
"""Most logits held at a time (64 MiB in f32)."""


def token_nll(
    hidden: Float[Array, "T D"],
    weight: Weight,
    bias: Float[Array, " V"] | None,
    targets: Int[Array, " T"],
    *,
    scale: float = 1.0,
    softcap: float = 0.0,
) -> Float[Array, " T"]:
    """`-log softmax(logits)[target]` of every row, f32, in nats.

    The logits are `hidden @ weight.T + bias`, then `rfjax.ops.logits.finished` with `scale` and
    `softcap`.

    Projection, log-sum-exp and gather run over chunks of rows, so that memory is bounded by
    `_MAX_LOGITS` values whatever T and V.
    """
    if isinstance(weight, QTensor):  # once, not for every chunk
        weight = dequantize_packed(weight, hidden.dtype)
    n_tokens, vocab = hidden.shape[0], weight.shape[0]
    chunk = max(16, min(1024, _MAX_LOGITS // vocab))
    chunk = min(chunk, max(2, n_tokens))
    n_chunks = -(-n_tokens // chunk)
    padding = n_chunks * chunk - n_tokens
    hidden = jnp.pad(hidden, ((0, padding), (0, 0))).reshape(n_chunks, chunk, -1)
    targets = jnp.pad(targets, (0, padding)).reshape(n_chunks, chunk)

    def one(inputs):
        rows, wanted = inputs
        logits = linear(rows, weight, bias, out_dtype=jnp.dtype("float32"))
        logits = finished(logits, scale, softcap)
        top = jnp.max(logits, axis=-1)
        log_total = jnp.log(jnp.sum(jnp.exp(logits - top[:, None]), axis=-1))
        chosen = jnp.take_along_axis(logits, wanted[:, None], axis=-1)[:, 0]
        return log_total - (chosen - top)

    return jax.lax.map(one, (hidden, targets)).reshape(-1)[:n_tokens]
