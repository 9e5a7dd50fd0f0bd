"""A bar on stderr for what takes long."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


def progress_bar(*fields: str) -> "Progress":
    """A bar on stderr that vanishes when done; nothing where stderr is not a terminal.

    Args:
        fields: rich's templates of columns to show beside the bar.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *(TextColumn(field) for field in fields),
        Remaining(),
        console=Console(file=sys.stderr, markup=False, highlight=False),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
