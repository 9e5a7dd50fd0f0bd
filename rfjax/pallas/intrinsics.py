"""Machine instructions that kernels name, each with a plain-JAX twin for interpretation.

Elementwise over int32 arrays whose words hold four int8, byte 0 lowest.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import triton as plt

from rfjax.pallas.target import Target
from rfjax.quant.bits import Array

_DOT4 = {
    "cuda": ("dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r"),
    "gfx9": ("v_dot4_i32_i8 $0, $1, $2, $3", "=v,v,v,v"),
    "gfx11": ("v_dot4_i32_iu8 $0, $1, $2, $3 neg_lo:[1,1,0]", "=v,v,v,v"),
}


def _assembly(asm: str, constraints: str, *args: Array) -> Array:
    shape = jax.ShapeDtypeStruct(args[0].shape, jnp.int32)
    return plt.elementwise_inline_asm(
        asm, args=list(args), constraints=constraints, pack=1, result_shape_dtypes=[shape]
    )[0]


def opaque(x: Array, target: Target) -> Array:
    """`x`, of which the compiler knows nothing.

    For indices: Triton gives a load a layout of its own, vectorised along what it proves to be
    contiguous, and then moves the result through shared memory to where it is used. Without the
    proof every lane loads what it uses.
    """
    if target == "interpret":
        return x
    return _assembly(
        "mov.b32 $0, $1;" if target == "cuda" else "v_mov_b32 $0, $1",
        "=r,r" if target == "cuda" else "=v,v",
        x,
    )


def shift_right(x: Array, bits: int | Array) -> Array:
    """Logical shift of int32 words; `bits` broadcasts against them."""
    return jax.lax.shift_right_logical(x, jnp.broadcast_to(jnp.asarray(bits, jnp.int32), x.shape))


def signed_byte(x: Array, index: int | Array) -> Array:
    """Byte `index` of each word as a signed number, int32."""
    up = jnp.broadcast_to(jnp.asarray(24 - 8 * index, jnp.int32), x.shape)
    return jax.lax.shift_right_arithmetic(jax.lax.shift_left(x, up), jnp.full_like(x, 24))


def dot4(a: Array, b: Array, c: Array, target: Target) -> Array:
    """`c + a[0] b[0] + ... + a[3] b[3]` over the signed bytes of each word, exact in int32."""
    if target == "interpret":
        apart = [jax.lax.bitcast_convert_type(x, jnp.int8).astype(jnp.int32) for x in (a, b)]
        return c + jnp.sum(apart[0] * apart[1], axis=-1)
    asm, constraints = _DOT4[target]
    return _assembly(asm, constraints, a, b, c)


def lookup16(words: Array, table: np.ndarray, target: Target) -> tuple[Array, Array]:
    """`table[nibble]` for the low and for the high nibble of every byte, as signed bytes.

    Args:
        words: int32, eight nibbles each.
        table: int8 `[16]`.
    """
    low, high = words & 0x0F0F0F0F, shift_right(words, 4) & 0x0F0F0F0F
    if target == "interpret":
        return _gather16(low, table), _gather16(high, table)
    quarters = [int(w) for w in table.astype(np.int8).view(np.int32)]
    if target != "cuda":
        return _permute_amd(low, quarters), _permute_amd(high, quarters)
    # prmt takes four selectors of four bits from the low half of a register: nibbles in memory
    # order, low and high alternating. Two lookups of eight entries, then a choice by bit 3.
    index = words & 0x77777777
    choice = (shift_right(words, 1) & 0x44444444) | 0x32103210
    lut = (
        "{{ .reg .b32 a, b; prmt.b32 a, {}, {}, $1; prmt.b32 b, {}, {}, $1; "
        "prmt.b32 $0, a, b, $2; }}"
    ).format(*(f"0x{w & 0xFFFFFFFF:08x}" for w in quarters))
    first = _assembly(lut, "=r,r,r", index, choice)
    second = _assembly(lut, "=r,r,r", shift_right(index, 16), shift_right(choice, 16))
    take = "prmt.b32 $0, $1, $2, {};"
    return (
        _assembly(take.format("0x6420"), "=r,r,r", first, second),
        _assembly(take.format("0x7531"), "=r,r,r", first, second),
    )


def _gather16(index: Array, table: np.ndarray) -> Array:
    codes = jax.lax.bitcast_convert_type(index, jnp.int8)
    values = jnp.zeros_like(codes)
    for entry in range(16):  # kernels may not capture arrays: the table is spelled out
        values = jnp.where(codes == entry, jnp.int8(int(table[entry])), values)
    return jax.lax.bitcast_convert_type(values, jnp.int32)


def _permute_amd(index: Array, quarters: list[int]) -> Array:
    """v_perm_b32 takes one selector a byte, 0-3 from its second source and 4-7 from its first."""
    selector = index & 0x07070707
    fill = lambda value: jnp.full_like(index, np.int32(value))  # noqa: E731
    permute = lambda high, low: _assembly(  # noqa: E731
        "v_perm_b32 $0, $1, $2, $3", "=v,v,v,v", fill(high), fill(low), selector
    )
    lower, upper = permute(quarters[1], quarters[0]), permute(quarters[3], quarters[2])
    mask = (shift_right(index, 3) & 0x01010101) * jnp.int32(255)
    return (upper & mask) | (lower & ~mask)
