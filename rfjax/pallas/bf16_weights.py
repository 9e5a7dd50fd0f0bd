"""Tiles of packed weights as bfloat16 numbers in registers: operands for the matrix units.

A tile is some columns of one group (`rfjax.quant.layout`) in every weight row, four words a
column. Each word holds eight elements, two halves of four bytes, and a product may take the
elements in any order that its other operand has too. So a tile becomes eight operands, one for
each half and byte, whose elements are the words: nothing is moved, each word is taken apart where
it lies. On NVIDIA GPUs a word's place is chosen so that a lane of a tensor core's left operand
(elements 2t, 2t+1, 2t+8 and 2t+9 of 16) gets the four words of one column, with one scale.

Weights are rounded to bfloat16 once; NVIDIA code rounds their scales as well. Codes become numbers
there without conversions, two at a time: a code below 128 is the mantissa of 128 + code.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import triton as plt

from rfjax.pallas.intrinsics import lookup16, shift_right, signed_byte
from rfjax.pallas.sub_scales import factors
from rfjax.pallas.target import Target
from rfjax.quant.bits import Array
from rfjax.quant.fp4 import E2M1
from rfjax.quant.iq4 import LEVELS
from rfjax.quant.layout import GROUP, Layout

PIECES = 8
"""Operands of a group: elements of each half and byte of its words."""

WORDS = 4
"""Words of a group."""

_TABLES = {"iq4": LEVELS, "e2m1": E2M1}

_IN_ORDER = ("gfx9", "gfx11")
"""Targets whose lanes hold neighbouring elements of a product."""

_BITS = {"q1": 1, "q2": 2, "q4": 4, "q8": 8}


def fewest_groups(layout: Layout) -> int:
    """Groups that must be taken together: two share the words of a plane of two bits."""
    return 2 if "q2" in (layout.low, layout.high) else 1


def in_lane_order(words: Array, columns: int, target: Target) -> Array:
    """Words `[..., 4 * columns]` of a tile in the order of a product's elements."""
    if target in _IN_ORDER:
        return words
    leading = words.shape[:-1]
    apart = words.reshape(*leading, columns // 4, 4, 2, 2)
    return apart.swapaxes(-2, -3).reshape(*leading, WORDS * columns)


def _for_words(numbers: Array, columns: int, target: Target) -> Array:
    """Numbers `[R, columns]`, repeated for the words of every column."""
    rows = numbers.shape[0]
    if target in _IN_ORDER:
        apart, whole = (rows, columns, 1), (rows, columns, WORDS)
    else:
        apart, whole = (rows, columns // 4, 1, 4, 1), (rows, columns // 4, 2, 4, 2)
    return jnp.broadcast_to(numbers.reshape(apart), whole).reshape(rows, WORDS * columns)


def constants(n_groups: int, columns: int, target: Target) -> np.ndarray:
    """What depends on a word's place, and the number of a group: int32 `[groups, 5 columns]`.

    Of each of the `4 columns` words of a tile, twice its number within its column; then the number
    of the group for every column. Kernels load this and do not compute it: Triton changes layouts
    in front of computations only where all their operands are loaded. Otherwise it would move the
    finished numbers through shared memory, four times the bytes.
    """
    words = np.tile(2 * np.arange(WORDS, dtype=np.int32), columns)
    places = np.asarray(in_lane_order(words, columns, target))
    groups = np.arange(n_groups, dtype=np.int32)[:, None]
    return np.concatenate(
        [np.tile(places, (n_groups, 1)), np.tile(groups, (1, columns))], axis=1, dtype=np.int32
    )


@dataclasses.dataclass(frozen=True)
class Bf16Weights:
    """Weight rows of a packed matrix, from which tiles are read.

    Attributes:
        layout: of the type.
        refs: planes by name, each `[N, everything else]`.
        constants: `constants(...)` in memory.
        rows: which rows, int32 `[R]`.
        n_columns: of the matrix.
        n_groups: of a column.
        columns: of a tile, a multiple of four.
        target: whose instructions to use.
    """

    layout: Layout
    refs: Mapping[str, Any]
    constants: Any
    rows: Array
    n_columns: int
    n_groups: int
    columns: int
    target: Target

    def groups(self, chunk: Array, first: Array, count: int) -> Iterator[list[Array]]:
        """The operands of `count` groups from `first` on, `PIECES` each: bf16 `[R, 4 columns]`.

        Args:
            chunk: which tile along the columns.
            first: a multiple of `count`.
            count: of groups, a multiple of `fewest_groups`.
        """
        layout = self.layout
        head = self._numbers(layout.scale, chunk, None) if layout.block > GROUP else None
        pair: dict[str, Array] = {}
        for g in range(count):
            group = first + g
            if "q2" in (layout.low, layout.high) and g % 2 == 0:
                pair["q2"] = self._words("q2", chunk, group >> 1)
            own = self._numbers(layout.scale, chunk, group) if head is None else head
            scales, minima = factors(
                layout,
                own,
                lambda w: self._numbers("scales", chunk, w),
                group,
                functools.partial(self._group_number, group),
            )
            yield self._pieces(chunk, group, g % 2, scales, minima, pair)

    def _words(self, plane: str, chunk: Array, block: Array) -> Array:
        """Words `[R, 4 columns]` of a block of the plane, in the product's order."""
        size = WORDS * self.columns
        words = self._load(plane, block * (WORDS * self.n_columns), chunk * size, size, WORDS)
        return in_lane_order(words, self.columns, self.target)

    def _numbers(self, plane: str, chunk: Array, block: int | Array | None) -> Array:
        """One number a column, `[R, columns]`."""
        start = 0 if block is None else block * self.n_columns
        return self._load(plane, start, chunk * self.columns, self.columns, 1)

    def _load(self, plane: str, start, offset: Array, size: int, each: int) -> Array:
        at = offset + jnp.arange(size, dtype=jnp.int32)
        ref = self.refs[plane].at[self.rows[:, None], (start + at)[None, :]]
        policy = "evict_first" if each > 1 else None
        if self.n_columns % self.columns == 0:
            return plt.load(ref, eviction_policy=policy)
        mask = jnp.broadcast_to((at < each * self.n_columns)[None, :], (len(self.rows), size))
        return plt.load(ref, mask=mask, other=0, eviction_policy=policy)

    def _pieces(self, chunk, group, parity: int, scales, minima, pair) -> list[Array]:
        """The operands of one group; `parity` is that of the group."""
        layout, target = self.layout, self.target
        if layout.low == "q8":
            low = [self._words("q8", chunk, 2 * group + h) for h in range(2)]
        elif layout.low == "q2":
            low = [pair["q2"]] * 2
        else:
            low = [self._words("q4", chunk, group)] * 2
        signed = layout.low == "q8"
        if layout.levels == "iq4" or (layout.levels and target != "cuda"):
            low, signed = list(lookup16(low[0], _TABLES[layout.levels], target)), True
        high = pair.get("q2") if layout.high == "q2" else None
        if layout.high == "q1":
            high = self._single_bits(chunk, group)
        width = _BITS[layout.low]
        codes = _Codes(
            signed=signed,
            width=width,
            spread=tuple(0 if signed else _field(layout.low, h, parity) for h in range(2)),
            above=tuple(_field(layout.high, h, parity) for h in range(2)) if layout.high else None,
            high_width=_BITS[layout.high] if layout.high else 0,
            float4=layout.levels == "e2m1" and not signed,
            offset=layout.offset,
        )
        make = _cuda_pieces if target == "cuda" else _plain_pieces
        repeat = lambda x: _for_words(x, self.columns, target)  # noqa: E731
        return make(codes, low, high, scales, minima, repeat)

    def _single_bits(self, chunk: Array, group: Array) -> Array:
        """For every word the bits of its elements: bit 8b+h for half h of byte b."""
        bits = _for_words(self._numbers("q1", chunk, group), self.columns, self.target)
        shifts = self._constants(group, 0, WORDS * self.columns)
        return shift_right(bits, jnp.broadcast_to(shifts, bits.shape))

    def _group_number(self, group: Array) -> Array:
        """The number of a group, for every column: `[R, columns]`."""
        number = self._constants(group, WORDS * self.columns, self.columns)
        return jnp.broadcast_to(number, (len(self.rows), self.columns))

    def _constants(self, group: Array, start: int, size: int) -> Array:
        index = start + jnp.arange(size, dtype=jnp.int32)
        return plt.load(self.constants.at[jnp.full((1, size), group), index[None, :]])


def _field(plane: str, h: int, parity: int) -> int:
    """The lowest bit, within a byte, of elements of half `h` of an even or odd group."""
    return {"q4": 4 * h, "q2": 4 * parity + 2 * h, "q1": h, "q8": 0}[plane]


@dataclasses.dataclass(frozen=True)
class _Codes:
    """Where the codes of a group's elements are: of half h and byte b, bits from 8b + spread[h].

    Attributes:
        signed: bytes are the integers themselves.
        width: bits in the low words.
        spread: their place within a byte, by half.
        above: the place of the upper bits in the high words, or None.
        high_width: how many upper bits.
        float4: codes are E2M1, whose integers are twice their values.
        offset: what codes exceed the integers by.
    """

    signed: bool
    width: int
    spread: tuple[int, ...]
    above: tuple[int, ...] | None
    high_width: int
    float4: bool
    offset: int

    @property
    def centre(self) -> int:
        """A code in the middle of all of them."""
        if self.signed or self.float4:
            return 0
        return self.offset or 1 << (self.width + self.high_width - 1)


def _plain_pieces(codes: _Codes, low, high, scales, minima, repeat) -> list[Array]:
    """In f32, with one rounding."""
    pieces = []
    factor = []
    for i, scale in enumerate(scales):
        add = minima[i] if minima else None
        if codes.offset:
            add = -codes.offset * scale if add is None else add - codes.offset * scale
        factor.append((repeat(scale), None if add is None else repeat(add)))
    for h in range(2):
        scale, add = factor[h % len(factor)]
        mask = (1 << codes.width) - 1
        fields = low[h] if codes.signed else shift_right(low[h], codes.spread[h])
        for b in range(4):
            code = signed_byte(fields, b) if codes.signed else shift_right(fields, 8 * b) & mask
            if codes.above is not None:
                upper = shift_right(high, 8 * b + codes.above[h]) & ((1 << codes.high_width) - 1)
                code = code | (upper << codes.width)
            value = code.astype(jnp.float32) * scale
            pieces.append(_rounded(value if add is None else value + add))
    return pieces


def _rounded(values: Array) -> Array:
    """Finite f32 as the nearest bf16, halves away from zero: a fifth of the instructions that
    AMD's compiler takes for a conversion."""
    bits = jax.lax.bitcast_convert_type(values, jnp.int32) + 0x8000
    return jax.lax.bitcast_convert_type(shift_right(bits, 16).astype(jnp.int16), jnp.bfloat16)


def _cuda_pieces(codes: _Codes, low, high, scales, minima, repeat) -> list[Array]:
    """Two elements an instruction, in the halves of a register."""
    factor = []
    for i, scale in enumerate(scales):
        numbers = [scale]
        if minima:
            numbers.append(minima[i] + codes.centre * scale)
        factor.append([repeat(x.astype(jnp.bfloat16)) for x in numbers])
    pieces = []
    for h in range(2):
        for b in range(4):
            args = [_sixteen(low[h], b // 2)]
            if codes.above is not None:
                args.append(_sixteen(high, b // 2))
            args += factor[h % len(factor)]
            asm = assembly(codes, h, b % 2, has_minimum=bool(minima))
            shape = jax.ShapeDtypeStruct(args[0].shape, jnp.bfloat16)
            constraints = "=r" + ",r" * len(args)
            pieces += plt.elementwise_inline_asm(
                asm, args=args, constraints=constraints, pack=2, result_shape_dtypes=[shape]
            )
    return pieces


def _sixteen(words: Array, upper: int) -> Array:
    """The lower or upper half of words."""
    return (shift_right(words, 16) if upper else words).astype(jnp.int16)


def assembly(codes: _Codes, h: int, b: int, *, has_minimum: bool) -> str:
    """PTX for two bf16 in the halves of $0, from byte `b` of the halves of $1.

    Operands: the low bits $1, the upper bits if there are any, the scale, and what is added if
    there is a minimum, each twice.
    """
    has_high = codes.above is not None
    lines = [".reg .b32 t, u, c, zero;", f"mov.b32 zero, {_twice(0x8000)};"]  # -0 adds nothing
    if codes.signed:
        # Seven bits above 128; of a negative number, 256 is taken away instead of 128.
        lines += [
            _moved("t", "$1", 8 * b),
            f"lop3.b32 u, t, {_twice(0x80)}, {_twice(0x4300)}, 0xEA;",
            f"lop3.b32 t, t, {_twice(0x7F)}, {_twice(0x4300)}, 0xEA;",
            f"mov.b32 c, {_twice(_bf16(-1))};",
            "fma.rn.bf16x2 t, u, c, t;",
        ]
    elif codes.float4:
        # Exponent and mantissa where bf16 has them, as a tiny number; times 2^127, doubled.
        at = 8 * b + codes.spread[h]
        lines += [
            _moved("t", "$1", at - 6),
            _moved("u", "$1", at - 12),
            f"and.b32 t, t, {_twice(0x01C0)};",
            f"lop3.b32 t, u, {_twice(0x8000)}, t, 0xEA;",
            f"mov.b32 c, {_twice(0x7F00)};",
            "fma.rn.bf16x2 t, t, c, zero;",
        ]
    else:
        at = 8 * b + codes.spread[h]
        lines.append(_moved("t", "$1", at))
        lines.append(f"lop3.b32 t, t, {_twice((1 << codes.width) - 1)}, {_twice(0x4300)}, 0xEA;")
        if codes.above is not None:
            mask = ((1 << codes.high_width) - 1) << codes.width
            lines.append(_moved("u", "$2", 8 * b + codes.above[h] - codes.width))
            lines.append(f"lop3.b32 t, u, {_twice(mask)}, t, 0xEA;")
        lines += [
            f"mov.b32 u, {_twice(_bf16(1))};",
            f"mov.b32 c, {_twice(_bf16(-128 - codes.centre))};",
            "fma.rn.bf16x2 t, t, u, c;",
        ]
    scale = 3 if has_high else 2
    lines.append(f"fma.rn.bf16x2 $0, t, ${scale}, {f'${scale + 1}' if has_minimum else 'zero'};")
    return "{ " + " ".join(lines) + " }"


def _moved(to: str, source: str, bits: int) -> str:
    """PTX: a shift to the right, or to the left if negative."""
    if bits == 0:
        return f"mov.b32 {to}, {source};"
    return f"sh{'r' if bits > 0 else 'l'}.b32 {to}, {source}, {abs(bits)};"


def _twice(bits: int) -> str:
    return f"0x{bits << 16 | bits:08x}"


def _bf16(value: int) -> int:
    """The bits of a small integer, exact up to 256."""
    magnitude = abs(value)
    power = int(math.log2(magnitude))
    bits = (127 + power) << 7 | (magnitude * 128 >> power) - 128
    return bits | 0x8000 if value < 0 else bits
