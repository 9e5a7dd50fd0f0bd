"""From a file's blocks to packed planes and back: bits are moved, never changed.

Written once for NumPy and JAX; `xp` is the namespace.
"""

from types import ModuleType

import numpy as np

from rfjax.quant import kquants
from rfjax.quant.bits import Array, f16_from_bits, field_planes, lookup
from rfjax.quant.formats import FORMATS
from rfjax.quant.fp4 import E2M1, scale_e2m1
from rfjax.quant.iq4 import LEVELS, scales_iq4_xs
from rfjax.quant.layout import GROUP, LAYOUTS, Layout, groups_per_column
from rfjax.quant.types import BLOCK_SIZES, GGMLType
from rfjax.quant.unpacked import Unpacked, combine

_TABLES = {"iq4": LEVELS, "e2m1": E2M1}

_SCALE_DTYPES = {"d": np.dtype(np.uint16), "dm": np.dtype(np.int32), "e": np.dtype(np.uint8)}


def pack_planes(raw: Array, type: GGMLType, xp: ModuleType) -> dict[str, Array]:
    """The planes of a tensor.

    Args:
        raw: uint8 `[..., N, blocks of a row, bytes of a block]`.
        type: its GGML type; one without a layout of its own stays as it is.

    Returns:
        Plane by name; shapes and order of bits are those of `rfjax.quant.layout`.
    """
    if type not in LAYOUTS:
        return {"raw": raw}
    layout = LAYOUTS[type]
    leading, per_row = raw.shape[:-2], raw.shape[-2]
    groups = groups_per_column(per_row * layout.block)
    columns = per_row * layout.block // (GROUP * groups)
    blocks = raw.reshape(-1, raw.shape[-1])
    codes = _codes(blocks, layout, xp).reshape(*leading, columns, groups, 2, 4, 4)
    planes = {layout.low: _pack_elements(codes, layout.low, xp)}
    if layout.high:
        planes[layout.high] = _pack_elements(codes >> layout.shift, layout.high, xp)

    dtype = _SCALE_DTYPES[layout.scale]
    start = layout.scale_bytes
    scale = raw[..., start : start + dtype.itemsize].view(dtype)[..., 0]
    if layout.block == GROUP:
        scale = xp.swapaxes(scale.reshape(*leading, columns, groups), -1, -2)
    planes[layout.scale] = scale
    if layout.sub:
        start, size = layout.sub_bytes
        planes["scales"] = xp.swapaxes(raw[..., start : start + size].view(np.int32), -1, -2)
    return planes


def _codes(blocks: Array, layout: Layout, xp: ModuleType) -> Array:
    """Unsigned codes of the elements in their order, uint8 `[n, block]`."""
    if layout.levels:
        start = BLOCK_SIZES[layout.type][1] - layout.block // 2
        nibbles = blocks[:, start:].reshape(-1, layout.block // GROUP, 16)
        return field_planes(nibbles, 4, 2)
    unpack = FORMATS[layout.type].unpack
    assert unpack is not None
    return (unpack(blocks, xp).q + np.int8(layout.offset)).view(np.uint8)


def _pack_elements(codes: Array, plane: str, xp: ModuleType) -> Array:
    """The plane that holds the lowest bits of codes, uint8 `[..., S, J, half, word, byte]`."""
    if plane == "q8":
        return xp.moveaxis(codes.view(np.int32)[..., 0], -4, -2)
    if plane == "q4":
        nibbles = codes & 15
        data = nibbles[..., 0, :, :] | (nibbles[..., 1, :, :] << 4)
        return data.view(np.int32)[..., 0].swapaxes(-3, -2)
    if plane == "q2":
        pairs = (codes & 3).reshape(*codes.shape[:-4], codes.shape[-4] // 2, 4, 4, 4)
        data = _join([(pairs[..., field, :, :], 2 * field) for field in range(4)])
        return data.view(np.int32)[..., 0].swapaxes(-3, -2)
    assert plane == "q1"
    bits = codes & 1
    data = _join([(bits[..., h, i, :], 2 * i + h) for i in range(4) for h in range(2)])
    return data.view(np.int32)[..., 0].swapaxes(-2, -1)


def _join(fields_and_shifts: list[tuple[Array, int]]) -> Array:
    data, _ = fields_and_shifts[0]
    for field, shift in fields_and_shifts[1:]:
        data = data | (field << shift)
    return data


def unpack_planes(planes: dict[str, Array], type: GGMLType, xp: ModuleType) -> Array:
    """Values of packed planes `[..., N, K]`, float32, bit for bit ggml's."""
    if type not in LAYOUTS:
        raw = planes["raw"]
        values = FORMATS[type].decode(raw.reshape(-1, raw.shape[-1]), xp)
        return values.reshape(*raw.shape[:-2], -1)
    layout = LAYOUTS[type]
    codes = _unpack_elements(planes[layout.low], layout.low, xp)
    if layout.high:
        codes = codes | (_unpack_elements(planes[layout.high], layout.high, xp) << layout.shift)
    leading, row = codes.shape[:-5], codes.shape[-5] * codes.shape[-4] * GROUP
    if layout.levels:
        q = lookup(_TABLES[layout.levels], codes, xp)
    else:
        q = codes.view(np.int8) - np.int8(layout.offset)
    sub_block = 16 if layout.sub in ("k2", "k3", "k6") else GROUP
    q = q.reshape(-1, layout.block // sub_block, sub_block)

    scale = planes[layout.scale]
    if layout.block == GROUP:
        scale = xp.swapaxes(scale, -1, -2)
    scale = scale.reshape(-1)
    if layout.scale == "e":
        return scale_e2m1(q[:, 0], scale, xp).reshape(*leading, row)
    bits = scale.astype(np.uint32) if layout.scale == "d" else scale.view(np.uint32)
    low, high = bits & 0xFFFF, bits >> 16
    parts = Unpacked(q, f16_from_bits(low, xp))
    if layout.sub is None:
        if layout.scale == "dm":
            parts = parts._replace(dmin=-f16_from_bits(high, xp))
        return combine(parts, xp).reshape(*leading, row)
    words = xp.swapaxes(planes["scales"], -1, -2)
    data = xp.ascontiguousarray(words) if xp is np else words
    data = data.reshape(-1, words.shape[-1]).view(np.uint8)
    if layout.sub == "xs":
        parts = parts._replace(scales=scales_iq4_xs(high[:, None], data))
    elif layout.sub == "k6":
        parts = parts._replace(scales=data.view(np.int8).astype(np.int32))
    elif layout.sub == "k3":
        parts = parts._replace(scales=kquants.scales_q3_k(data))
    else:
        decode = kquants.scales_and_mins if layout.sub == "k4" else kquants.scales_and_mins_q2_k
        scales, mins = decode(data, xp)
        parts = parts._replace(scales=scales, dmin=f16_from_bits(high, xp), mins=mins)
    return combine(parts, xp).reshape(*leading, row)


def _unpack_elements(words: Array, plane: str, xp: ModuleType) -> Array:
    """What a plane holds, uint8 `[..., S, J, half, word, byte]`."""
    if plane == "q8":
        return _bytes(xp.moveaxis(words, -2, -4))
    if plane == "q4":
        data = _bytes(words.swapaxes(-3, -2))  # [..., S, J, word, byte]
        return _fields(data, 4, 2)
    if plane == "q2":
        data = _bytes(words.swapaxes(-3, -2))  # [..., S, J/2, word, byte]
        parts = _fields(data, 2, 4)
        return parts.reshape(*parts.shape[:-4], -1, 2, 4, 4)
    assert plane == "q1"
    data = _bytes(words.swapaxes(-2, -1))  # [..., S, J, byte]
    spread = data[..., None, None, :]
    shifts = (
        np.arange(8, dtype=np.uint8).reshape(4, 2).T.reshape((1,) * (data.ndim - 1) + (2, 4, 1))
    )
    return (spread >> shifts) & 1


def _fields(data: Array, width: int, count: int) -> Array:
    """Bit fields of uint8 `[..., word, byte]`, lowest first: `[..., count, word, byte]`.

    By shifts that broadcast: stacked arrays would each be written to memory first.
    """
    shifts = np.arange(count, dtype=np.uint8) * np.uint8(width)
    shifts = shifts.reshape((1,) * (data.ndim - 2) + (count, 1, 1))
    return (data[..., None, :, :] >> shifts) & (2**width - 1)


def _bytes(words: Array) -> Array:
    """The bytes of words, lowest first: int32 `[...]` to uint8 `[..., 4]`."""
    if isinstance(words, np.ndarray):
        words = np.ascontiguousarray(words)
    return words[..., None].view(np.uint8)
