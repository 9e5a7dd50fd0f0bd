"""Containers whose old values stay valid, and in which a batch of changes is cheap. No JAX.

Both are two levels of chunks. A batch copies the upper level and the chunks that it touches, once
each; everything else is shared with the old value. (Clojure calls the writable copy a transient.)
"""

import dataclasses
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

_SHIFT = 7
_CHUNK = 1 << _SHIFT
_MASK = _CHUNK - 1
_PER_BUCKET = 32


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PersistentList(Generic[T]):
    """A list of fixed length. The chunks are lists for speed, and nothing changes them."""

    chunks: tuple[list[T], ...]

    def __getitem__(self, index: int) -> T:
        return self.chunks[index >> _SHIFT][index & _MASK]


def make_list(length: int, value: T) -> PersistentList[T]:
    """`length` times `value`, rounded up to whole chunks; all share one chunk until changed."""
    return PersistentList(([value] * _CHUNK,) * -(-length // _CHUNK))


class ListDraft(Generic[T]):
    """A writable copy of a `PersistentList`; `freeze` ends its life."""

    __slots__ = ("_chunks", "_owned")

    def __init__(self, base: PersistentList[T]):
        self._chunks = list(base.chunks)
        self._owned: set[int] = set()

    def __getitem__(self, index: int) -> T:
        return self._chunks[index >> _SHIFT][index & _MASK]

    def __setitem__(self, index: int, value: T) -> None:
        number = index >> _SHIFT
        if number not in self._owned:
            self._owned.add(number)
            self._chunks[number] = self._chunks[number].copy()
        self._chunks[number][index & _MASK] = value

    def freeze(self) -> PersistentList[T]:
        """The changed list; the draft is not to be used again."""
        return PersistentList(tuple(self._chunks))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PersistentDict(Generic[K, T]):
    """A dictionary in a fixed number of buckets, which nothing changes."""

    buckets: tuple[dict[K, T], ...]

    def get(self, key: K) -> T | None:
        """The value of a key, or None."""
        return self.buckets[hash(key) & (len(self.buckets) - 1)].get(key)


def make_dict(expected: int) -> PersistentDict:
    """An empty dictionary, with buckets for as many keys as are expected at most."""
    empty: dict = {}
    return PersistentDict((empty,) * (1 << max(0, expected // _PER_BUCKET).bit_length()))


class DictDraft(Generic[K, T]):
    """A writable copy of a `PersistentDict`; `freeze` ends its life."""

    __slots__ = ("_buckets", "_mask", "_owned")

    def __init__(self, base: PersistentDict[K, T]):
        self._buckets = list(base.buckets)
        self._mask = len(self._buckets) - 1
        self._owned: set[int] = set()

    def add(self, key: K, value: T) -> None:
        """Set the value of a key that has none; one that there is stays."""
        self._bucket(key).setdefault(key, value)

    def __delitem__(self, key: K) -> None:
        del self._bucket(key)[key]

    def freeze(self) -> PersistentDict[K, T]:
        """The changed dictionary; the draft is not to be used again."""
        return PersistentDict(tuple(self._buckets))

    def _bucket(self, key: K) -> dict[K, T]:
        number = hash(key) & self._mask
        if number not in self._owned:
            self._owned.add(number)
            self._buckets[number] = self._buckets[number].copy()
        return self._buckets[number]
