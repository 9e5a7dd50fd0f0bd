"""The scales of packed weights as f32 numbers, decoded inside a kernel.

The value of a weight is `scale * integer + minimum`, `integer` the code less the layout's offset.
Functions are elementwise: arrays have whatever shape the caller's tile has.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rfjax.pallas.intrinsics import shift_right, signed_byte
from rfjax.quant.bits import Array
from rfjax.quant.layout import GROUP, Layout


def factors(
    layout: Layout,
    head: Array,
    words: Callable[[int | Array], Array],
    group: Array,
    number: Callable[[], Array],
) -> tuple[list[Array], list[Array]]:
    """Scales and minima of a group, f32.

    Args:
        layout: of the type.
        head: the raw scale of the group's block, from the plane `layout.scale`.
        words: loads a word of the sub-scales of the block by its index, int32.
        group: the group's number within its column, a scalar.
        number: gives the same number once more, in an array of the shape of `head`.

    Returns:
        One scale, or one for each half of the group; as many minima, or none.
    """
    if layout.block == GROUP:
        if layout.scale == "e":
            return [exponent(head)], []
        if layout.scale == "d":
            return [half(head)], []
        return [low_half(head)], [high_half(head)]
    d = half(head) if layout.scale == "d" else low_half(head)
    at = number()
    if layout.sub == "xs":
        low = shift_right(words(0), 4 * at) & 15
        high = shift_right(head, 16 + 2 * at) & 3
        return [d * ((low | (high << 4)) - 32).astype(jnp.float32)], []
    if layout.sub == "k4":
        scale, minimum = _six_bits([words(i) for i in range(3)], at)
        return [d * scale.astype(jnp.float32)], [-high_half(head) * minimum.astype(jnp.float32)]
    # Sub-blocks of 16: scales 2 group and 2 group + 1.
    first = 2 * (at & 1)
    if layout.sub == "k6":
        word = words(group >> 1)
        return [d * signed_byte(word, first + h).astype(jnp.float32) for h in range(2)], []
    if layout.sub == "k3":
        low, high = words((group >> 1) & 1), words(2)
        codes = [
            (shift_right(low, 8 * (first + h) + 4 * (at >> 2)) & 15)
            | ((shift_right(high, 8 * (first + h) + 2 * (at >> 1)) & 3) << 4)
            for h in range(2)
        ]
        return [d * (code - 32).astype(jnp.float32) for code in codes], []
    assert layout.sub == "k2"
    word, minus = words(group >> 1), -high_half(head)
    codes = [shift_right(word, 8 * (first + h)) for h in range(2)]
    return (
        [d * (code & 15).astype(jnp.float32) for code in codes],
        [minus * (shift_right(code, 4) & 15).astype(jnp.float32) for code in codes],
    )


def _six_bits(words: list[Array], group: Array) -> tuple[Array, Array]:
    """The scale and the minimum of a group of Q4_K and Q5_K, int32.

    Four groups have theirs in the low six bits of a byte; of the others, the upper two bits stand
    above those, and the lower four in a third word.
    """
    scales, minima, rest = (shift_right(word, 8 * (group & 3)) for word in words)
    late = group >= 4
    upper = lambda word: shift_right(word, 2) & 0x30  # noqa: E731
    return (
        jnp.where(late, (rest & 15) | upper(scales), scales & 63),
        jnp.where(late, (shift_right(rest, 4) & 15) | upper(minima), minima & 63),
    )


def half(bits: Array) -> Array:
    """f16 given as 16 bits."""
    return jax.lax.bitcast_convert_type(bits, jnp.float16).astype(jnp.float32)


def low_half(words: Array) -> Array:
    """f16 in the low half of a word."""
    return half(words.astype(jnp.int16))


def high_half(words: Array) -> Array:
    """f16 in the upper half of a word."""
    return half(shift_right(words, 16).astype(jnp.int16))


def exponent(e: Array) -> Array:
    """2^(e - 128), with the two smallest exponents flushed towards 2^-126."""
    bits = jnp.maximum(e.astype(jnp.int32) - 1, 1)
    return jax.lax.bitcast_convert_type(
        jax.lax.shift_left(bits, jnp.full_like(bits, 23)), jnp.float32
    )
