"""States of a sequence, each a type: what a state lacks, nothing can ask of it. No JAX.

    Waiting ──> Prefilling ──> Running ──> ended
       AwaitingFork ───────────^  │
                  Prefilling, Running ──> Preempted ──> Prefilling, Running

A request with `n` samples is n sequences. The first is Waiting; the others are AwaitingFork until
the prompt is computed, and then share its pages. One that finds no slot free by then becomes
Waiting, and takes its turn. A sequence that ended is in no state; the output that says so is the
last one of it.

States are named tuples, because each burst makes hundreds of them: a frozen dataclass takes three
times as long.
"""

import dataclasses
from itertools import chain
from typing import NamedTuple

from rfjax.engine.page_keys import page_keys, root_key
from rfjax.engine.page_table import PageTable
from rfjax.engine.request import Request

_CHUNK = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Sequence:
    """One sample of a request, and what never changes about it.

    `id` numbers sequences in the order of arrival. `stops` are the request's stop ids as a set.
    """

    id: int
    request: Request
    index: int
    stops: frozenset[int]

    @property
    def rank(self) -> "Rank":
        """Its place among all: by priority, then first come, first served."""
        return (self.request.priority, self.id)


Rank = tuple[int, int]


class History(NamedTuple):
    """The tokens of a sequence, as far as the host knows them.

    Attributes:
        length: how many they are, prompt and output.
        output: the generated ones, in pieces.
        keys: of the full pages; none where prefixes are not cached.
        tail: the tokens behind these pages.
        time: when the last of the tokens arrived.
    """

    length: int
    output: tuple[tuple[int, ...], ...]
    keys: tuple[bytes, ...]
    tail: tuple[int, ...]
    time: float


def begin(request: Request, page_size: int, prefix_caching: bool) -> History:
    """The history of a sequence before its first token of output."""
    keys: tuple[bytes, ...] = ()
    if prefix_caching:
        keys = page_keys(root_key(request.cache_salt), request.token_ids, page_size)
    return History(
        length=len(request.token_ids),
        output=(),
        keys=keys,
        tail=request.token_ids[len(keys) * page_size :] if prefix_caching else (),
        time=request.arrival,
    )


def continued(
    history: History, request: Request, tokens: tuple[int, ...], time: float, page_size: int | None
) -> History:
    """The history with further tokens of output.

    Args:
        history: what was known before.
        request: the sequence's.
        tokens: at least one.
        time: when they arrived.
        page_size: tokens of a page; None where prefixes are not cached.
    """
    output = history.output
    if output and len(output[-1]) < _CHUNK:
        output = (*output[:-1], output[-1] + tokens)
    else:
        output = (*output, tokens)
    keys, tail = history.keys, history.tail
    if page_size is not None:
        tail += tokens
        if len(tail) >= page_size:
            parent = keys[-1] if keys else root_key(request.cache_salt)
            new = page_keys(parent, tail, page_size)
            keys += new
            tail = tail[len(new) * page_size :]
    return History(history.length + len(tokens), output, keys, tail, time)


def token_ids(request: Request, history: History) -> tuple[int, ...]:
    """All known tokens of a sequence: its prompt, then its output."""
    return (*request.token_ids, *chain.from_iterable(history.output))


class Waiting(NamedTuple):
    """Not admitted yet: no slot, no pages."""

    sequence: Sequence
    history: History


class AwaitingFork(NamedTuple):
    """Shares the pages of sequence `leader` as soon as these hold the prompt."""

    sequence: Sequence
    history: History
    leader: int


class Prefilling(NamedTuple):
    """Admitted: it has a slot, and keys and values of its first `done` tokens.

    All its known tokens but the last are to be computed; the last is the first decode step's.
    """

    sequence: Sequence
    history: History
    slot: int
    tables: tuple[PageTable, ...]
    done: int


class Running(NamedTuple):
    """Decodes.

    `dispatched` is its length when the bursts that are under way are done, unless it ends in them;
    it equals `history.length` where none is.
    """

    sequence: Sequence
    history: History
    slot: int
    tables: tuple[PageTable, ...]
    dispatched: int


class Preempted(NamedTuple):
    """Gave its pages and its slot to others; what it had computed is computed again.

    It comes back once the bursts that were under way are read (`dispatched`, as in `Running`).
    """

    sequence: Sequence
    history: History
    dispatched: int


Active = Prefilling | Running
Live = Waiting | AwaitingFork | Prefilling | Running | Preempted
