"""How far rows of logits are from a base's: likelihoods, Kullback-Leibler divergence, agreement.

The divergence of row p (the base) and row q is `sum p * (log p - log q)`. Summed like that in f32
it is good to about 1e-7, because any error of a row's normaliser goes straight into it. As both
rows sum to one it is also `sum p * (d + exp(-d) - 1)` with `d = log p - log q`: terms that are
never negative and about `p * d^2 / 2`, in which such an error counts squared. That is what is
summed here, with a series for small d; equal rows give exactly 0.
"""

import jax.numpy as jnp
from flax import struct

from rfjax.ops.likelihood import over_rows
from rfjax.ops.linear import linear
from rfjax.ops.logits import finished
from rfjax.ops.logprobs import normalizer, of_tokens
from rfjax.ops.reduce import row_sum
from rfjax.quant.qtensor import QTensor, Weight, dequantize_packed
from rfjax.typing import Array, Bool, Float, Int

_SMALL = 0.5
"""Below it the series is used; above, `d + exp(-d) - 1` loses no more than three bits."""

_SERIES = (1 / 40320, -1 / 5040, 1 / 720, -1 / 120, 1 / 24, -1 / 6, 1 / 2)
"""Of `(d + exp(-d) - 1) / d^2`, the highest power first; the rest is below 5e-8 of it."""


@struct.dataclass
class TokenDivergences:
    """A model beside its base, of tokens whose true id is known."""

    nll: Float[Array, "*B"]
    """Negative log-likelihood of the token under the model, nats."""
    nll_base: Float[Array, "*B"]
    """The same under the base."""
    kld: Float[Array, "*B"]
    """Divergence of the model's distribution from the base's, over the whole vocabulary, nats."""
    p_diff: Float[Array, "*B"]
    """Probability of the token under the model less that under the base."""
    same_top: Bool[Array, "*B"]
    """Whether both find the same token most likely; of equals the lowest id counts."""


@struct.dataclass
class Head:
    """What makes logits of final hidden states: `finished(hidden @ weight.T + bias)`."""

    weight: Weight  # [V, D]
    bias: Float[Array, " V"] | None
    scale: float = struct.field(pytree_node=False, default=1.0)
    softcap: float = struct.field(pytree_node=False, default=0.0)

    def unpacked(self, dtype: jnp.dtype) -> "Head":
        """With a plain weight."""
        if not isinstance(self.weight, QTensor):
            return self
        return self.replace(weight=dequantize_packed(self.weight, dtype))  # type: ignore[attr-defined]

    def logits(self, hidden: Float[Array, "T D"]) -> Float[Array, "T V"]:
        """f32."""
        y = linear(hidden, self.weight, self.bias, out_dtype=jnp.dtype("float32"))
        return finished(y, self.scale, self.softcap)


def head_divergences(
    base: Head,
    heads: tuple[Head, ...],
    base_hidden: Float[Array, "T D"],
    hidden: tuple[Float[Array, "T D"], ...],
    targets: Int[Array, " T"],
) -> tuple[TokenDivergences, ...]:
    """Every model beside the base, for T tokens; the base's logits are computed once.

    Runs over chunks of rows: no more than a few rows of logits are held at a time, for gradients
    too, which compute them once more.

    Args:
        base: output projection of the base.
        heads: of the models, over the same vocabulary.
        base_hidden: the base's final hidden states, in its dtype.
        hidden: the models', likewise; their widths may differ.
        targets: the true next token of every row.

    Returns:
        `[T]` each, in the order of the models.
    """
    base = base.unpacked(base_hidden.dtype)
    heads = tuple(head.unpacked(h.dtype) for head, h in zip(heads, hidden, strict=True))

    def one(rows):
        of_base, of_models, wanted = rows
        base_logits = base.logits(of_base)
        return tuple(
            row_divergences(base_logits, head.logits(h), wanted)
            for head, h in zip(heads, of_models, strict=True)
        )

    logits_per_row = (1 + len(heads)) * base.weight.shape[0]
    return over_rows(one, (base_hidden, hidden, targets), logits_per_row=logits_per_row)


def row_divergences(
    base_logits: Float[Array, "T V"], logits: Float[Array, "T V"], targets: Int[Array, " T"]
) -> TokenDivergences:
    """Of rows of f32 logits. A token that the model rules out and the base does not gives inf."""
    base, model = normalizer(base_logits), normalizer(logits)
    logp, logq = base.logprobs(base_logits), model.logprobs(logits)
    p, q = jnp.exp(logp), jnp.exp(logq)
    # Of the logits themselves, whose difference is exact where they are near each other.
    shift = (base.best - model.best) + (base.log_total - model.log_total)
    counts = p > 0
    d = jnp.where(counts, (base_logits - logits) - shift, 0.0)
    series = jnp.full_like(d, _SERIES[0])
    for coefficient in _SERIES[1:]:
        series = series * d + jnp.float32(coefficient)
    terms = jnp.where(jnp.abs(d) < _SMALL, p * (d * d) * series, p * d + (q - p))
    kld = row_sum(jnp.where(counts, terms, q))[:, 0]
    chosen_p = of_tokens(base_logits, targets, base)
    chosen_q = of_tokens(logits, targets, model)
    return TokenDivergences(
        nll=-chosen_q,
        nll_base=-chosen_p,
        kld=kld,
        p_diff=jnp.exp(chosen_q) - jnp.exp(chosen_p),
        same_top=jnp.argmax(base_logits, axis=-1) == jnp.argmax(logits, axis=-1),
    )
