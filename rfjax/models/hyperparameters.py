"""One file's metadata under its architecture's prefix, with range checks."""

from collections.abc import Iterable
from typing import NoReturn

from rfjax.errors import ModelFormatError
from rfjax.io.gguf import GGUFFile

_MAX_SIZE = (1 << 31) - 1


class Hyperparameters:
    """Getters that refuse what makes no sense.

    Attributes:
        gguf: the file.
        keys: keys of mechanisms that its architecture has; `optional` reads no others.
    """

    def __init__(self, gguf: GGUFFile, keys: frozenset[str]):
        self.gguf = gguf
        self.keys = keys

    def key(self, name: str) -> str:
        """The whole key of a name."""
        return f"{self.gguf.architecture}.{name}"

    def has(self, name: str) -> bool:
        """Whether the file has the key."""
        return self.key(name) in self.gguf.metadata

    def size(self, name: str, *, default: int | None = None, most: int = _MAX_SIZE) -> int:
        """A count or length: at least 1. Without a default the key must be there."""
        if default is None:
            value = self.gguf.get_int(self.key(name))
        else:
            value = self.gguf.get_int(self.key(name), default)
        self.check_size(name, value, most)
        return value

    def count(self, name: str, *, most: int = _MAX_SIZE) -> int:
        """A number that may be 0, which is what a missing key means."""
        value = self.gguf.get_int(self.key(name), 0)
        if not 0 <= value <= most:
            self.refuse(name, str(value), f"0 to {most}")
        return value

    def check_size(self, name: str, value: int, most: int = _MAX_SIZE) -> None:
        """Refuse what is not 1 to `most`."""
        if not 1 <= value <= most:
            self.refuse(name, str(value), f"1 to {most}")

    def per_layer(
        self, name: str, n_layers: int, default: Iterable[int] | None = None
    ) -> tuple[int, ...]:
        """One value for every layer: a number for all, or an array of one each."""
        if default is None:
            values = self.gguf.get_ints(self.key(name), n_layers)
        else:
            values = self.gguf.get_ints(self.key(name), n_layers, tuple(default))
        for value in values:
            self.check_size(name, value)
        return values

    def number(
        self, name: str, *, default: float | None = None, least: float = float("-inf")
    ) -> float:
        """A finite float. Without a default the key must be there."""
        if default is None:
            value = self.gguf.get_float(self.key(name))
        else:
            value = self.gguf.get_float(self.key(name), default)
        if not (least <= value < float("inf")):
            bound = "" if least == float("-inf") else f" of at least {least:g}"
            self.refuse(name, repr(value), f"a finite number{bound}")
        return value

    def positive(self, name: str, *, default: float) -> float:
        """A finite float above 0."""
        value = self.number(name, default=default)
        if not value > 0:
            self.refuse(name, repr(value), "a positive number")
        return value

    def optional(self, name: str, default: float) -> float:
        """A finite float of a mechanism that only some architectures have."""
        return self.number(name, default=default) if name in self.keys else default

    def positive_optional(self, name: str, default: float) -> float:
        """The same, above 0."""
        return self.positive(name, default=default) if name in self.keys else default

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or false. Without a default the key must be there."""
        if default is None:
            return self.gguf.get_bool(self.key(name))
        return self.gguf.get_bool(self.key(name), default)

    def refuse(self, name: str, got: str, expected: str) -> NoReturn:
        """Raise the error of a key with a value that makes no sense."""
        raise ModelFormatError(
            f"{self.gguf.path}: metadata key {self.key(name)!r}: got {got}, expected {expected}. "
            "Convert the model again"
        )
