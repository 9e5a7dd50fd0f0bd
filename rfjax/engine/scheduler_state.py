"""The scheduler's state: an immutable value, and the draft in which one transition changes it.

No JAX. A state is never changed: an old one stays valid, so a log of events replays to the same
states. A transition copies what is as long as the number of live sequences and, of what is as long
as the number of pages, only the parts it touches (`rfjax.engine.persistent`).
"""

import bisect
import dataclasses
import math
from collections.abc import Mapping

from rfjax.engine.effects import Admission, Effects, Output
from rfjax.engine.finish import Finish
from rfjax.engine.page_pool import PagePool, make_pool, register, release
from rfjax.engine.plan import Plan
from rfjax.engine.scheduler_config import SchedulerConfig
from rfjax.engine.sequence import (
    Active,
    AwaitingFork,
    History,
    Live,
    Preempted,
    Prefilling,
    Rank,
    Running,
    Sequence,
    Waiting,
    named,
    new,
)


@dataclasses.dataclass(frozen=True, slots=True)
class InFlight:
    """A burst whose results are not read yet: its sequences, and how many tokens each may make."""

    burst: int
    sequences: tuple[int, ...]
    steps: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class SchedulerState:
    """All that the scheduler knows.

    Attributes:
        config: the sizes.
        live: sequences by number.
        requests: the live sequences of each request, by its id.
        queue: ranks of Waiting and Preempted sequences, in order.
        active: ranks of Prefilling and Running sequences, in order.
        free_slots: in order.
        pools: the pages of each cache group.
        in_flight: bursts whose results are not read, the oldest first.
        n_queued: requests that were never admitted; at most `config.max_queue`.
        next_sequence: the number of the next sequence.
        next_burst: the number of the next plan.
        earliest_deadline: no live request has an earlier one.
    """

    config: SchedulerConfig
    live: Mapping[int, Live]
    requests: Mapping[str, tuple[int, ...]]
    queue: tuple[Rank, ...]
    active: tuple[Rank, ...]
    free_slots: tuple[int, ...]
    pools: tuple[PagePool, ...]
    in_flight: tuple[InFlight, ...]
    n_queued: int
    next_sequence: int
    next_burst: int
    earliest_deadline: float

    @property
    def page_usage(self) -> float:
        """Share of the pages that sequences own, from 0 to 1, of the fullest group."""
        return max(pool.n_owned / (pool.n_pages - 1) for pool in self.pools)


def initial_state(config: SchedulerConfig) -> SchedulerState:
    """Nothing runs, nothing waits, all pages are free."""
    return SchedulerState(
        config=config,
        live={},
        requests={},
        queue=(),
        active=(),
        free_slots=tuple(range(config.slots)),
        pools=tuple(make_pool(group.n_pages) for group in config.groups),
        in_flight=(),
        n_queued=0,
        next_sequence=0,
        next_burst=0,
        earliest_deadline=math.inf,
    )


class Draft:
    """A writable copy of a state, for one transition."""

    def __init__(self, state: SchedulerState):
        self.config = state.config
        self.live = dict(state.live)
        self.requests = dict(state.requests)
        self.queue = list(state.queue)
        self.active = list(state.active)
        self.free_slots = list(state.free_slots)
        self.pools = list(state.pools)
        self.in_flight = state.in_flight
        self.n_queued = state.n_queued
        self.next_sequence = state.next_sequence
        self.next_burst = state.next_burst
        self.earliest_deadline = state.earliest_deadline
        self.outputs: list[Output] = []
        self.admissions: list[Admission] = []
        self.preempted: list[int] = []
        self._named: list[list[tuple[bytes, int]]] = [[] for _ in self.pools]
        self._released: list[list[tuple[int, bytes | None]]] = [[] for _ in self.pools]

    def freeze(self, plan: Plan | None = None) -> tuple[SchedulerState, Effects]:
        """The changed state and what the transition showed; the draft is not to be used again."""
        self.settle()
        state = SchedulerState(
            config=self.config,
            live=self.live,
            requests=self.requests,
            queue=tuple(self.queue),
            active=tuple(self.active),
            free_slots=tuple(self.free_slots),
            pools=tuple(self.pools),
            in_flight=self.in_flight,
            n_queued=self.n_queued,
            next_sequence=self.next_sequence,
            next_burst=self.next_burst,
            earliest_deadline=self.earliest_deadline,
        )
        effects = Effects(
            outputs=tuple(self.outputs),
            plan=plan,
            admissions=tuple(self.admissions),
            preempted=tuple(self.preempted),
        )
        return state, effects

    def settle(self) -> None:
        """Register the pages that got keys and give back those that were let go, all at once."""
        for group, named_pages in enumerate(self._named):
            if named_pages:
                self.pools[group] = register(self.pools[group], named_pages)
                self._named[group] = []
        for group, pages in enumerate(self._released):
            if pages:
                self.pools[group] = release(self.pools[group], pages)
                self._released[group] = []

    def let_go(self, group: int, pages: list[tuple[int, bytes | None]]) -> None:
        """Mark pages to be given back."""
        self._released[group] += pages

    def end(self, live: Live, finish: Finish, now: float) -> None:
        """A sequence is over from without: its last output, and `close`."""
        self.emit(live.sequence, live.history, (), now, finish)
        self.close(live)

    def close(self, live: Live) -> None:
        """A sequence is over: everything it held is free again."""
        sequence = live.sequence
        if isinstance(live, Prefilling | Running):
            self._vacate(live)
        elif not isinstance(live, AwaitingFork):
            self.dequeue(live)
        del self.live[sequence.id]
        rest = tuple(i for i in self.requests[sequence.request.id] if i != sequence.id)
        if rest:
            self.requests[sequence.request.id] = rest
            self._orphan(rest, sequence.id)
        else:
            del self.requests[sequence.request.id]

    def emit(
        self,
        sequence: Sequence,
        history: History,
        tokens: tuple[int, ...],
        now: float,
        finish: Finish | None = None,
    ) -> None:
        """Show tokens that are new since the sequence's history, its end, or both."""
        request = sequence.request
        n_output = history.length - len(request.token_ids) + len(tokens)
        waited, age = now - history.time, now - request.arrival
        shown = (sequence.id, request, sequence.index, tokens, n_output, waited, age, finish)
        self.outputs.append(new(Output, shown))

    def open(self, sequence: Sequence) -> int:
        """Take the first free slot for a sequence."""
        bisect.insort(self.active, sequence.rank)
        return self.free_slots.pop(0)

    def dequeue(self, live: Waiting | Preempted) -> None:
        """Take a sequence out of the queue."""
        remove(self.queue, live.sequence.rank)
        if isinstance(live, Waiting) and live.sequence.index == 0:
            self.n_queued -= 1

    def preempt(self, live: Active, *, forget: bool = False) -> None:
        """Take a sequence's pages and slot, and put it back in its place in the queue.

        Args:
            live: the sequence.
            forget: the bursts under way are lost, and so is what they would have brought.
        """
        history = self._vacate(live)
        dispatched = history.length
        if isinstance(live, Running) and not forget:
            dispatched = live.dispatched
        self.live[live.sequence.id] = Preempted(live.sequence, history, dispatched)
        bisect.insort(self.queue, live.sequence.rank)
        self.preempted.append(live.sequence.id)

    def wait(self, sequence: Sequence, history: History) -> None:
        """A sequence takes its own turn."""
        self.live[sequence.id] = Waiting(sequence, history)
        bisect.insort(self.queue, sequence.rank)

    def name(self, live: Running) -> Running:
        """Make the pages of a sequence known that wait for it."""
        sequence, before, slot, tables, dispatched = live
        history = named(sequence, before, self.config.page_size)
        keys = history.keys
        for pages, (dead, owned) in zip(self._named, tables, strict=True):
            first = max(len(before.keys), dead)
            end = max(first, len(keys))  # more may lie behind a window than have keys
            pages += zip(keys[first:], owned[first - dead : end - dead], strict=True)
        self.live[sequence.id] = live = Running(sequence, history, slot, tables, dispatched)
        return live

    def _vacate(self, live: Active) -> History:
        """Take a sequence's slot and pages; its history with all keys."""
        if isinstance(live, Running):
            live = self.name(live)
        remove(self.active, live.sequence.rank)
        bisect.insort(self.free_slots, live.slot)
        for group, table in enumerate(live.tables):
            self.let_go(group, table.keyed(live.history.keys))
        return live.history

    def _orphan(self, siblings: tuple[int, ...], leader: int) -> None:
        for number in siblings:
            sibling = self.live[number]
            if isinstance(sibling, AwaitingFork) and sibling.leader == leader:
                self.wait(sibling.sequence, sibling.history)


def remove(ranks: list[Rank], rank: Rank) -> None:
    """Take a rank out of a sorted list."""
    at = bisect.bisect_left(ranks, rank)
    assert ranks[at] == rank
    del ranks[at]
