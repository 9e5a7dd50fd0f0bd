"""Builds small GGUF files for tests, byte by byte, so that any field can also be wrong.

The normal way is `write_gguf(path, metadata, tensors)`; `write_split` writes shards as llama.cpp's
gguf-split does. For malformed files `string`, `pair`, `tensor_entry` and `assemble` give the parts,
and `refusal` the message with which a file is refused.
"""

import pathlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from rfjax.errors import ModelFormatError
from rfjax.io.gguf import read_gguf
from rfjax.io.gguf_values import ValueType
from rfjax.quant.types import BLOCK_SIZES, GGMLType

_FORMATS = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}
_TENSOR_TYPES = {
    "f4": GGMLType.F32,
    "f2": GGMLType.F16,
    "f8": GGMLType.F64,
    "i1": GGMLType.I8,
    "i2": GGMLType.I16,
    "i4": GGMLType.I32,
    "i8": GGMLType.I64,
}


@dataclass(frozen=True)
class Typed:
    """A metadata value of a chosen type; a sequence becomes an array of that element type."""

    type: ValueType
    value: object


@dataclass(frozen=True)
class RawTensor:
    """A tensor given by its bytes; `shape` is in numpy's order, outermost first."""

    type: GGMLType
    shape: tuple[int, ...]
    data: bytes


Tensors = Mapping[str, np.ndarray | RawTensor]


def string(text: str | bytes) -> bytes:
    """A GGUF string: its length and its bytes."""
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def scalar(value_type: ValueType, value: object) -> bytes:
    """The bytes of one scalar."""
    if value_type == ValueType.STRING:
        assert isinstance(value, str | bytes)
        return string(value)
    return struct.pack("<" + _FORMATS[value_type], value)


def array(element_type: int, elements: Iterable[object], length: int | None = None) -> bytes:
    """An array value with its element type; `length` may lie."""
    elements = list(elements)
    head = struct.pack("<iQ", element_type, len(elements) if length is None else length)
    return head + b"".join(scalar(ValueType(element_type), element) for element in elements)


def pair(key: str | bytes, value: object) -> bytes:
    """A metadata pair.

    bool becomes BOOL, int UINT32 (INT32, UINT64 or INT64 where it does not fit), float FLOAT32,
    a list of these or of strings an array, a numpy array an array of its dtype; `Typed` chooses.
    """
    value_type, data = _value(value)
    return string(key) + struct.pack("<i", value_type) + data


def tensor_entry(
    name: str | bytes, dims: Sequence[int], type_number: int, offset: int, n_dims: int | None = None
) -> bytes:
    """An entry of the tensor table; `dims` in the file's order, innermost first."""
    count = len(dims) if n_dims is None else n_dims
    sizes = b"".join(struct.pack("<Q", dim % 2**64) for dim in dims)
    return string(name) + struct.pack("<I", count) + sizes + struct.pack("<iQ", type_number, offset)


def assemble(
    pairs: Sequence[bytes] = (),
    entries: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_pairs: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file from its parts; the counts may lie. The header is padded to `alignment`."""
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(entries) if n_tensors is None else n_tensors,
        len(pairs) if n_pairs is None else n_pairs,
    )
    head += b"".join(pairs) + b"".join(entries)
    return head + bytes(-len(head) % alignment) + data


def gguf_bytes(
    metadata: Mapping[str, object] | None = None,
    tensors: Tensors | None = None,
    *,
    version: int = 3,
) -> bytes:
    """A well-formed file. The alignment is the metadata's `general.alignment`, or 32."""
    metadata = metadata or {}
    alignment = metadata.get("general.alignment", 32)
    assert isinstance(alignment, int)
    entries, data = [], b""
    for name, tensor in (tensors or {}).items():
        raw = _raw(tensor)
        entries.append(tensor_entry(name, raw.shape[::-1], raw.type, len(data)))
        data += raw.data + bytes(-len(raw.data) % alignment)
    pairs = [pair(key, value) for key, value in metadata.items()]
    return assemble(pairs, entries, data, version=version, alignment=alignment)


def write_gguf(
    path: pathlib.Path,
    metadata: Mapping[str, object] | None = None,
    tensors: Tensors | None = None,
    *,
    version: int = 3,
) -> pathlib.Path:
    """Writes a well-formed file and returns its path."""
    path.write_bytes(gguf_bytes(metadata, tensors, version=version))
    return path


def write_split(
    folder: pathlib.Path,
    stem: str,
    metadata: Mapping[str, object],
    shards: Sequence[Tensors],
) -> list[pathlib.Path]:
    """Writes a split model, one file for each of `shards`; metadata goes into the first."""
    paths = []
    for index, tensors in enumerate(shards):
        own = dict(metadata) if index == 0 else {}
        own["split.no"] = Typed(ValueType.UINT16, index)
        own["split.count"] = Typed(ValueType.UINT16, len(shards))
        own["split.tensors.count"] = Typed(ValueType.INT32, sum(map(len, shards)))
        name = f"{stem}-{index + 1:05d}-of-{len(shards):05d}.gguf"
        paths.append(write_gguf(folder / name, own, tensors))
    return paths


def refusal(folder: pathlib.Path, data: bytes) -> str:
    """The message, less the path, with which `read_gguf` refuses a file of these bytes."""
    path = folder / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelFormatError) as caught:
        read_gguf(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def _value(value: object) -> tuple[ValueType, bytes]:
    """Type and bytes of a metadata value."""
    if isinstance(value, np.ndarray):
        kind = {"u": "UINT", "i": "INT", "f": "FLOAT", "b": "BOOL"}[value.dtype.kind]
        bits = "" if kind == "BOOL" else str(8 * value.itemsize)
        value = Typed(ValueType[kind + bits], value.tolist())
    elif not isinstance(value, Typed):
        first = value[0] if isinstance(value, list | tuple) else value
        value = Typed(_natural_type(first), value)
    if isinstance(value.value, list | tuple):
        return ValueType.ARRAY, array(value.type, value.value)
    return value.type, scalar(value.type, value.value)


def _natural_type(value: object) -> ValueType:
    """The type that converters give to such a value."""
    if isinstance(value, bool):
        return ValueType.BOOL
    if isinstance(value, int):
        for value_type, low, high in (
            (ValueType.UINT32, 0, 2**32),
            (ValueType.INT32, -(2**31), 2**31),
            (ValueType.UINT64, 0, 2**64),
        ):
            if low <= value < high:
                return value_type
        return ValueType.INT64
    return ValueType.FLOAT32 if isinstance(value, float) else ValueType.STRING


def _raw(tensor: np.ndarray | RawTensor) -> RawTensor:
    """A tensor as bytes; the size of given bytes is checked, so that fixtures do not lie."""
    if isinstance(tensor, np.ndarray):
        ggml_type = _TENSOR_TYPES[tensor.dtype.newbyteorder("<").str[1:]]
        little = tensor.astype(tensor.dtype.newbyteorder("<"))
        tensor = RawTensor(ggml_type, tensor.shape, little.tobytes())
    block_elements, block_bytes = BLOCK_SIZES[tensor.type]
    expected = int(np.prod(tensor.shape, dtype=object)) // block_elements * block_bytes
    assert len(tensor.data) == expected, f"{len(tensor.data)} bytes given, {expected} expected"
    return tensor
