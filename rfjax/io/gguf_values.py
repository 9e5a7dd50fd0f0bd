"""The key-value pairs of a GGUF file: their types, and reading them with every field checked."""

import enum
import struct

import numpy as np

from rfjax.io.gguf_cursor import Cursor, malformed

MAX_PAIRS = 2**16
"""Most metadata pairs of a file. Real files have fewer than a hundred."""

MAX_KEY_BYTES = 2**16 - 1
"""Longest metadata key in bytes, as the GGUF specification says."""

_MIN_PAIR_BYTES = 14  # length and one byte of key, type, one byte of value

Value = bool | int | float | str | np.ndarray | tuple[str, ...]
"""A metadata value: a scalar, a read-only numpy array (numbers, bools), or a tuple of strings.

Strings are UTF-8 decoded with `surrogateescape`; `text_bytes` gives their exact bytes.
"""


class ValueType(enum.IntEnum):
    """Types of metadata values, numbered as in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_FORMATS: dict[int, str] = {
    ValueType.UINT8: "<B",
    ValueType.INT8: "<b",
    ValueType.UINT16: "<H",
    ValueType.INT16: "<h",
    ValueType.UINT32: "<I",
    ValueType.INT32: "<i",
    ValueType.FLOAT32: "<f",
    ValueType.BOOL: "<B",  # any byte but 0 is true
    ValueType.UINT64: "<Q",
    ValueType.INT64: "<q",
    ValueType.FLOAT64: "<d",
}
"""Types of fixed size, as the struct module writes them."""

_DTYPES: dict[int, np.dtype] = {
    ValueType.UINT8: np.dtype("<u1"),
    ValueType.INT8: np.dtype("<i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("<u1"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}
"""The same types as array elements."""


def text_bytes(text: str) -> bytes:
    """The exact bytes of a metadata string, as they stand in the file."""
    return text.encode("utf-8", "surrogateescape")


def read_pairs(cursor: Cursor, count: int) -> tuple[dict[str, Value], dict[str, str]]:
    """Reads `count` key-value pairs.

    Args:
        cursor: Stands at the first pair; left behind the last.
        count: Number of pairs the file claims, not yet checked.

    Returns:
        Values by key, and the names of their types in the file (`"uint32"`, `"array[string]"`)
        by key, both in the file's order.

    Raises:
        ModelFormatError: A count, length, type or key breaks the format or a limit.
    """
    if count > MAX_PAIRS:
        raise malformed(
            cursor.path, f"it claims {count} metadata pairs, expected at most {MAX_PAIRS}"
        )
    cursor.need(count * _MIN_PAIR_BYTES, f"a table of {count} metadata pairs")
    values: dict[str, Value] = {}
    types: dict[str, str] = {}
    for index in range(count):
        key = cursor.text(f"key of metadata pair {index}", MAX_KEY_BYTES)
        if not key:
            raise malformed(cursor.path, f"the key of metadata pair {index} is empty")
        if key in values:
            raise malformed(cursor.path, f"metadata key {key!r} occurs twice, expected once")
        values[key], types[key] = _read_value(cursor, f"metadata key {key!r}")
    return values, types


def _read_value(cursor: Cursor, what: str) -> tuple[Value, str]:
    """Reads one value with its type; gives the value and the name of the type."""
    value_type = _read_type(cursor, what)
    if value_type == ValueType.ARRAY:
        return _read_array(cursor, what)
    name = value_type.name.lower()
    if value_type == ValueType.STRING:
        return cursor.text(f"value of {what}"), name
    form = struct.Struct(_FORMATS[value_type])
    (value,) = form.unpack(cursor.take(form.size, f"value of {what}"))
    return bool(value) if value_type == ValueType.BOOL else value, name


def _read_array(cursor: Cursor, what: str) -> tuple[Value, str]:
    """Reads the element type, the length and the elements of an array."""
    element_type = _read_type(cursor, f"array of {what}")
    if element_type == ValueType.ARRAY:
        raise malformed(cursor.path, f"{what} is an array of arrays, which GGUF files do not hold")
    length = cursor.u64(f"array length of {what}")
    name = f"array[{element_type.name.lower()}]"
    if element_type == ValueType.STRING:
        return cursor.texts(length, what), name
    dtype = _DTYPES[element_type]
    data = cursor.take(length * dtype.itemsize, f"an array of {length} elements of {what}")
    array = np.frombuffer(data, dtype)
    if element_type == ValueType.BOOL:
        array = array != 0
        array.setflags(write=False)
    return array, name


def _read_type(cursor: Cursor, what: str) -> ValueType:
    """Reads a value type that exists."""
    number = cursor.i32(f"type of {what}")
    try:
        return ValueType(number)
    except ValueError:
        raise malformed(
            cursor.path, f"{what} has value type {number}, expected 0 to {max(ValueType).value}"
        ) from None
