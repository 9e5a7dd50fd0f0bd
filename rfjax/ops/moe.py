"""Sparse mixture of experts: routing, and a grouped product that computes only chosen experts."""

import functools

import jax
import jax.numpy as jnp

from rfjax.ops.activation import ACTIVATIONS, gated
from rfjax.ops.dispatch import DEFAULT_POLICY, KernelPolicy
from rfjax.ops.kernel_product import target_of_experts, with_xla_gradient
from rfjax.ops.linear import linear
from rfjax.ops.reduce import exp_below_best, row_sum
from rfjax.ops.sharded_product import is_spread
from rfjax.pallas.grouped_matvec import grouped_matvec
from rfjax.pallas.pack_activations import pack_activations
from rfjax.pallas.target import Target
from rfjax.quant.qtensor import QTensor, Weight
from rfjax.typing import Array, Float, Int

_MAX_BLOCK = 128
"""Most rows of one expert computed together."""

_XLA = KernelPolicy("xla")


def route(
    logits: Float[Array, "T E"], n_used: int, *, normalize: bool, scale: float
) -> tuple[Float[Array, "T A"], Int[Array, "T A"]]:
    """Weights (f32) and ids of each token's `n_used` best experts, best first.

    The weights are the softmax over all experts; with `normalize` they are divided by their sum
    over the chosen ones. Source: Shazeer et al., "Outrageously Large Neural Networks" (2017);
    the clamp of the sum is llama.cpp's (the smallest normal f16).

    Args:
        logits: of the router, any float dtype.
        n_used: experts of a token, A.
        normalize: divide the chosen experts' weights by their sum.
        scale: multiplies the weights at last.
    """
    logits = logits.astype(jnp.float32)
    best, experts = jax.lax.top_k(logits, n_used)
    # The maximum by top_k: XLA's CPU backend fuses a reduction with the exponential, and computes
    # both in another way, for large arrays only.
    weights = exp_below_best(best, best[:, :1])
    # By the reciprocal, here and below: XLA turns some divisions by a row's sum into that anyway,
    # depending on the shape.
    weights = weights * (1.0 / row_sum(exp_below_best(logits, best[:, :1])))
    if normalize:
        total = row_sum(weights)
        weights = weights * (1.0 / jnp.maximum(total, jnp.float32(2.0**-14)))
    return weights * jnp.float32(scale), experts.astype(jnp.int32)


def expert_ffn(
    x: Float[Array, "T D"],
    weights: Float[Array, "T A"],
    experts: Int[Array, "T A"],
    gate: Weight,
    up: Weight,
    down: Weight,
    activation: str,
    *,
    policy: KernelPolicy = DEFAULT_POLICY,
) -> Float[Array, "T D"]:
    """Sum over each token's chosen experts of `weight * down(activation(gate(x)) * up(x))`.

    Nothing is dropped, whatever the balance. Few (token, expert) pairs run through a kernel, each
    by itself. Many, and all of them in plain JAX, are sorted by expert and cut into blocks of rows
    that share one.

    Args:
        weights, experts: of `route`; the weights f32, the ids in `[0, E)`.
        gate, up, down: the experts' weights, stacked, packed or as plain numbers: `[E, F, D]`,
            `[E, F, D]` and `[E, D, F]`.
        activation: a name of `rfjax.ops.activation.ACTIVATIONS`.

    Returns:
        In the dtype of `x`; products and the sum over experts are accumulated in f32.

    Raises:
        UnsupportedError: the policy asks for the kernel by name, and it declines.
    """
    stacks = (gate, up, down)
    reference = functools.partial(_by_blocks, activation=activation, policy=policy)
    target = target_of_experts(experts.size, stacks, policy)
    if target is None:
        return reference(x, weights, experts, stacks)
    kernel = functools.partial(_by_pairs, activation=activation, target=target)
    return with_xla_gradient(kernel, reference)(x, weights, experts, stacks)


def _by_pairs(x, weights, experts, stacks, *, activation: str, target: Target):
    """Every pair in the kernel: two launches, and two more that pack their inputs."""
    gate, up, down = stacks
    wide = jnp.dtype("float32")

    def prepared(rows: Array) -> Array:
        return pack_activations(rows, target=target) if isinstance(gate, QTensor) else rows

    flat = experts.reshape(-1)
    function = ACTIVATIONS[activation]
    hidden = grouped_matvec(
        prepared(x), [gate, up], flat, gated=function, out_dtype=x.dtype, target=target
    )
    results = grouped_matvec(prepared(hidden), [down], flat, out_dtype=wide, target=target)
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


def _by_blocks(x, weights, experts, stacks, *, activation: str, policy: KernelPolicy):
    """Blocks of rows that share an expert, one after the other.

    The number of blocks that hold anything is at most `pairs / rows + min(pairs, E)`, and the
    others are skipped.
    """
    gate, up, down = stacks
    # A share of a spread expert is not known here to be one.
    policy = _XLA if any(is_spread(stack) for stack in stacks) else policy
    n_tokens, n_chosen = experts.shape
    n_experts = gate.shape[0]
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
        def take(weight: Weight) -> Weight:
            get = lambda w: jax.lax.dynamic_index_in_dim(w, expert, keepdims=False)  # noqa: E731
            return jax.tree.map(get, weight)

        product = functools.partial(linear, policy=policy)
        hidden = gated(product(block, take(gate)), product(block, take(up)), activation)
        return product(hidden, take(down))

    def step(_, inputs):
        block, expert, is_used = inputs
        return None, jax.lax.cond(is_used, compute, lambda b, e: jnp.zeros_like(b), block, expert)

    blocks = grouped.reshape(max_blocks, rows, -1)
    _, results = jax.lax.scan(step, None, (blocks, block_expert, used))
    per_pair = results.reshape(max_blocks * rows, -1)[slots].reshape(n_tokens, n_chosen, -1)
    return _weighted(per_pair, weights, x.dtype)
