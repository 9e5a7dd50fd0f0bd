"""A command's journal, where it was asked for one."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rfjax.cli.output import note

if TYPE_CHECKING:
    from rfjax.evals.records.journal import Journal
    from rfjax.io.load import Model


@contextlib.contextmanager
def opened_journal(
    path: Path | None, model: "Model", settings: Mapping[str, Any], *, quiet: bool
) -> "Iterator[Journal | None]":
    """A journal about what the model is evaluated on, or None where no file is named.

    Args:
        path: of the journal.
        model: as loaded.
        settings: what results depend on besides, as for
            `rfjax.evals.records.provenance.provenance`.
        quiet: say nothing of results that are there already.

    Raises:
        RequestError: as `rfjax.evals.records.journal.Journal.open`.
    """
    if path is None:
        yield None
        return
    from rfjax.evals.records.journal import Journal
    from rfjax.evals.records.provenance import provenance

    with Journal.open(path, provenance(model, settings)) as journal:
        if len(journal) and not quiet:
            note(f"{path}: going on after {len(journal)} results that are kept there")
        try:
            yield journal
        except KeyboardInterrupt:
            note(
                f"interrupted: the journal {path} holds {len(journal)} results, from which the "
                "same command goes on"
            )
            raise
