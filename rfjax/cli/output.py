"""Printing: JSON, tables and progress, each as a terminal or a pipe wants it."""

import contextlib
import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

T = TypeVar("T")

_PIPE_WIDTH = 100_000
_KINDS = ((10**9, "G"), (10**6, "M"), (10**3, "k"))


def write(text: str) -> None:
    """Text on stdout as it is, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def note(text: str) -> None:
    """A line for the person on stderr."""
    sys.stdout.flush()
    print(text, file=sys.stderr)


def write_json(value: Any) -> None:
    """One JSON document on stdout; dataclasses become objects, numbers that JSON lacks null."""
    write(json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")


def console(*, stderr: bool = False) -> "Console":
    """A rich console; in a pipe nothing is folded and there are no colours."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(file=stream, width=width, markup=False, highlight=False, soft_wrap=False)


def columns(*headers: str, right: tuple[str, ...] = ()) -> "Table":
    """An empty table without lines; the headers in `right` are those of columns of numbers."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=any(headers), header_style="bold")
    for header in headers:
        table.add_column(
            header,
            justify="right" if header in right else "left",
            overflow="fold",
            no_wrap=header in right,
        )
    return table


def show(table: "Table") -> None:
    """A table on stdout and an empty line; in a pipe without the blanks that fill up its lines."""
    out = console()
    if out.is_terminal:
        out.print(table)
        out.print()
        return
    with out.capture() as captured:
        out.print(table)
    write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()) + "\n")


@contextlib.contextmanager
def spinner(text: str) -> Iterator[None]:
    """A sign on stderr that something takes its time, where it is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    with console(stderr=True).status(text):
        yield


def wait_for_first(items: Iterable[T], text: str) -> Iterator[T]:
    """The same items, with a spinner until the first one comes."""
    iterator = iter(items)
    with spinner(text):
        first = list(itertools.islice(iterator, 1))
    yield from first
    yield from iterator


def printable(text: str) -> str:
    """Text with its control characters escaped, so that a file cannot steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size(nbytes: int | None) -> str:
    """Bytes for people: `4.58 GiB`."""
    if nbytes is None:
        return "unknown"
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if nbytes >= 1 << power:
            return f"{nbytes / (1 << power):.2f} {unit}"
    return f"{nbytes} bytes"


def count(number: int) -> str:
    """A count for people: `8.03 G`."""
    for unit, letter in _KINDS:
        if number >= unit:
            return f"{number / unit:.2f} {letter}"
    return str(number)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
