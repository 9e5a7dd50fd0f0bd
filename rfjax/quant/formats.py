"""The table of decodable GGML types, and the two functions that decode a tensor."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rfjax.errors import ModelFormatError, UnsupportedError
from rfjax.quant import fp4, iq1, iq2, iq3, iq4, kquants, legacy, lowbit, plain, ternary
from rfjax.quant.bits import Array
from rfjax.quant.types import BLOCK_SIZES, GGMLType
from rfjax.quant.unpacked import Unpacked, combine

if TYPE_CHECKING:
    import jax


class Decode(Protocol):
    """Whole blocks to numbers: uint8 `[n, block_bytes]` to float32 `[n, block_elements]`."""

    def __call__(self, blocks: Array, xp: ModuleType) -> Array: ...


class Unpack(Protocol):
    """Whole blocks to their integers and scales: uint8 `[n, block_bytes]` to `Unpacked`."""

    def __call__(self, blocks: Array, xp: ModuleType) -> Unpacked: ...


@dataclasses.dataclass(frozen=True)
class Format:
    """How the blocks of one GGML type are read.

    Attributes:
        type: the GGML type.
        block_elements: elements of a block.
        block_bytes: bytes of a block.
        decode: blocks to float32 values, bit for bit ggml's.
        unpack: blocks to integers and scales; None for plain numbers, which have none.
    """

    type: GGMLType
    block_elements: int
    block_bytes: int
    decode: Decode
    unpack: Unpack | None = None


def _plain(type: GGMLType, decode: Decode) -> Format:
    return Format(type, *BLOCK_SIZES[type], decode)


def _quantized(type: GGMLType, unpack: Unpack, decode: Decode | None = None) -> Format:
    def decode_parts(blocks: Array, xp: ModuleType) -> Array:
        return combine(unpack(blocks, xp), xp)

    return Format(type, *BLOCK_SIZES[type], decode or decode_parts, unpack)


FORMATS: Mapping[GGMLType, Format] = MappingProxyType(
    {
        row.type: row
        for row in (
            _plain(GGMLType.F32, plain.decode_f32),
            _plain(GGMLType.F16, plain.decode_f16),
            _plain(GGMLType.BF16, plain.decode_bf16),
            _plain(GGMLType.F64, plain.decode_f64),
            _plain(GGMLType.I8, plain.decode_i8),
            _plain(GGMLType.I16, plain.decode_i16),
            _plain(GGMLType.I32, plain.decode_i32),
            _plain(GGMLType.I64, plain.decode_i64),
            _quantized(GGMLType.Q4_0, legacy.unpack_q4_0),
            _quantized(GGMLType.Q4_1, legacy.unpack_q4_1),
            _quantized(GGMLType.Q5_0, legacy.unpack_q5_0),
            _quantized(GGMLType.Q5_1, legacy.unpack_q5_1),
            _quantized(GGMLType.Q8_0, legacy.unpack_q8_0),
            _quantized(GGMLType.Q1_0, lowbit.unpack_q1_0),
            _quantized(GGMLType.Q2_0, lowbit.unpack_q2_0),
            _quantized(GGMLType.TQ1_0, ternary.unpack_tq1_0),
            _quantized(GGMLType.TQ2_0, ternary.unpack_tq2_0),
            _quantized(GGMLType.Q2_K, kquants.unpack_q2_k),
            _quantized(GGMLType.Q3_K, kquants.unpack_q3_k),
            _quantized(GGMLType.Q4_K, kquants.unpack_q4_k),
            _quantized(GGMLType.Q5_K, kquants.unpack_q5_k),
            _quantized(GGMLType.Q6_K, kquants.unpack_q6_k),
            _quantized(GGMLType.IQ1_S, iq1.unpack_iq1_s),
            _quantized(GGMLType.IQ1_M, iq1.unpack_iq1_m),
            _quantized(GGMLType.IQ2_XXS, iq2.unpack_iq2_xxs),
            _quantized(GGMLType.IQ2_XS, iq2.unpack_iq2_xs),
            _quantized(GGMLType.IQ2_S, iq2.unpack_iq2_s),
            _quantized(GGMLType.IQ3_XXS, iq3.unpack_iq3_xxs),
            _quantized(GGMLType.IQ3_S, iq3.unpack_iq3_s),
            _quantized(GGMLType.IQ4_NL, iq4.unpack_iq4_nl),
            _quantized(GGMLType.IQ4_XS, iq4.unpack_iq4_xs),
            _quantized(GGMLType.MXFP4, fp4.unpack_mxfp4, fp4.decode_mxfp4),
            _quantized(GGMLType.NVFP4, fp4.unpack_nvfp4),
        )
    }
)
"""Every type that a tensor of a GGUF file can hold.

Q8_1 and Q8_K are missing on purpose: ggml uses them for activations inside products only, and
itself has no conversion of them to floats.
"""

# Elements that the NumPy decoder takes at a time: its temporaries then stay in the cache.
_CHUNK_ELEMENTS = 1 << 16


def format_of(type: GGMLType | int) -> Format:
    """The format of a type.

    Raises:
        UnsupportedError: there is no such type, or it is not one that tensors are stored in.
    """
    try:
        return FORMATS[GGMLType(type)]
    except (KeyError, ValueError):
        names = {int(known): known.name for known in GGMLType}
        name = names.get(int(type), "unknown")
        supported = ", ".join(known.name for known in FORMATS)
        raise UnsupportedError(
            f"GGML type {int(type)} ({name}) cannot be decoded; supported types: {supported}. "
            "Convert the file to one of these."
        ) from None


def _block_count(raw: Array, format: Format, shape: tuple[int, ...]) -> int:
    """Number of blocks of a tensor, after checking that `raw` holds exactly those."""
    elements = math.prod(shape)
    row = shape[-1] if shape else 1
    if row % format.block_elements:
        raise ModelFormatError(
            f"{format.type.name} tensor of shape {shape}: the last dimension must be a multiple of "
            f"the block of {format.block_elements} elements, got {row}"
        )
    count = elements // format.block_elements
    if raw.dtype != np.uint8 or raw.size != count * format.block_bytes:
        raise ModelFormatError(
            f"{format.type.name} tensor of shape {shape}: expected {count * format.block_bytes} "
            f"bytes as uint8, got {raw.size} items of {raw.dtype}"
        )
    return count


def dequantize_numpy(raw: np.ndarray, type: GGMLType | int, shape: tuple[int, ...]) -> np.ndarray:
    """Decodes a tensor with NumPy, bit for bit as ggml does.

    Args:
        raw: uint8 `[bytes]` (or any shape of that size), the blocks as they stand in the file.
        type: GGML type of the tensor.
        shape: its shape, row-major: the last dimension is the contiguous one (GGUF's first).

    Returns:
        float32 `[*shape]`, freshly allocated.

    Raises:
        UnsupportedError: the type cannot be decoded.
        ModelFormatError: `raw` is not the size that type and shape ask for, or a row is not a
            whole number of blocks.
    """
    format = format_of(type)
    count = _block_count(raw, format, shape)
    blocks = np.ascontiguousarray(raw).reshape(count, format.block_bytes)
    values = np.empty((count, format.block_elements), np.float32)
    step = max(1, _CHUNK_ELEMENTS // format.block_elements)
    # Inf and NaN scales are values like others here.
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, count, step):
            chunk = slice(start, start + step)
            values[chunk] = format.decode(blocks[chunk], np)
    return values.reshape(shape)


def dequantize(raw: "jax.Array", type: GGMLType | int, shape: tuple[int, ...]) -> "jax.Array":
    """Decodes a tensor on its device, bit for bit as ggml does (on the CPU: see `bits`).

    Compiled on its own when called eagerly; inside a jitted function it is inlined, with type and
    shape static.

    Args:
        raw: uint8 `[bytes]` (or any shape of that size), the blocks as they stand in the file.
        type: GGML type of the tensor.
        shape: its shape, row-major: the last dimension is the contiguous one (GGUF's first).

    Returns:
        float32 `[*shape]`.

    Raises:
        UnsupportedError: the type cannot be decoded.
        ModelFormatError: `raw` is not the size that type and shape ask for, or a row is not a
            whole number of blocks.
    """
    format = format_of(type)
    _block_count(raw, format, shape)
    return _jitted_decode()(raw, format.type, tuple(shape))


@functools.cache
def _jitted_decode() -> Callable[..., "jax.Array"]:
    """The compiled decoder, made on first use: this module does not import JAX."""
    import jax
    import jax.numpy as jnp

    def decode(raw: jax.Array, type: GGMLType, shape: tuple[int, ...]) -> jax.Array:
        format = FORMATS[type]
        with jax.named_scope(f"dequantize_{type.name.lower()}"):
            blocks = raw.reshape(-1, format.block_bytes)
            return format.decode(blocks, jnp).reshape(shape)

    return jax.jit(decode, static_argnames=("type", "shape"), inline=True)
