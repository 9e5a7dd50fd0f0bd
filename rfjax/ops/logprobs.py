"""Log-probabilities of tokens, of chosen ones and of the most likely."""

import jax
import jax.numpy as jnp
from flax import struct

from rfjax.ops.reduce import exp_below_best, row_sum
from rfjax.typing import Array, Float, Int

_BLOCK = 128


@struct.dataclass
class Normalizer:
    """What turns a row's logits into log-probabilities: `(x - best) - log_total`.

    The second is NaN for a row with NaN or +inf among its logits, and for one of -inf alone.
    """

    best: Array  # f32 [B, 1]
    log_total: Array  # f32 [B, 1]

    def logprobs(self, logits: Float[Array, "B n"]) -> Float[Array, "B n"]:
        """Of some logits of each row, f32, the same whatever rows are beside it."""
        return logits - self.best - self.log_total


def normalizer(logits: Float[Array, "B V"]) -> Normalizer:
    """Of each row of f32 logits.

    Whoever uses the sum must use the maximum as well, as `logprobs` does: where the sum is its
    only use, XLA's CPU backend (JAX 0.10.2 to 0.12.0.1) puts both into one kernel, which gives NaN.
    """
    best = jnp.max(logits, axis=-1, keepdims=True)
    return Normalizer(best, jnp.log(row_sum(exp_below_best(logits, best))))


def of_tokens(
    logits: Float[Array, "B V"], tokens: Int[Array, " B"], norm: Normalizer
) -> Float[Array, " B"]:
    """`log softmax(logits)[token]` of every row."""
    return norm.logprobs(jnp.take_along_axis(logits, tokens[:, None], axis=-1))[:, 0]


def most_likely(
    logits: Float[Array, "B V"], n: int
) -> tuple[Int[Array, "B n"], Float[Array, "B n"]]:
    """The n greatest logits of every row, the greatest first, with their tokens; int32 and f32.

    Of equal ones the lower token comes first: `jax.lax.top_k`, which on GPUs sorts the whole
    vocabulary. Only blocks whose maximum is among the n greatest maxima can hold one of the n
    greatest, so that one pass and two small sorts do.
    """
    rows, vocab = logits.shape
    n = min(n, vocab)
    n_blocks = -(-vocab // _BLOCK)
    if n_blocks <= n:
        values, tokens = jax.lax.top_k(logits, n)
        return tokens, values
    padding = ((0, 0), (0, n_blocks * _BLOCK - vocab))
    blocks = jnp.pad(logits, padding, constant_values=-jnp.inf).reshape(rows, n_blocks, _BLOCK)
    chosen = jnp.sort(jax.lax.top_k(jnp.max(blocks, axis=-1), n)[1], axis=-1)
    candidates = jnp.take_along_axis(blocks, chosen[:, :, None], axis=1).reshape(rows, -1)
    values, places = jax.lax.top_k(candidates, n)
    block = jnp.take_along_axis(chosen, places // _BLOCK, axis=-1)
    return block * _BLOCK + places % _BLOCK, values


def token_logprobs(
    logits: Float[Array, "T V"], wanted: Int[Array, " T"], n_top: int
) -> tuple[Float[Array, " T"], Int[Array, "T n"], Float[Array, "T n"]]:
    """Log-probability of each row's token, and the most likely ones with theirs.

    For the tokens of a prompt: the caller gives it a block of rows at a time.

    Args:
        logits: f32.
        wanted: int32.
        n_top: how many of the most likely, at most V.
    """
    norm = normalizer(logits)
    tokens, values = most_likely(logits, n_top)
    return of_tokens(logits, wanted, norm), tokens, norm.logprobs(values)
