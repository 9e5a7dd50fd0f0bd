"""The tensor table of a GGUF file: names, shapes, types, and where the data of each tensor lies."""

import math
from dataclasses import dataclass

from rfjax.io.gguf_cursor import Cursor, malformed
from rfjax.quant.types import BLOCK_SIZES, GGMLType

MAX_TENSORS = 2**18
"""Most tensors of a file. The largest known models have fewer than 100,000."""

MAX_DIMS = 4
"""Most dimensions of a tensor, as in ggml."""

MAX_NAME_BYTES = 63
"""Longest tensor name in bytes, as in ggml (64 with its final zero)."""

MAX_ELEMENTS = 2**63 - 1
"""Most elements of a tensor: ggml counts them in signed 64-bit integers."""

MAX_DATA_BYTES = 2**63 - 1
"""Most bytes of tensor data with its padding: no file is larger than a signed 64-bit offset."""

_MIN_TENSOR_BYTES = 24  # length of an empty name, number of dimensions, type, offset


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One entry of the tensor table.

    Attributes:
        name: GGUF name, such as `blk.0.attn_q.weight`.
        shape: Elements per dimension in numpy's order, outermost first (files store the reverse).
            The last dimension is the one that is cut into quantization blocks. `()` is a scalar.
        type: Type of the elements.
        shard: Index of the file that holds the data, 0 unless the model is split.
        offset: Absolute position of the data in that file in bytes.
        nbytes: Size of the data in bytes, without padding.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    shard: int
    offset: int
    nbytes: int

    @property
    def n_elements(self) -> int:
        """Number of elements; 0 if a dimension is 0, 1 for a scalar."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A table entry as it stands in the file: its offset is relative to the data section."""

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    offset: int
    nbytes: int


def read_tensors(
    cursor: Cursor, count: int, alignment: int, shard: int
) -> tuple[dict[str, TensorInfo], int]:
    """Reads a tensor table of `count` entries and lays out their data.

    Args:
        cursor: Stands at the first entry; left behind the last.
        count: Number of tensors the file claims, not yet checked.
        alignment: Power of two, in bytes, to which the data section and every tensor are padded.
        shard: Index of this file in a split model.

    Returns:
        Tensors by name in the file's order, and the offset in bytes at which the last tensor's
        padding ends, which is the least size of a complete file.

    Raises:
        ModelFormatError: A count, name, shape, type or offset breaks the format or a limit.
    """
    if count > MAX_TENSORS:
        raise malformed(cursor.path, f"it claims {count} tensors, expected at most {MAX_TENSORS}")
    cursor.need(count * _MIN_TENSOR_BYTES, f"a table of {count} tensors")
    entries: dict[str, _Entry] = {}
    for index in range(count):
        entry = _read_entry(cursor, index)
        if entry.name in entries:
            raise malformed(cursor.path, f"tensor {entry.name!r} occurs twice, expected once")
        entries[entry.name] = entry
    if not entries:
        return {}, cursor.position
    return _lay_out(cursor, entries, alignment, shard)


def _read_entry(cursor: Cursor, index: int) -> _Entry:
    """Reads one entry and checks all that can be checked without its neighbours."""
    name = cursor.text(f"name of tensor {index}", MAX_NAME_BYTES)
    what = f"tensor {name!r}"
    n_dims = cursor.u32(f"number of dimensions of {what}")
    if n_dims > MAX_DIMS:
        raise malformed(cursor.path, f"{what} has {n_dims} dimensions, expected at most {MAX_DIMS}")
    dims = [cursor.u64(f"dimension {dim} of {what}") for dim in range(n_dims)]
    elements = 1
    for dim in dims:  # as ggml does: the product of the dimensions so far, innermost first
        elements *= dim
        if max(dim, elements) > MAX_ELEMENTS:
            raise malformed(
                cursor.path,
                f"{what} has dimensions {dims}, expected at most {MAX_ELEMENTS} elements",
            )
    ggml_type = _read_type(cursor, what)
    block_elements, block_bytes = BLOCK_SIZES[ggml_type]
    row = dims[0] if dims else 1
    if row % block_elements:
        raise malformed(
            cursor.path,
            f"{what} of type {ggml_type.name} has rows of {row} elements, "
            f"expected a multiple of its block of {block_elements}",
        )
    offset = cursor.u64(f"offset of {what}")
    nbytes = elements // block_elements * block_bytes
    return _Entry(name, tuple(reversed(dims)), ggml_type, offset, nbytes)


def _read_type(cursor: Cursor, what: str) -> GGMLType:
    """Reads a tensor type that exists and whose blocks are known."""
    number = cursor.i32(f"type of {what}")
    try:
        return GGMLType(number)
    except ValueError:
        status = "was removed from GGUF" if 0 <= number < max(GGMLType) else "is not known"
        known = ", ".join(f"{ggml_type.name} ({ggml_type.value})" for ggml_type in GGMLType)
        raise malformed(
            cursor.path, f"{what} has type {number}, which {status}; expected one of {known}"
        ) from None


def _lay_out(
    cursor: Cursor, entries: dict[str, _Entry], alignment: int, shard: int
) -> tuple[dict[str, TensorInfo], int]:
    """Checks that the data of the tensors follows one another, each padded to the alignment."""
    data_start = _pad(cursor.position, alignment)
    if data_start > len(cursor.data):
        raise malformed(
            cursor.path,
            f"the tensor data should start at byte {data_start} (alignment {alignment}), "
            f"but the file has {len(cursor.data)} bytes",
        )
    tensors: dict[str, TensorInfo] = {}
    total = 0
    for name, entry in entries.items():
        if entry.offset != total:
            raise malformed(
                cursor.path,
                f"tensor {name!r} has offset {entry.offset}, expected {total}, "
                f"where the padded data before it ends (alignment {alignment})",
            )
        total = _pad(total + entry.nbytes, alignment)
        if data_start + total > MAX_DATA_BYTES:
            raise malformed(
                cursor.path,
                f"tensor {name!r} of shape {entry.shape} and type {entry.type.name} takes "
                f"{entry.nbytes} bytes, with which the file passes {MAX_DATA_BYTES} bytes",
            )
        tensors[name] = TensorInfo(
            name, entry.shape, entry.type, shard, data_start + entry.offset, entry.nbytes
        )
    return tensors, data_start + total


def _pad(size: int, alignment: int) -> int:
    """`size` rounded up to a multiple of the power of two `alignment`."""
    return (size + alignment - 1) & -alignment
