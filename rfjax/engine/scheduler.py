"""The scheduler: a pure function from a state and an event to a state and what it shows. No JAX.

    state, effects = transition(state, Tick(now))
    handle = runner.dispatch(effects.plan)
    ...
    state, effects = transition(state, Received(plan.burst, rows, now))

An event either succeeds or raises, and then nothing has changed. Any number of bursts may be under
way when the next is planned (one is enough to keep the device busy): the plan then assumes that no
sequence ends in them, and tokens of a sequence that turns out to have ended before are dropped.
"""

import dataclasses
import math
from collections.abc import Sequence as Many

from rfjax.engine.effects import Effects
from rfjax.engine.finish import (
    Cancelled,
    DeadlineExceeded,
    Finish,
    LengthReached,
    StopToken,
)
from rfjax.engine.page_pool import make_pool
from rfjax.engine.planner import Planner
from rfjax.engine.request import Request
from rfjax.engine.scheduler_state import Draft, SchedulerState
from rfjax.engine.sequence import (
    NAMED_EVERY,
    AwaitingFork,
    Preempted,
    Prefilling,
    Running,
    Sequence,
    begin,
    continued,
    named,
    new,
    samples,
)
from rfjax.errors import CapacityError, RequestError


@dataclasses.dataclass(frozen=True, slots=True)
class Submit:
    """A request arrives, at `request.arrival`."""

    request: Request


@dataclasses.dataclass(frozen=True, slots=True)
class Cancel:
    """All samples of a request end; without effect once they have ended."""

    request_id: str
    now: float


@dataclasses.dataclass(frozen=True, slots=True)
class Stopped:
    """The engine found that one sequence is over: a stop string, or an error of its own.

    Without effect once it has ended.
    """

    sequence: int
    finish: Finish
    now: float


@dataclasses.dataclass(frozen=True, slots=True)
class Received:
    """The results of a burst.

    `rows[i]` holds the tokens that row i of `plan.decode` made: as many as its `steps`, fewer if
    it ended (with the last of these), or if the runner broke the burst off (for all rows or for
    some). Results of a burst that is not under way are dropped.
    """

    burst: int
    rows: Many[Many[int]]
    now: float


@dataclasses.dataclass(frozen=True, slots=True)
class Tick:
    """Time to plan the next burst; deadlines are looked at here. The effects hold the plan."""

    now: float


@dataclasses.dataclass(frozen=True, slots=True)
class CacheLost:
    """The device's pages are gone, as after a failed burst whose buffers were donated.

    Active sequences go back to the queue and are computed again, cached prefixes are forgotten,
    and no results of bursts under way will come.
    """


_SPREAD = 61
"""Sequences that began together get keys for their pages in different bursts."""

Event = Submit | Cancel | Stopped | Received | Tick | CacheLost


def transition(state: SchedulerState, event: Event) -> tuple[SchedulerState, Effects]:
    """The state after an event, and what the event shows.

    Raises:
        RequestError: of `Submit`: the id is taken by a live request, or the sequence is longer
            than `max_context`.
        CapacityError: of `Submit`: the queue is full.
    """
    if isinstance(event, Submit):
        _check(state, event.request)
    draft = Draft(state)
    plan = None
    match event:
        case Submit(request):
            _submit(draft, request)
        case Cancel(request_id, now):
            for number in draft.requests.get(request_id, ()):
                draft.end(draft.live[number], Cancelled(), now)
        case Stopped(number, finish, now):
            if number in draft.live:
                draft.end(draft.live[number], finish, now)
        case Received(burst, rows, now):
            _receive(draft, burst, rows, now)
        case Tick(now):
            if now >= draft.earliest_deadline:
                _expire(draft, now)
            plan = Planner(draft, now).plan()
        case CacheLost():
            _forget(draft)
    return draft.freeze(plan)


def _check(state: SchedulerState, request: Request) -> None:
    config = state.config
    if request.id in state.requests:
        raise RequestError(
            f"request id {request.id!r} is taken by a request that is under way: choose another"
        )
    if request.limit > config.max_context:
        raise RequestError(
            f"request {request.id!r} may grow to {request.limit} tokens, and the context holds "
            f"{config.max_context}: shorten the prompt or lower max_tokens"
        )
    if state.n_queued >= config.max_queue:
        raise CapacityError(
            f"the queue is full: {state.n_queued} requests wait, and max_queue is "
            f"{config.max_queue}; try again later"
        )


def _submit(draft: Draft, request: Request) -> None:
    config = draft.config
    first, *others = samples(request, draft.next_sequence)
    history = begin(first, config.page_size, config.prefix_caching)
    draft.wait(first, history)
    for sequence in others:
        draft.live[sequence.id] = AwaitingFork(sequence, history, first.id)
    draft.requests[request.id] = (first.id, *(sequence.id for sequence in others))
    draft.next_sequence += request.params.n
    draft.n_queued += 1
    if request.deadline is not None:
        draft.earliest_deadline = min(draft.earliest_deadline, request.deadline)


def _expire(draft: Draft, now: float) -> None:
    """End what is past its deadline, and find the next one."""
    draft.earliest_deadline = math.inf
    for live in list(draft.live.values()):
        deadline = live.sequence.request.deadline
        if deadline is None:
            continue
        if now >= deadline:
            draft.end(draft.live[live.sequence.id], DeadlineExceeded(), now)
        else:
            draft.earliest_deadline = min(draft.earliest_deadline, deadline)


def _receive(draft: Draft, burst: int, rows: Many[Many[int]], now: float) -> None:
    flight = next((flight for flight in draft.in_flight if flight.burst == burst), None)
    if flight is None:
        return
    draft.in_flight = tuple(other for other in draft.in_flight if other is not flight)
    size, caching = draft.config.page_size, draft.config.prefix_caching
    ended = []
    live_of = draft.live
    for number, steps, row in zip(flight.sequences, flight.steps, rows, strict=True):
        live = live_of.get(number)
        if not isinstance(live, (Running, Preempted)):
            continue
        sequence, history = live[0], live[1]
        dispatched = live.dispatched + len(row) - steps
        phase = history.length + number * _SPREAD
        if row:
            tokens, length = tuple(row), history.length + len(row)
            finish = None
            if length >= sequence.limit or tokens[-1] in sequence.stops:
                finish = _finish(sequence, length, tokens[-1])
                if finish is not None:
                    ended.append(number)
            draft.emit(sequence, history, tokens, now, finish)
            history = continued(history, tokens, now, prefix_caching=caching)
        if isinstance(live, Preempted):
            history = named(sequence, history, size)
            live_of[number] = Preempted(sequence, history, dispatched)
            continue
        _, _, slot, tables, _ = live
        live_of[number] = live = new(Running, (sequence, history, slot, tables, dispatched))
        if caching and phase % NAMED_EVERY + len(row) >= NAMED_EVERY:
            draft.name(live)
    for number in ended:
        draft.close(live_of[number])


def _finish(sequence: Sequence, length: int, last: int) -> Finish | None:
    """Whether a sequence ends with its last token, and why."""
    if last in sequence.stops:
        request = sequence.request
        if length - len(request.token_ids) > request.params.min_tokens:
            return StopToken(last)
    return LengthReached() if length >= sequence.limit else None


def _forget(draft: Draft) -> None:
    draft.in_flight = ()
    for live in list(draft.live.values()):
        if isinstance(live, Prefilling | Running):
            draft.preempt(live, forget=True)
        elif isinstance(live, Preempted):
            draft.live[live.sequence.id] = live._replace(dispatched=live.history.length)
    draft.settle()
    draft.pools = [make_pool(group.n_pages) for group in draft.config.groups]
