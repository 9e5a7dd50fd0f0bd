"""The arrays of a step that scores: pieces as rows, filled up with padding."""

from collections.abc import Sequence

import numpy as np

from rfjax.evals.scoring.continuation import Continuation
from rfjax.evals.scoring.score_plan import Piece
from rfjax.evals.scoring.score_steps import Rows, Scored


def rows_of(step: Sequence[Piece], n_rows: int, width: int) -> Rows:
    """Tokens, positions and tables of pieces of one size.

    Args:
        step: the pieces, at least one.
        n_rows: at least as many; rows beyond the pieces are padding.
        width: pages of a table.
    """
    size = step[0].size
    tokens = np.zeros((n_rows, size), np.int32)
    positions = np.full((n_rows, size), -1, np.int32)
    tables = np.zeros((n_rows, width), np.int32)
    for row, piece in enumerate(step):
        n = len(piece.tokens)
        tokens[row, :n] = piece.tokens
        positions[row, :n] = range(piece.start, piece.start + n)
        tables[row, : len(piece.pages)] = piece.pages
    return Rows(tokens, positions, tables)


def scored_of(
    step: Sequence[Piece], n_rows: int, continuations: Sequence[Continuation], nowhere: int
) -> Scored:
    """Targets of pieces of one size, and the pages that are copied before.

    Args:
        step, n_rows: as for `rows_of`.
        continuations: what is scored, by the pieces' owners.
        nowhere: a page that does not exist.
    """
    targets = np.zeros((n_rows, step[0].size), np.int32)
    sources = np.zeros(n_rows, np.int32)
    copies = np.full(n_rows, nowhere, np.int32)
    for row, piece in enumerate(step):
        assert piece.owner is not None
        n = len(piece.tokens)
        targets[row, :n] = continuations[piece.owner].tokens[piece.offset : piece.offset + n]
        if piece.copied is not None:
            sources[row], copies[row] = piece.copied
    return Scored(targets, sources, copies)
