"""Measures what scheduling costs the host: planning, taking in results, counting. No device."""

import dataclasses
import gc
import statistics
from collections.abc import Iterable, Iterator, Mapping

from rfjax.bench.schedule_case import ScheduleCase
from rfjax.bench.schedule_load import GROWTH, EngineLoad, SchedulerLoad


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """How to measure.

    Attributes:
        bursts: on the clock.
        warm_up: bursts before.
        seed: of lengths and tokens.
    """

    bursts: int = 300
    warm_up: int = 8
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class ScheduleResult:
    """A case measured. Times are of the thread's processor, in seconds of a burst.

    Attributes:
        case: what was measured.
        bursts: how many.
        tokens: that they made, on average.
        parts: the means for what it is made of. "submit" is for `Submit`, where sequences end and
            others come; "tick" for `Tick`, the plan; "received" for `Received`; "metrics" for
            `recorded` of all these. Of a whole engine: "step".
        mean, median, worst: of all of it together.
        collecting: the mean of what Python's garbage collector took of it.
    """

    case: ScheduleCase
    bursts: int
    tokens: float
    parts: Mapping[str, float]
    mean: float
    median: float
    worst: float
    collecting: float

    def record(self) -> dict[str, object]:
        """Everything as plain values."""
        own = {name: value for name, value in vars(self).items() if name not in ("case", "parts")}
        return {"op": "schedule", "shape": self.case.name, **vars(self.case), **self.parts, **own}


def bench_schedule(
    cases: Iterable[ScheduleCase], config: ScheduleConfig | None = None
) -> Iterator[ScheduleResult]:
    """Measure one case after the other.

    A burst is planned while the one before it is under way, as the engine does. Requests are
    made, and tokens invented, off the clock.

    Args:
        cases: what to measure.
        config: how.
    """
    config = config or ScheduleConfig()
    for case in cases:
        yield _measure(case, config)


def _measure(case: ScheduleCase, config: ScheduleConfig) -> ScheduleResult:
    load = (EngineLoad if case.engine else SchedulerLoad)(case, config.seed)
    load.fill(config.warm_up)
    a_round = max(1, GROWTH // case.burst - config.warm_up)
    load.restart()
    if case.frozen:
        gc.collect()
        gc.freeze()
    for number in range(config.bursts):
        if number and number % a_round == 0 and not case.churn:
            load.rewind()
        load.burst()
    if case.frozen:
        gc.unfreeze()
    totals = [sum(burst) for burst in zip(*load.parts.values(), strict=True)]
    return ScheduleResult(
        case=case,
        bursts=config.bursts,
        tokens=load.n_tokens / config.bursts,
        parts={name: statistics.mean(seconds) for name, seconds in load.parts.items()},
        mean=statistics.mean(totals),
        median=statistics.median(totals),
        worst=max(totals),
        collecting=load.collecting / config.bursts,
    )
