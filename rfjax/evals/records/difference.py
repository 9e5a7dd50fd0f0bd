"""Where two JSON values differ, entry by entry."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

Kind = Literal["measured", "figure", "circumstance"]

MISSING = "(not there)"
"""What stands for an entry that only the other side has."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """One entry that is not the same.

    Attributes:
        what: its path, such as "settings.n_ctx" or "running[3]"; "" is the whole value.
        old, new: what is there, or `MISSING`.
        kind: "measured": another thing was measured; "figure": the result; "circumstance": what
            may explain another figure.
    """

    what: str
    old: Any
    new: Any
    kind: Kind = "figure"

    def __str__(self) -> str:
        return f"{self.what or 'the value'}: {_shown(self.old)}, now {_shown(self.new)}"


def differences(
    old: Any,
    new: Any,
    *,
    kind: Kind = "figure",
    same: Callable[[Any, Any], bool] | None = None,
) -> tuple[Difference, ...]:
    """Every entry of two JSON values that differs, in the order of `old`.

    Args:
        old, new: values as `json.loads` gives them; objects and arrays are compared by entries.
        kind: what the differences are.
        same: whether two numbers, strings, truth values or nulls agree; None asks that they are
            equal and of one type, NaN being equal to itself.
    """
    found = _walk(old, new, "", same or identical)
    return tuple(Difference(what, a, b, kind) for what, a, b in found)


def identical(old: Any, new: Any) -> bool:
    """Equal, and of one type: 1 is not 1.0, and not true. NaN is equal to itself."""
    return type(old) is type(new) and (old == new or (old != old and new != new))


def _walk(
    old: Any, new: Any, path: str, same: Callable[[Any, Any], bool]
) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*old, *new)):
            inner = f"{path}.{key}" if path else str(key)
            yield from _walk(old.get(key, MISSING), new.get(key, MISSING), inner, same)
    elif _is_array(old) and _is_array(new) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from _walk(a, b, f"{path}[{i}]", same)
    elif _is_nested(old) or _is_nested(new) or not same(old, new):
        yield path, old, new


def _is_array(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping) or _is_array(value)


def _shown(value: Any) -> str:
    text = value if value == MISSING else repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
