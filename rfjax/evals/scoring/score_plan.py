"""In what pieces continuations are computed, and which pages these read and write. No JAX.

A continuation's inputs are a stem, its context without the last token, which is computed without
logits, and a tail, from the last token of the context on, whose every token scores the next. Stems
that begin alike share whole pieces, and equal stems share all: a question with four answers is
computed once. A tail that begins inside a page gets a copy of that page.

How a continuation is cut depends on itself alone, never on what else is scored, so that programs
of fixed shapes give it the same bits in any company.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rfjax.evals.scoring.continuation import Continuation

PIECE_SIZES = (64, 32, 16)
"""Tokens of a row, the largest first: pieces are filled up to one of these."""

_PIECE = PIECE_SIZES[0]

PAGE_SIZE = 32
"""Tokens of a page; it divides a piece, so that whole pieces end with a page."""


class Piece(NamedTuple):
    """Some inputs of a sequence, computed as one row.

    Attributes:
        tokens: the inputs.
        start: position of the first.
        pages: of the sequence, in order, up to this piece's end at least.
        copied: source and target of a page that is copied before; None for none.
        owner: number of the continuation that it scores; None for a piece of a context.
        offset: which of the continuation's tokens follows the first input.
    """

    tokens: tuple[int, ...]
    start: int
    pages: list[int]
    copied: tuple[int, int] | None = None
    owner: int | None = None
    offset: int = 0

    @property
    def size(self) -> int:
        """Tokens of the row that it is filled up to."""
        return min(size for size in PIECE_SIZES if size >= len(self.tokens))


@dataclasses.dataclass(slots=True)
class Wave:
    """Pieces whose pages exist at the same time. Contexts come first, each list in its order.

    Within both lists a piece's size is never larger than that of the piece before it in the same
    sequence: they may be computed by size, the largest first.
    """

    contexts: list[Piece] = dataclasses.field(default_factory=list)
    scored: list[Piece] = dataclasses.field(default_factory=list)


def cut(n: int) -> list[int]:
    """Lengths of the pieces of `n` tokens: whole ones, then what wastes few places."""
    lengths = [_PIECE] * (n // _PIECE)
    rest = n % _PIECE
    if 32 < rest <= 48:  # 32 and 16 places instead of 64
        return [*lengths, 32, rest - 32]
    return [*lengths, rest] if rest else lengths


def n_pages_of(continuation: Continuation) -> int:
    """Pages that one continuation takes by itself."""
    begin = len(continuation.context) - 1
    shared = -(-begin // PAGE_SIZE)
    return shared + -(-continuation.n_inputs // PAGE_SIZE) - begin // PAGE_SIZE


def plan_waves(continuations: Sequence[Continuation], n_pages: int) -> Iterator[Wave]:
    """Waves that together score every continuation once.

    Args:
        continuations: at least one token of context and one to score each.
        n_pages: pages at a time besides page 0, which belongs to nobody. Any one continuation
            fits (`n_pages_of`).
    """
    maker = _WaveMaker(n_pages)
    # Those that begin alike come one after another.
    for index in sorted(range(len(continuations)), key=lambda i: continuations[i].context):
        continuation = continuations[index]
        if not maker.add(index, continuation):
            yield maker.wave
            maker = _WaveMaker(n_pages)
            added = maker.add(index, continuation)
            assert added, "a continuation takes more pages than there are"
    if maker.wave.scored:
        yield maker.wave


class _Node(NamedTuple):
    """A piece of a stem that others may share: its number, and the pages up to its end."""

    number: int
    pages: list[int]


class _WaveMaker:
    """A wave as it grows: a tree of whole pieces of stems, with what is left of each as a leaf."""

    def __init__(self, n_pages: int):
        self.wave = Wave()
        self._n_pages = n_pages
        self._next = 1
        self._nodes: dict[tuple[int, tuple[int, ...]], _Node] = {}

    def add(self, index: int, continuation: Continuation) -> bool:
        """Plan one more continuation; False, and nothing changed, if its pages do not fit."""
        stem = continuation.context[:-1]
        inputs = (continuation.context[-1], *continuation.tokens[:-1])
        begin, end = len(stem), continuation.n_inputs
        parts = [stem[i : i + _PIECE] for i in range(0, begin, _PIECE)]
        node, known = _Node(0, []), 0
        for part in parts:
            found = self._nodes.get((node.number, part))
            if found is None:
                break
            node, known = found, known + 1
        own = -(-end // PAGE_SIZE) - begin // PAGE_SIZE
        missing = sum(-(-len(part) // PAGE_SIZE) for part in parts[known:])
        if self._next - 1 + missing + own > self._n_pages:
            return False

        for i, part in enumerate(parts[known:], known):
            pages = [*node.pages, *self._take(-(-len(part) // PAGE_SIZE))]
            key = node.number, part
            node = self._nodes[key] = _Node(len(self._nodes) + 1, pages)
            self.wave.contexts += _pieces(part, i * _PIECE, pages)
        shared = node.pages[: begin // PAGE_SIZE]
        pages = [*shared, *self._take(own)]
        copied = None
        if begin % PAGE_SIZE:
            copied = node.pages[begin // PAGE_SIZE], pages[begin // PAGE_SIZE]
        first, *others = _pieces(inputs, begin, pages, index)
        self.wave.scored += [first._replace(copied=copied), *others]
        return True

    def _take(self, n: int) -> range:
        taken = range(self._next, self._next + n)
        self._next += n
        return taken


def _pieces(
    tokens: tuple[int, ...], start: int, pages: list[int], owner: int | None = None
) -> list[Piece]:
    pieces, offset = [], 0
    for length in cut(len(tokens)):
        part = tokens[offset : offset + length]
        pieces.append(Piece(part, start + offset, pages, None, owner, offset))
        offset += length
    return pieces
