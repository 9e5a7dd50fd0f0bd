"""How packed weights lie on a device, type by type: the one table that packing, unpacking and
kernels read. Pure data, without JAX.

A row of K elements is cut into S columns of J groups of 32 elements, J the same for every tensor of
that K: 8 where 256 divides K (always so for super-blocks of 256), else the largest power of two
that fits. Planes are stored group by group with the column last, so that neighbouring lanes of a
GPU read neighbouring 16-byte vectors, and one lane meets a whole super-block with its scales.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from rfjax.quant.types import GGMLType

GROUP = 32
"""Elements that share a scale of the activations, and the smallest block of any packed type."""

MAX_GROUPS = 8
"""Most groups in a column: a super-block of 256 elements."""

PLANE_AXES: Mapping[str, tuple[str | None, ...]] = MappingProxyType(
    {
        "q4": ("rows", None, "columns", None),
        "q8": ("rows", None, None, "columns", None),
        "q1": ("rows", None, "columns"),
        "q2": ("rows", None, "columns", None),
        "scales": ("rows", None, "columns"),
        "raw": ("rows", "columns", None),
    }
)
"""Axes of every plane but the scales `d` and `dm`, whose shape depends on the block (see
`Layout.plane_axes`): "rows" is N, "columns" splits K.

- `q4` int32 `[N, J, S, 4]`: nibbles. Byte b of word i holds element 4i+b of the group in its low
  nibble and element 16+4i+b in its high one.
- `q8` int32 `[N, J, 2, S, 4]`: int8. Byte b of word i of half h is element 16h+4i+b.
- `q1` int32 `[N, J, S]`: single bits. Bit 8b+2i+h belongs to element 16h+4i+b.
- `q2` int32 `[N, J/2, S, 4]`: fields of two bits. Field 2(j%2)+h of byte b of word i of pair j//2
  belongs to element 16h+4i+b of group j.
- `scales` int32 `[N, W, S]`: a super-block's sub-scales, W words in ggml's own order of bytes.
- `raw` uint8 `[N, blocks, bytes]`: whole blocks, for types without a layout of their own.
"""


@dataclasses.dataclass(frozen=True)
class Layout:
    """The planes of one type, and where in a block the bytes of its scales stand.

    The code of an element is `low | high << shift`; its integer is `code - offset`, or
    `levels[code]`.

    Attributes:
        type: the GGML type.
        block: elements of a block, 32 or 256.
        low: the plane of an element's low bits.
        high: the plane of its upper bits, or None.
        shift: bits in the low plane: where the upper ones go.
        offset: what the code exceeds the integer by.
        levels: name of the table that codes index, or None.
        scale: "d" (f16 bits, uint16), "dm" (int32: d below, and above it the minimum, or what else
            stands beside d) or "e" (uint8, a power of two).
        scale_bytes: where the scale begins in a block.
        sub: how sub-scales are encoded, or None: "k4" (8 scales and 8 minima of 6 bits), "k2" (16
            scales and minima of 4 bits), "k3" (16 signed of 6 bits), "k6" (16 int8), "xs" (8 signed
            of 6 bits, their upper bits beside d).
        sub_bytes: where the sub-scales begin in a block, and how many bytes they take.
    """

    type: GGMLType
    block: int
    low: Literal["q2", "q4", "q8"]
    scale: Literal["d", "dm", "e"]
    scale_bytes: int
    high: Literal["q1", "q2"] | None = None
    shift: int = 0
    offset: int = 0
    levels: Literal["iq4", "e2m1"] | None = None
    sub: Literal["k2", "k3", "k4", "k6", "xs"] | None = None
    sub_bytes: tuple[int, int] = (0, 0)

    @property
    def has_minimum(self) -> bool:
        """Whether a multiple of the activations' sum is added or subtracted."""
        return self.sub in ("k2", "k4") or (self.scale == "dm" and self.block == GROUP)

    @property
    def planes(self) -> tuple[str, ...]:
        """Names of the planes, elements first."""
        names = [self.low, *([self.high] if self.high else []), self.scale]
        return (*names, *(["scales"] if self.sub else []))

    def plane_axes(self, plane: str) -> tuple[str | None, ...]:
        """What the axes of a plane stand for: "rows", "columns" or None."""
        if plane == self.scale:
            return ("rows", "columns") if self.block > GROUP else ("rows", None, "columns")
        return PLANE_AXES[plane]


LAYOUTS: Mapping[GGMLType, Layout] = MappingProxyType(
    {
        row.type: row
        for row in (
            Layout(GGMLType.Q4_0, 32, "q4", "d", 0, offset=8),
            Layout(GGMLType.Q4_1, 32, "q4", "dm", 0),
            Layout(GGMLType.Q5_0, 32, "q4", "d", 0, high="q1", shift=4, offset=16),
            Layout(GGMLType.Q5_1, 32, "q4", "dm", 0, high="q1", shift=4),
            Layout(GGMLType.Q8_0, 32, "q8", "d", 0),
            Layout(GGMLType.IQ4_NL, 32, "q4", "d", 0, levels="iq4"),
            Layout(GGMLType.MXFP4, 32, "q4", "e", 0, levels="e2m1"),
            Layout(GGMLType.Q2_K, 256, "q2", "dm", 80, sub="k2", sub_bytes=(0, 16)),
            Layout(
                GGMLType.Q3_K, 256, "q2", "d", 108, "q1", 2, offset=4, sub="k3", sub_bytes=(96, 12)
            ),
            Layout(GGMLType.Q4_K, 256, "q4", "dm", 0, sub="k4", sub_bytes=(4, 12)),
            Layout(GGMLType.Q5_K, 256, "q4", "dm", 0, "q1", 4, sub="k4", sub_bytes=(4, 12)),
            Layout(
                GGMLType.Q6_K,
                256,
                "q4",
                "d",
                208,
                "q2",
                4,
                offset=32,
                sub="k6",
                sub_bytes=(192, 16),
            ),
            Layout(GGMLType.IQ4_XS, 256, "q4", "dm", 0, levels="iq4", sub="xs", sub_bytes=(4, 4)),
        )
    }
)
"""The types with planes of their own. Every other quantized type is kept as its raw blocks."""


def groups_per_column(k: int) -> int:
    """J for rows of `k` elements, a multiple of 32."""
    assert k % GROUP == 0, k
    groups = MAX_GROUPS
    while k % (GROUP * groups):
        groups //= 2
    return groups
