"""Activations in 16-bit block fixed point, the right operand of the integer dot products.

A group of 32 elements is `x = s * q` with q integers of 16 bits and `s = max|x| / 32512`; q is
stored as two signed bytes, `q = 256 * upper + lower`. The rounding error is at most 2^-16 of the
group's largest element: 200 times below that of bfloat16 activations in a product.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from rfjax.pallas.target import Target
from rfjax.quant.layout import GROUP, groups_per_column
from rfjax.typing import Array, Float

LARGEST = 32512
"""Largest |q|: 127 * 256, so that both bytes stay within int8 whatever the rounding."""

_TINY = 1e-37
"""Groups with smaller scales count as zero: the reciprocal would overflow."""

_GROUPS_A_PROGRAM = 32


class PackedActivations(NamedTuple):
    """M rows of K elements in the order of packed weights (see `rfjax.quant.layout`).

    Attributes:
        words: int32 `[M, 2, 2, J, S, 4]`: part (upper, lower), half, group, column, word.
        scales: float32 `[M, J, S]`.
        sums: int32 `[M, 2, J, S]`: sums of q over each half of a group.
    """

    words: Array
    scales: Array
    sums: Array


def pack_activations_reference(x: Float[Array, "M K"]) -> PackedActivations:
    """Plain JAX, the definition."""
    m, k = x.shape
    groups = groups_per_column(k)
    x = x.astype(jnp.float32).reshape(m, k // (GROUP * groups), groups, 2, 4, 4)
    scales = jnp.max(jnp.abs(x), axis=(3, 4, 5), keepdims=True) * jnp.float32(1 / LARGEST)
    scales = scales + jnp.sum(x - x, axis=(3, 4, 5), keepdims=True)
    inverse = jnp.where(scales > _TINY, 1 / scales, jnp.float32(0))
    q = jnp.round(x * inverse).astype(jnp.int32)
    upper = (q + 128) >> 8
    parts = jnp.stack([upper, q - 256 * upper], axis=1).astype(jnp.int8)
    words = jax.lax.bitcast_convert_type(parts, jnp.int32)  # [M, 2, S, J, 2, 4]
    return PackedActivations(
        words=words.transpose(0, 1, 4, 3, 2, 5),
        scales=scales[..., 0, 0, 0].swapaxes(1, 2),
        sums=q.sum(axis=(4, 5)).transpose(0, 3, 2, 1),
    )


def _kernel(*refs, has_norm: bool, eps: float, k: int, groups: int):
    x_ref, *norm, words_ref, scales_ref, sums_ref = refs
    row, first = pl.program_id(0), pl.program_id(1) * _GROUPS_A_PROGRAM
    tile = _GROUPS_A_PROGRAM
    group = first + jnp.arange(tile)
    n_groups = k // GROUP
    whole = n_groups % tile == 0
    inside = None if whole else jnp.broadcast_to((group < n_groups)[:, None], (tile, 4))
    word = jnp.arange(4)
    offset = GROUP * group[:, None] + 4 * word[None, :]

    def load(ref, at):
        return plt.load(ref.at[at], mask=inside, other=None if whole else 0.0).astype(jnp.float32)

    places = [(half, byte) for half in range(2) for byte in range(4)]
    x = {p: load(x_ref, (row, offset + (16 * p[0] + p[1]))) for p in places}
    if has_norm:
        weight = {p: load(norm[0], (offset + (16 * p[0] + p[1]),)) for p in places}
        # Every program sums the whole row again: cheaper than a launch between sum and use.
        everything = jnp.arange(1 << (k - 1).bit_length())
        real = None if everything.size == k else everything < k
        other = None if everything.size == k else 0.0
        wide = plt.load(x_ref.at[row, everything], mask=real, other=other).astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.sum(wide * wide) / k + eps)
        x = {p: x[p] * scale * weight[p] for p in places}
    largest = functools.reduce(jnp.maximum, [jnp.abs(v) for v in x.values()])
    # Zero for finite numbers: a maximum may drop NaN, and neither NaN nor Inf has a q.
    poison = jnp.sum(functools.reduce(jnp.add, [v - v for v in x.values()]), axis=1)
    scales = jnp.max(largest, axis=1) * (1 / LARGEST) + poison
    inverse = jnp.where(scales > _TINY, 1 / scales, 0.0)[:, None]
    at_group = (group % groups, group // groups)
    kept = None if whole else group < n_groups
    plt.store(scales_ref.at[(row, *at_group)], scales, mask=kept)
    for half in range(2):
        total = jnp.zeros((tile, 4), jnp.int32)
        upper_word, lower_word = total, total
        for byte in range(4):
            value = x[half, byte] * inverse
            # Half away from zero; conversion truncates.
            q = (value + jnp.where(value < 0, -0.5, 0.5)).astype(jnp.int32)
            total = total + q
            upper = jax.lax.shift_right_arithmetic(q + 128, jnp.full_like(q, 8))
            lower = q - 256 * upper
            place = jnp.full_like(q, 8 * byte)
            upper_word = upper_word | jax.lax.shift_left(upper & 255, place)
            lower_word = lower_word | jax.lax.shift_left(lower & 255, place)
        plt.store(sums_ref.at[(row, half, *at_group)], jnp.sum(total, axis=1), mask=kept)
        j, s = at_group[0][:, None], at_group[1][:, None]
        for part, value in enumerate((upper_word, lower_word)):
            plt.store(words_ref.at[row, part, half, j, s, word[None, :]], value, mask=inside)


@functools.partial(jax.jit, static_argnames=("eps", "target"))
def pack_activations(
    x: Float[Array, "M K"],
    *,
    norm: Float[Array, " K"] | None = None,
    eps: float = 0.0,
    target: Target,
) -> PackedActivations:
    """Pack rows of activations, RMS-normalised first where `norm` (the norm's weights) is given.

    Args:
        x: any float dtype; K a multiple of 32.
        eps: of the norm.
    """
    m, k = x.shape
    groups = groups_per_column(k)
    columns = k // (GROUP * groups)
    kernel = functools.partial(_kernel, has_norm=norm is not None, eps=eps, k=k, groups=groups)
    shape = jax.ShapeDtypeStruct
    return PackedActivations(
        *pl.pallas_call(
            kernel,
            grid=(m, pl.cdiv(k // GROUP, _GROUPS_A_PROGRAM)),
            out_shape=(
                shape((m, 2, 2, groups, columns, 4), jnp.int32),
                shape((m, groups, columns), jnp.float32),
                shape((m, 2, groups, columns), jnp.int32),
            ),
            compiler_params=plt.CompilerParams(num_warps=4, num_stages=1),
            interpret=target == "interpret",
            name="pack_activations",
        )(x, *([norm] if norm is not None else []))
    )
