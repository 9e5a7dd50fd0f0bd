"""Measures what scheduling costs the host: planning, taking in results, counting. No device."""

import contextlib
import dataclasses
import gc
import random
import statistics
import time
from collections import deque
from collections.abc import Iterable, Iterator

from rfjax.bench.schedule_case import ScheduleCase
from rfjax.engine.effects import Effects
from rfjax.engine.metrics import Metrics, recorded
from rfjax.engine.page_pool import PagePool, acquire, allocate, find, register, release
from rfjax.engine.page_table import CacheGroup
from rfjax.engine.plan import Plan
from rfjax.engine.request import Request, make_request
from rfjax.engine.sampling_params import SamplingParams
from rfjax.engine.scheduler import Event, Received, Submit, Tick, transition
from rfjax.engine.scheduler_config import SchedulerConfig
from rfjax.engine.scheduler_state import SchedulerState, initial_state

_VOCAB = 128256
_PROMPT = range(385, 641)
"""Lengths of prompts; that they differ spreads over the bursts when pages are full."""
_GROWTH = 1024
"""Tokens that sequences make before all goes back to where the clock started."""
_OUTPUT = range(64, 449)
"""Lengths of outputs where sequences end."""
_WINDOW = 512


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
        submit: the mean for `Submit`, where sequences end and others come.
        tick: for `Tick`: the plan.
        received: for `Received`.
        metrics: for `recorded` of all these.
        mean, median, worst: of all of it together.
        collecting: the mean of what Python's garbage collector took of it.
    """

    case: ScheduleCase
    bursts: int
    tokens: float
    submit: float
    tick: float
    received: float
    metrics: float
    mean: float
    median: float
    worst: float
    collecting: float

    def record(self) -> dict[str, object]:
        """Everything as plain values."""
        own = {k: v for k, v in vars(self).items() if k != "case"}
        return {"op": "schedule", "shape": self.case.name, **vars(self.case), **own}


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
    load = _Load(case, config.seed)
    load.fill(config.warm_up)
    saved = load.saved()
    a_round = max(1, _GROWTH // case.burst - config.warm_up)
    load.restart()
    for number in range(config.bursts):
        if number and number % a_round == 0 and not case.churn:
            load.resume(saved)
        load.burst()
    parts = load.parts
    totals = [sum(burst) for burst in zip(*parts.values(), strict=True)]
    return ScheduleResult(
        case=case,
        bursts=config.bursts,
        tokens=load.n_tokens / config.bursts,
        **{name: statistics.mean(seconds) for name, seconds in parts.items()},
        mean=statistics.mean(totals),
        median=statistics.median(totals),
        worst=max(totals),
        collecting=load.collecting / config.bursts,
    )


_Saved = tuple[SchedulerState, Metrics, tuple[tuple[Plan, list[list[int]]], ...]]


class _Load:
    """An engine without a device, and the requests that keep it busy."""

    def __init__(self, case: ScheduleCase, seed: int):
        self._case = case
        self._random = random.Random(seed)
        self._sizes = _sizes(case)
        state = initial_state(self._sizes)
        if not case.plain:
            pools = tuple(self._used(pool) for pool in state.pools)
            state = dataclasses.replace(state, pools=pools)
        self._state = state
        self._metrics = Metrics()
        self._results: deque[tuple[Plan, list[list[int]]]] = deque()
        self._now = 0.0
        self._n_submitted = 0
        self._n_due = 0  # requests to make up for those that ended
        self.restart()

    def restart(self) -> None:
        """The clock starts."""
        self.parts: dict[str, list[float]]
        self.parts = {name: [] for name in ("submit", "tick", "received", "metrics")}
        self.n_tokens = 0
        self.collecting = 0.0

    def saved(self) -> _Saved:
        """Where things stand: old states stay valid."""
        return self._state, self._metrics, tuple(self._results)

    def resume(self, saved: _Saved) -> None:
        """Go back there; what an old state takes for that is no part of a burst."""
        self._state, self._metrics, results = saved
        self._results = deque(results)
        for pool in self._state.pools:
            acquire(pool, ())
            find(pool, b"")

    def fill(self, warm_up: int) -> None:
        """Submit as many requests as are to run, compute their prompts, and go on for a while.

        Where sequences end, there are always prompts; then for as many bursts as sequences.
        """
        self._n_due = self._case.running
        if self._case.churn:
            warm_up += self._case.running
        else:
            self.burst()
            while self._results[-1][0].prefill:
                self.burst()
        for _ in range(warm_up):
            self.burst()

    def burst(self) -> None:
        """Plan a burst, and take in the results of the one before it."""
        requests = [self._request() for _ in range(self._n_due)]
        self._n_due = 0
        taken = dict.fromkeys(self.parts, 0.0)
        with self._collections_timed():
            for request in requests:
                self._send("submit", Submit(request), taken)
            plan = self._send("tick", Tick(self._now), taken).plan
        assert plan is not None
        rows = [self._random.choices(range(_VOCAB), k=n) for n in plan.decode.steps]
        self.n_tokens += sum(plan.decode.steps)
        self._results.append((plan, rows))
        if len(self._results) > 1:
            plan, rows = self._results.popleft()
            with self._collections_timed():
                effects = self._send("received", Received(plan.burst, rows, self._now), taken)
            ended = sum(output.finish is not None for output in effects.outputs)
            self._n_due += ended if self._case.churn else 0
        for name, seconds in taken.items():
            self.parts[name].append(seconds)

    def _send(self, name: str, event: Event, taken: dict[str, float]) -> Effects:
        self._now += 0.01
        start = time.thread_time()
        self._state, effects = transition(self._state, event)
        between = time.thread_time()
        self._metrics = recorded(self._metrics, self._state, effects)
        end = time.thread_time()
        taken[name] += between - start
        taken["metrics"] += end - between
        return effects

    @contextlib.contextmanager
    def _collections_timed(self) -> Iterator[None]:
        began = 0.0

        def watch(phase: str, _: dict[str, int]) -> None:
            nonlocal began
            if phase == "start":
                began = time.thread_time()
            else:
                self.collecting += time.thread_time() - began

        gc.callbacks.append(watch)
        try:
            yield
        finally:
            gc.callbacks.remove(watch)

    def _request(self) -> Request:
        self._n_submitted += 1
        length = self._random.choice(_PROMPT)
        wanted = self._random.choice(_OUTPUT) if self._case.churn else None
        return make_request(
            self._random.choices(range(_VOCAB), k=length),
            SamplingParams(max_tokens=wanted, seed=self._n_submitted),
            vocab_size=_VOCAB + 1,
            max_context=self._sizes.max_context,
            end_ids=frozenset((_VOCAB,)),
            request_id=str(self._n_submitted),
            arrival=self._now,
        )

    def _used(self, pool: PagePool) -> PagePool:
        """As after a while: all pages hold what older prompts began with."""
        pool, pages = allocate(pool, pool.n_available)
        known = [(page, self._random.randbytes(16)) for page in pages]
        pool = register(pool, [(key, page) for page, key in known])
        return release(pool, known)


def _sizes(case: ScheduleCase) -> SchedulerConfig:
    context = _PROMPT[-1] + 2 * _GROWTH
    # Where sequences only go on, all prompts are computed at once, off the clock.
    budget = 2048 if case.churn else case.running * _PROMPT[-1]
    n_pages = case.running * -(-context // case.page_size) + 2
    groups = [CacheGroup("full", n_pages)]
    if case.window:
        groups.append(CacheGroup("window", n_pages, window=_WINDOW))
    return SchedulerConfig(
        groups=tuple(groups),
        page_size=case.page_size,
        max_context=context,
        slots=case.running,
        token_budget=case.running + budget,
        prefill_chunk=_PROMPT[-1],
        burst=case.burst,
        mixed_burst=min(4, case.burst),
        max_queue=case.running,
        prefix_caching=not case.plain,
    )
