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
from typing import NamedTuple

from rfjax.engine.page_keys import TOKEN_BYTES, packed, page_keys, root_key, unpacked
from rfjax.engine.page_table import PageTable
from rfjax.engine.request import Request

_PIECE = 256 * TOKEN_BYTES
"""Length from which on a piece of output is left alone, and the next one begun."""

NAMED_EVERY = 256
"""Tokens of output from one time to the next that its pages get keys: many at once take less."""

new = tuple.__new__
"""What a named tuple's own constructor calls, in a third of the time: `new(Running, (...))`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sequence:
    """One sample of a request, and what never changes about it.

    Attributes:
        id: numbers sequences in the order of arrival.
        request: the user's.
        index: which of its samples.
        stops: its stop ids as a set.
        limit: the length at which the sequence ends, at hand for who looks at all sequences.
        root: what its first page's key is chained to.
    """

    id: int
    request: Request
    index: int
    stops: frozenset[int]
    limit: int
    root: bytes

    @property
    def rank(self) -> "Rank":
        """Its place among all: by priority, then first come, first served."""
        return (self.request.priority, self.id)


Rank = tuple[int, int]


class History(NamedTuple):
    """The tokens of a sequence, as far as the host knows them.

    Tokens are packed: Python's garbage collector, which runs several times a burst, looks at every
    element of a young tuple.

    Attributes:
        length: how many they are, prompt and output.
        output: the generated ones, in pieces.
        keys: of the pages that are full without the last token, which is not computed yet. None
            where prefixes are not cached; and of a running sequence, those of the last pages of
            output, up to `NAMED_EVERY` tokens, are still to come.
        tail: the tokens behind these pages.
        time: when the last of the tokens arrived.
    """

    length: int
    output: tuple[bytes, ...]
    keys: tuple[bytes, ...]
    tail: bytes
    time: float


def samples(request: Request, first: int) -> tuple[Sequence, ...]:
    """The sequences of a request, numbered from `first` on."""
    stops, root = frozenset(request.stop_ids), root_key(request.cache_salt)
    return tuple(
        Sequence(first + index, request, index, stops, request.limit, root)
        for index in range(request.params.n)
    )


def begin(sequence: Sequence, page_size: int, prefix_caching: bool) -> History:
    """The history of a sequence before its first token of output."""
    request, tail = sequence.request, b""
    if prefix_caching:
        tail = packed(request.token_ids)
    history = History(len(request.token_ids), (), (), tail, request.arrival)
    return named(sequence, history, page_size)


def continued(
    history: History, tokens: tuple[int, ...], time: float, *, prefix_caching: bool
) -> History:
    """The history with further tokens of output (at least one), which arrived at `time`."""
    length, output, keys, tail, _ = history
    data = packed(tokens)
    if output and len(output[-1]) < _PIECE:
        output = (*output[:-1], output[-1] + data)
    else:
        output = (*output, data)
    if prefix_caching:
        tail += data
    return new(History, (length + len(tokens), output, keys, tail, time))


def named(sequence: Sequence, history: History, page_size: int) -> History:
    """The history with all keys."""
    length, output, keys, tail, time = history
    computed = tail[:-TOKEN_BYTES]
    more = page_keys(keys[-1] if keys else sequence.root, computed, page_size)
    if not more:
        return history
    tail = tail[len(more) * page_size * TOKEN_BYTES :]
    return History(length, output, keys + more, tail, time)


def token_ids(request: Request, history: History) -> tuple[int, ...]:
    """All known tokens of a sequence: its prompt, then its output."""
    return request.token_ids + unpacked(b"".join(history.output))


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
