"""Sparse mixture of experts: routing, and a grouped product that computes only chosen experts."""

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from rfjax.ops.activation import GATES, IN_KERNELS, gated
from rfjax.ops.dispatch import DEFAULT_POLICY, KernelPolicy
from rfjax.ops.kernel_product import target_of_experts, with_xla_gradient
from rfjax.ops.linear import Projection, linear
from rfjax.ops.reduce import exp_below_best, row_sum
from rfjax.ops.sharded_product import is_spread
from rfjax.pallas.grouped_matvec import grouped_matvec
from rfjax.pallas.pack_activations import pack_activations
from rfjax.pallas.target import Target
from rfjax.quant.qtensor import QTensor
from rfjax.typing import Array, Float, Int

_MAX_BLOCK = 128
"""Most rows of one expert computed together."""

_XLA = KernelPolicy("xla")

Gating = Literal["softmax", "sigmoid", "softmax_of_chosen"]
"""Weights of experts: the softmax over all, the sigmoid of each, or the softmax over the chosen."""


def route(
    logits: Float[Array, "T E"],
    n_used: int,
    *,
    normalize: bool,
    scale: float,
    gating: Gating = "softmax",
    selection_bias: Float[Array, " E"] | None = None,
    n_groups: int = 1,
    n_groups_used: int = 1,
) -> tuple[Float[Array, "T A"], Int[Array, "T A"]]:
    """Weights (f32) and ids of each token's `n_used` best experts, best first.

    Sources: Shazeer et al., "Outrageously Large Neural Networks" (2017); bias and groups:
    DeepSeek-AI, "DeepSeek-V3 Technical Report" (2024). The clamp of the sum is llama.cpp's (the
    smallest normal f16). Of equal experts or groups the one with the lower number is better.

    Args:
        logits: of the router, its bias included, any float dtype.
        n_used: experts of a token, A.
        normalize: divide the chosen experts' weights by their sum.
        scale: multiplies the weights at last.
        gating: what makes weights of logits.
        selection_bias: added to the weights to choose by, and not to those that are returned.
        n_groups: the experts are so many groups of the same size, side by side. The score of a
            group is the sum of its two best.
        n_groups_used: the best groups of a token, from which its experts are chosen.
    """
    logits = logits.astype(jnp.float32)
    by_logits = selection_bias is None and n_groups == n_groups_used
    if by_logits:
        # Every gating grows with the logits.
        chosen, experts = jax.lax.top_k(logits, n_used)
        # The maximum by top_k: XLA's CPU backend fuses a reduction with the exponential, and
        # computes both in another way, for large arrays only.
        best = chosen[:, :1]
    else:
        best = jax.lax.top_k(logits, 1)[0]
        scores = (
            logits if gating == "softmax_of_chosen" else _weights_of(logits, logits, best, gating)
        )
        if selection_bias is not None:
            scores = scores + selection_bias.astype(jnp.float32)[None, :]
        if n_groups != n_groups_used:
            scores = _of_best_groups(scores, n_groups, n_groups_used)
        experts = jax.lax.top_k(scores, n_used)[1]
        chosen = jnp.take_along_axis(logits, experts, axis=1, mode="clip")
    if gating == "softmax_of_chosen":
        best = best if by_logits else jax.lax.top_k(chosen, 1)[0]
        weights = _weights_of(chosen, chosen, best, "softmax")
    else:
        weights = _weights_of(chosen, logits, best, gating)
    if normalize:
        total = row_sum(weights)
        weights = weights * (1.0 / jnp.maximum(total, jnp.float32(2.0**-14)))
    return weights * jnp.float32(scale), experts.astype(jnp.int32)


def _weights_of(chosen: Array, logits: Array, best: Array, gating: Gating) -> Array:
    """What weighs some of a token's logits, whose maximum is `best`, before any normalisation."""
    if gating == "sigmoid":
        return 1.0 / (1.0 + exp_below_best(-chosen, jnp.zeros_like(best)))
    # By the reciprocal, here and above: XLA turns some divisions by a row's sum into that anyway,
    # depending on the shape.
    return exp_below_best(chosen, best) * (1.0 / row_sum(exp_below_best(logits, best)))


def _of_best_groups(scores: Float[Array, "T E"], n_groups: int, n_used: int) -> Array:
    """The scores, those outside a token's best groups replaced by minus infinity."""
    n_tokens, n_experts = scores.shape
    assert n_experts % n_groups == 0 and n_used <= n_groups, (n_experts, n_groups, n_used)
    groups = scores.reshape(n_tokens, n_groups, n_experts // n_groups)
    two = jax.lax.top_k(groups, min(2, groups.shape[2]))[0]
    by_group = two[..., 0] + two[..., 1] if two.shape[2] == 2 else two[..., 0]
    taken = jax.lax.top_k(by_group, n_used)[1]
    is_taken = jnp.any(taken[:, :, None] == jnp.arange(n_groups)[None, None, :], axis=1)
    return jnp.where(is_taken[:, :, None], groups, -jnp.inf).reshape(n_tokens, n_experts)


def expert_ffn(
    x: Float[Array, "T D"],
    weights: Float[Array, "T A"],
    experts: Int[Array, "T A"],
    gate: Projection,
    up: Projection,
    down: Projection,
    activation: str,
    *,
    policy: KernelPolicy = DEFAULT_POLICY,
) -> Float[Array, "T D"]:
    """Sum over each token's chosen experts of `weight * down(gated(gate(x), up(x)))`.

    Nothing is dropped, whatever the balance. Few (token, expert) pairs run through a kernel, each
    by itself. Many, and all of them in plain JAX, are sorted by expert and cut into blocks of rows
    that share one.

    Args:
        weights, experts: of `route`; the weights f32, the ids in `[0, E)`.
        gate, up, down: the experts' weights, stacked, packed or as plain numbers: `[E, F, D]`,
            `[E, F, D]` and `[E, D, F]`; and their biases, f32 `[E, F]`, `[E, F]` and `[E, D]`.
        activation: a name of `rfjax.ops.activation.GATES`.

    Returns:
        In the dtype of `x`; products and the sum over experts are accumulated in f32.

    Raises:
        UnsupportedError: the policy asks for the kernel by name, and it declines.
    """
    projections = (gate, up, down)
    reference = functools.partial(_by_blocks, activation=activation, policy=policy)
    target = target_of_experts(experts.size, [p.weight for p in projections], policy)
    if target is None:
        return reference(x, weights, experts, projections)
    kernel = functools.partial(_by_pairs, activation=activation, target=target)
    return with_xla_gradient(kernel, reference)(x, weights, experts, projections)


def _by_pairs(x, weights, experts, projections, *, activation: str, target: Target):
    """Every pair in the kernel: two launches, and two more that pack their inputs."""
    gate, up, down = projections
    wide = jnp.dtype("float32")

    def prepared(rows: Array) -> Array:
        return pack_activations(rows, target=target) if isinstance(gate.weight, QTensor) else rows

    def products(rows: Array, of: Sequence[Projection], out_dtype, gate=None):
        stacks, biases = [p.weight for p in of], [p.bias for p in of]
        return grouped_matvec(
            prepared(rows),
            stacks,
            experts.reshape(-1),
            biases=biases,
            gated=gate,
            out_dtype=out_dtype,
            target=target,
        )

    if activation in IN_KERNELS:
        hidden = products(x, [gate, up], x.dtype, GATES[activation])
    else:
        hidden = gated(products(x, [gate], wide), products(x, [up], wide), activation)
        hidden = hidden.astype(x.dtype)
    results = products(hidden, [down], wide)
    return _weighted(results.reshape(*experts.shape, -1), weights, x.dtype)


def _weighted(results: Array, weights: Array, dtype: jnp.dtype) -> Array:
    """The sum over a token's experts of `[T, A, D]`, in f32."""
    # Added one by one, best expert first: a fixed order, whatever the number of tokens. The barrier
    # keeps products and sums apart, which XLA would contract for some shapes only.
    weighted = jax.lax.optimization_barrier(results.astype(jnp.float32) * weights[:, :, None])
    total = weighted[:, 0]
    for i in range(1, weighted.shape[1]):
        total = total + weighted[:, i]
    return total.astype(dtype)


def _by_blocks(x, weights, experts, projections, *, activation: str, policy: KernelPolicy):
    """Blocks of rows that share an expert, one after the other.

    The number of blocks that hold anything is at most `pairs / rows + min(pairs, E)`, and the
    others are skipped.
    """
    gate, up, down = projections
    # A share of a spread expert is not known here to be one.
    policy = _XLA if any(is_spread(p.weight) for p in projections) else policy
    n_tokens, n_chosen = experts.shape
    n_experts = gate.weight.shape[0]
    n_pairs = n_tokens * n_chosen
    rows = 2
    while rows < _MAX_BLOCK and rows * n_experts < n_pairs:
        rows *= 2
    max_blocks = n_pairs // rows + min(n_pairs, n_experts)

    flat = experts.reshape(-1)
    order = jnp.argsort(flat, stable=True)
    counts = jnp.bincount(flat, length=n_experts)
    pair_starts = jnp.cumsum(counts) - counts
    block_counts = -(-counts // rows)
    block_ends = jnp.cumsum(block_counts)
    block_starts = block_ends - block_counts
    sorted_experts = flat[order]
    rank = jnp.arange(n_pairs) - pair_starts[sorted_experts]
    slot_sorted = block_starts[sorted_experts] * rows + rank
    slots = jnp.zeros(n_pairs, slot_sorted.dtype).at[order].set(slot_sorted)

    grouped = jnp.zeros((max_blocks * rows, x.shape[1]), x.dtype)
    grouped = grouped.at[slot_sorted].set(x[order // n_chosen])
    block_ids = jnp.arange(max_blocks)
    block_expert = jnp.searchsorted(block_ends, block_ids, side="right")
    used = block_ids < block_ends[-1]

    def compute(block, expert):
        def product(rows: Array, stack: Projection) -> Array:
            get = lambda w: jax.lax.dynamic_index_in_dim(w, expert, keepdims=False)  # noqa: E731
            return linear(rows, *jax.tree.map(get, stack), policy=policy)

        hidden = gated(product(block, gate), product(block, up), activation)
        return product(hidden, down)

    def step(_, inputs):
        block, expert, is_used = inputs
        return None, jax.lax.cond(is_used, compute, lambda b, e: jnp.zeros_like(b), block, expert)

    blocks = grouped.reshape(max_blocks, rows, -1)
    _, results = jax.lax.scan(step, None, (blocks, block_expert, used))
    per_pair = results.reshape(max_blocks * rows, -1)[slots].reshape(n_tokens, n_chosen, -1)
    return _weighted(per_pair, weights, x.dtype)
