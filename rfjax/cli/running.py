"""What a measurement prints while it runs: a bar on a terminal, and its lines on stdout."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from rfjax.cli.output import write
from rfjax.progress import progress_bar

Tell = Callable[[int, int, str, str], None]
"""Called with (chunks done, chunks in all, what the bar shows, what stdout gets)."""


@contextlib.contextmanager
def running_output(*, printing: bool, start: str = "") -> Iterator[Tell]:
    """A function to call after each chunk.

    Where stdout is the terminal that has the bar, it gets everything in one piece at the end;
    elsewhere at once.

    Args:
        printing: whether stdout gets anything.
        start: what stdout gets before the first piece.
    """
    bar_in_the_way = sys.stdout.isatty() and sys.stderr.isatty()
    pieces: list[str] = []
    head = start

    def put(text: str) -> None:
        if bar_in_the_way:
            pieces.append(text)
        elif printing:
            write(text)

    try:
        with progress_bar("{task.fields[figure]}") as bar:
            task = bar.add_task("scoring", total=None, figure="")

            def tell(done: int, total: int, figure: str, text: str) -> None:
                nonlocal head
                bar.update(task, completed=done, total=total, figure=figure)
                put(head + text)
                head = ""

            yield tell
    finally:
        if printing and pieces:
            write("".join(pieces))
