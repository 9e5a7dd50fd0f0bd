"""Containers whose old values stay valid, and in which a batch of changes costs what it changes.

The newest version of a container holds the contents, and a batch changes these in place; the
version before it then knows how to undo the batch. Reading an older version copies the contents
and undoes what came since, once: dear, and rare, because the scheduler goes on from its newest
state unless somebody replays. (Baker's versioned arrays, without the way back.)

Undoing can be repeated, and is in place before anything changes, so an interrupt at any
instruction leaves every version that somebody has as it was. Two threads must not work on versions
of one container at a time. Who keeps an old version keeps all undoing since. No JAX.
"""

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

_ABSENT: Any = object()


class _Older:
    """What a version is that is not the newest: the next one, and what this one had instead."""

    __slots__ = ("newer", "undo")

    def __init__(self, newer: "PersistentList | PersistentDict", undo: Mapping):
        self.newer = newer
        self.undo = undo


class PersistentList(Generic[T]):
    """A list of fixed length."""

    __slots__ = ("_place",)

    def __init__(self, contents: list[T]):
        """A list of its own; the caller gives `contents` away."""
        self._place: list[T] | _Older = contents

    @property
    def contents(self) -> list[T]:
        """The values: to be read at once, and not to be changed."""
        place = self._place
        return _rebuilt(self) if isinstance(place, _Older) else place

    def replaced(self, changes: Mapping[int, T]) -> "PersistentList[T]":
        """The list with other values at some places."""
        if not changes:
            return self
        contents = self.contents
        new = PersistentList(contents)
        self._place = _Older(new, {at: contents[at] for at in changes})
        for at, value in changes.items():
            contents[at] = value
        return new


class PersistentDict(Generic[K, T]):
    """A dictionary."""

    __slots__ = ("_place",)

    def __init__(self, contents: dict[K, T]):
        """A dictionary of its own; the caller gives `contents` away."""
        self._place: dict[K, T] | _Older = contents

    @property
    def contents(self) -> dict[K, T]:
        """The items: to be read at once, and not to be changed."""
        place = self._place
        return _rebuilt(self) if isinstance(place, _Older) else place

    def added(self, items: Mapping[K, T]) -> "PersistentDict[K, T]":
        """The dictionary with further keys, which must be new."""
        if not items:
            return self
        contents = self.contents
        new = PersistentDict(contents)
        self._place = _Older(new, dict.fromkeys(items, _ABSENT))
        contents.update(items)
        return new

    def without(self, keys: Iterable[K]) -> "PersistentDict[K, T]":
        """The dictionary without some of its keys."""
        contents = self.contents
        undo = {key: contents[key] for key in keys}
        if not undo:
            return self
        new = PersistentDict(contents)
        self._place = _Older(new, undo)
        for key in undo:
            del contents[key]
        return new


def _rebuilt(version: Any) -> Any:
    """Contents of a version that is not the newest, which it has for itself from now on."""
    batches = []
    at = version
    while isinstance(at._place, _Older):
        batches.append(at._place.undo)
        at = at._place.newer
    contents: Any = at._place.copy()
    for undo in reversed(batches):
        for key, value in undo.items():
            if value is _ABSENT:
                contents.pop(key, None)
            else:
                contents[key] = value
    version._place = contents
    return contents
