"""What one rendering of a chat template may still spend: loop iterations, calls and memory."""

from __future__ import annotations

import sys
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any

from rfjax.errors import RequestError

MAX_STEPS = 1_000_000  # loop iterations and calls
MAX_VALUE_ITEMS = 16 * 2**20  # characters of a string, elements of a list
MAX_BYTES = 512 * 2**20  # of all values that a rendering builds, kept or not

_CONTAINERS = list | tuple | set | frozenset | KeysView | ValuesView | ItemsView
MAX_ESCAPE = 12  # most characters that one character of a string within a container is shown as
_SMALL = 64  # characters that any other value is taken to be shown as


class Budget:
    """Counts what a rendering spends, and raises `RequestError` when it is too much.

    Memory is counted when a value is built and never given back, so that what is spent bounds
    what is kept. Ways to build a value that could be far larger than its parts call
    `check_size` first.
    """

    def __init__(self) -> None:
        self._steps = MAX_STEPS
        self._bytes = MAX_BYTES

    def step(self) -> None:
        """Counts a loop iteration or a call."""
        self._steps -= 1
        if self._steps < 0:
            raise RequestError(
                f"the chat template runs more than {MAX_STEPS} loop iterations and calls"
            )

    def count(self, items: Iterable[Any]) -> Iterator[Any]:
        """Passes items on, each a step."""
        for item in items:
            self.step()
            yield item

    def check_size(self, operation: str, size: int, limit: int = MAX_VALUE_ITEMS) -> None:
        """Refuses a value of more characters, elements or bits than the limit."""
        if size > limit:
            raise RequestError(
                f"the chat template's {operation!r} would build a value beyond the sandbox's limits"
            )

    def check_bytes(self, operation: str, size: int) -> None:
        """Refuses a value of more bytes than are left."""
        self.check_size(operation, size, self._bytes)

    def spend(self, value: Any, per_element: int = 0) -> Any:
        """Counts the memory of a value that was built, and returns it.

        Args:
          value: Anything; of a container's elements only the places are counted.
          per_element: Bytes that each element of a container takes besides, where it is new too.
        """
        self.spend_bytes(sys.getsizeof(value, _SMALL))
        if per_element and isinstance(value, _CONTAINERS | dict):
            self.spend_bytes(per_element * len(value))
        return value

    def spend_bytes(self, size: int) -> None:
        """Counts bytes of memory."""
        self._bytes -= size
        if self._bytes < 0:
            raise RequestError(
                f"the chat template builds more than {MAX_BYTES // 2**20} MiB of values; shorten "
                "the conversation"
            )

    def text(self, operation: str, value: Any) -> str:
        """`str(value)`, if it is not too long; the memory is for the caller to count."""
        if isinstance(value, str):
            return value
        self.check_size(operation, shown_size(value))
        return str(value)


def shown_size(value: Any, escape: int = MAX_ESCAPE) -> int:
    """A bound on the characters of `str(value)`, or a number above `MAX_VALUE_ITEMS`.

    Within a container, a character of a string that is not all printable counts `escape` times.

    A list may hold another one many times over, so this follows what is shown, not what is stored.
    """
    import jinja2.utils

    if isinstance(value, str):
        return len(value)
    size, left = 0, [value]
    while left and size <= MAX_VALUE_ITEMS:
        item = left.pop()
        if isinstance(item, str):
            size += 2 + len(item) * (min(2, escape) if item.isprintable() else escape)
            continue
        size += _SMALL
        if isinstance(item, int):
            size += item.bit_length() // 3
        elif isinstance(item, jinja2.utils.Namespace):
            left.append(item._Namespace__attrs)
        elif isinstance(item, Mapping | _CONTAINERS):
            if len(item) > MAX_VALUE_ITEMS // _SMALL:
                return MAX_VALUE_ITEMS + 1
            left.extend(item)
            if isinstance(item, Mapping):
                left.extend(item.values())
    return size
