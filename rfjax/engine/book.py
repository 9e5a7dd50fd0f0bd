"""All that an event changes, in one value, so that an interrupt finds it changed or not. No JAX."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from rfjax.engine.burst_result import BurstResult, PromptResult, RowResult
from rfjax.engine.effects import Output
from rfjax.engine.metrics import Metrics, recorded
from rfjax.engine.plan import Plan
from rfjax.engine.scheduler import Event, Received, transition
from rfjax.engine.scheduler_config import SchedulerConfig
from rfjax.engine.scheduler_state import SchedulerState, initial_state
from rfjax.engine.sequence import new


class Shown(NamedTuple):
    """New tokens of a sequence, its end, or both, with what the device says of these tokens."""

    output: Output
    logprobs: list[float]
    top_logprobs: list[dict[int, float]] | None


class Reported(NamedTuple):
    """Log-probabilities of a part of a request's prompt."""

    request_id: str
    result: PromptResult


class Fault(NamedTuple):
    """The device could not go on with one sequence."""

    sequence: int
    message: str


News = Shown | Reported | Fault


@dataclasses.dataclass(frozen=True, slots=True)
class Book:
    """What an engine knows.

    Attributes:
        state: the scheduler's.
        metrics: of all events so far.
        news: what the requests' handles have not been told yet, in order.
    """

    state: SchedulerState
    metrics: Metrics
    news: tuple[News, ...]


def new_book(sizes: SchedulerConfig) -> Book:
    """Nothing has happened."""
    return Book(initial_state(sizes), Metrics(), ())


def advanced(book: Book, event: Event) -> tuple[Book, Plan | None]:
    """The book after an event of the scheduler, and the plan that the event made, if it did.

    Raises:
        RequestError, CapacityError: as `transition`.
    """
    book, plan = _advanced(book, event, {})
    return book, plan


def received(book: Book, plan: Plan, result: BurstResult, now: float) -> Book:
    """The book once a burst is read."""
    live = book.state.live
    reported = tuple(
        Reported(live[part.sequence].sequence.request.id, part)
        for part in result.prompt
        if part.sequence in live
    )
    rows = dict(zip(plan.decode.sequences, result.rows, strict=True))
    event = Received(plan.burst, [row.token_ids for row in result.rows], now)
    book, _ = _advanced(dataclasses.replace(book, news=book.news + reported), event, rows)
    faults = tuple(
        Fault(sequence, row.failed) for sequence, row in rows.items() if row.failed is not None
    )
    return dataclasses.replace(book, news=book.news + faults)


def abandoned(book: Book, plan: Plan, now: float) -> Book:
    """The book when nobody will read a burst."""
    book, _ = advanced(book, Received(plan.burst, [()] * len(plan.decode.slots), now))
    return book


def _advanced(book: Book, event: Event, rows: Mapping[int, RowResult]) -> tuple[Book, Plan | None]:
    state, effects = transition(book.state, event)
    shown = []
    for output in effects.outputs:
        row = rows.get(output[0])  # the sequence
        if row is None:
            shown.append(Shown(output, [], None))
        else:
            n, logprobs, tops = len(output.token_ids), row.logprobs, row.top_logprobs
            if n < len(logprobs):  # the sequence ended before
                logprobs, tops = logprobs[:n], None if tops is None else tops[:n]
            shown.append(new(Shown, (output, logprobs, tops)))
    metrics = recorded(book.metrics, state, effects)
    return Book(state, metrics, (*book.news, *shown)), effects.plan
