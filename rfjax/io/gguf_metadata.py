"""Typed access to GGUF metadata, with errors that name the key, what was found and expected."""

import enum
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar, overload

import numpy as np

from rfjax.errors import ModelFormatError
from rfjax.io.gguf_values import Value

Default = TypeVar("Default")


class _Required(enum.Enum):
    """Stands for the default of a key that must be there."""

    REQUIRED = enum.auto()


_REQUIRED: Final = _Required.REQUIRED

_ARRAY_KINDS: dict[type, tuple[str, str]] = {
    int: ("iu", "an array of integers"),
    float: ("f", "an array of floats"),
    bool: ("b", "an array of bools"),
}
"""For each Python type: the numpy dtype kinds that hold it, and its name in messages."""


@dataclass(frozen=True, eq=False)
class Metadata:
    """Key-value pairs of a GGUF file.

    Every getter takes a key and, optionally, a default. Without a default the key must be there;
    with one (None included) the default is returned where the key is absent. A value of another
    type is an error in both cases.

    Attributes:
        path: The file, for messages.
        metadata: Values by key in the file's order; read-only. Integers and floats of every width
            are `int` and `float`; arrays of numbers and bools are read-only numpy arrays of the
            file's dtype; arrays of strings are tuples. Strings are UTF-8 decoded with
            `surrogateescape`: `rfjax.io.gguf_values.text_bytes` gives their exact bytes.
        value_types: The name of each value's type in the file by key, such as `"uint32"` or
            `"array[string]"`; read-only.
    """

    path: pathlib.Path
    metadata: Mapping[str, Value] = field(repr=False)
    value_types: Mapping[str, str] = field(repr=False)

    @property
    def architecture(self) -> str:
        """Name of the model's architecture, `general.architecture`.

        Raises:
            ModelFormatError: The key is missing or not a string.
        """
        return self.get_str("general.architecture")

    @overload
    def get_int(self, key: str) -> int: ...
    @overload
    def get_int(self, key: str, default: Default) -> int | Default: ...
    def get_int(self, key: str, default: object = _REQUIRED) -> object:
        """An integer of any width; a bool is not one.

        Raises:
            ModelFormatError: The key is missing and there is no default, or it has another type.
        """
        return self._value(key, (int,), "an integer", default)

    @overload
    def get_float(self, key: str) -> float: ...
    @overload
    def get_float(self, key: str, default: Default) -> float | Default: ...
    def get_float(self, key: str, default: object = _REQUIRED) -> object:
        """A float of any width, or an integer as a float.

        Raises:
            ModelFormatError: The key is missing and there is no default, or it has another type.
        """
        value = self._value(key, (float, int), "a number", default)
        return float(value) if type(value) is int and key in self.metadata else value

    @overload
    def get_bool(self, key: str) -> bool: ...
    @overload
    def get_bool(self, key: str, default: Default) -> bool | Default: ...
    def get_bool(self, key: str, default: object = _REQUIRED) -> object:
        """A bool; an integer is not one.

        Raises:
            ModelFormatError: The key is missing and there is no default, or it has another type.
        """
        return self._value(key, (bool,), "a bool", default)

    @overload
    def get_str(self, key: str) -> str: ...
    @overload
    def get_str(self, key: str, default: Default) -> str | Default: ...
    def get_str(self, key: str, default: object = _REQUIRED) -> object:
        """A string.

        Raises:
            ModelFormatError: The key is missing and there is no default, or it has another type.
        """
        return self._value(key, (str,), "a string", default)

    @overload
    def get_array(self, key: str, kind: type[str]) -> tuple[str, ...]: ...
    @overload
    def get_array(
        self, key: str, kind: type[str], default: Default
    ) -> tuple[str, ...] | Default: ...
    @overload
    def get_array(self, key: str, kind: type[int] | type[float]) -> np.ndarray: ...
    @overload
    def get_array(
        self, key: str, kind: type[int] | type[float], default: Default
    ) -> np.ndarray | Default: ...
    def get_array(self, key: str, kind: type, default: object = _REQUIRED) -> object:
        """An array whose elements are `kind`: int, float, bool or str.

        Returns:
            A tuple of strings, or a read-only 1-D numpy array of the file's dtype (integers of any
            width and sign for int, f32 or f64 for float).

        Raises:
            ModelFormatError: The key is missing and there is no default, or it has another type.
        """
        if kind is str:
            return self._value(key, (tuple,), "an array of strings", default)
        dtype_kinds, expected = _ARRAY_KINDS[kind]
        value = self._value(key, (np.ndarray,), expected, default)
        if isinstance(value, np.ndarray) and value.dtype.kind not in dtype_kinds:
            raise self._wrong(key, expected)
        return value

    @overload
    def get_ints(self, key: str, count: int) -> tuple[int, ...]: ...
    @overload
    def get_ints(self, key: str, count: int, default: Default) -> tuple[int, ...] | Default: ...
    def get_ints(self, key: str, count: int, default: object = _REQUIRED) -> object:
        """`count` integers, one a layer: an array of that length, or one integer for all.

        Raises:
            ModelFormatError: The key is missing and there is no default, it has another type, or
                the array has another length.
        """
        expected = f"an integer or an array of {count} integers"
        value = self._value(key, (int, np.ndarray), expected, default)
        if key not in self.metadata:
            return value
        if isinstance(value, np.ndarray):
            if value.dtype.kind not in "iu" or value.size != count:
                raise self._wrong(key, expected)
            return tuple(value.tolist())
        return (value,) * count

    def _value(self, key: str, kinds: tuple[type, ...], expected: str, default: object) -> object:
        """The value of `key` if its Python type is one of `kinds`, else the default or an error."""
        if key not in self.metadata:
            if default is _REQUIRED:
                raise ModelFormatError(
                    f"{self.path}: metadata key {key!r} is missing, expected {expected}. "
                    "The file does not describe its model fully: convert it again"
                )
            return default
        value = self.metadata[key]
        if type(value) not in kinds:  # not isinstance: bool is a subclass of int
            raise self._wrong(key, expected)
        return value

    def _wrong(self, key: str, expected: str) -> ModelFormatError:
        """The error for a value of another type than expected."""
        value = self.metadata[key]
        found = f"{len(value)} elements" if isinstance(value, tuple | np.ndarray) else repr(value)
        return ModelFormatError(
            f"{self.path}: metadata key {key!r} is {self.value_types[key]} "
            f"({found if len(found) <= 80 else found[:77] + '...'}), expected {expected}. "
            "The file does not describe its model as its architecture needs: convert it again"
        )
