"""Schedulers and engines without a device, and the requests that keep them busy. No JAX."""

import contextlib
import dataclasses
import gc
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence

from rfjax.bench.schedule_case import ScheduleCase
from rfjax.engine.burst_result import BurstResult, RowResult
from rfjax.engine.effects import Effects
from rfjax.engine.engine import Engine
from rfjax.engine.metrics import Metrics, recorded
from rfjax.engine.page_pool import PagePool, acquire, allocate, find, register, release
from rfjax.engine.page_table import CacheGroup
from rfjax.engine.plan import Plan
from rfjax.engine.request import Request, make_request
from rfjax.engine.sampling_params import SamplingParams
from rfjax.engine.scheduler import Event, Received, Submit, Tick, transition
from rfjax.engine.scheduler_config import SchedulerConfig
from rfjax.engine.scheduler_state import initial_state
from rfjax.engine.warm_up import Program

GROWTH = 1024
"""Tokens that sequences make before all goes back to where the clock started."""

_VOCAB = 128256
_PROMPT = range(385, 641)
"""Lengths of prompts; that they differ spreads over the bursts when pages are full."""
_OUTPUT = range(64, 449)
"""Lengths of outputs where sequences end."""
_WINDOW = 512


class _Timed:
    """What is on the clock: the thread's processor time, burst by burst.

    Attributes:
        parts: seconds of each burst, by what they were for.
        n_tokens: that the bursts made.
        collecting: seconds of Python's garbage collector, contained in the parts.
    """

    names: tuple[str, ...]

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        """The clock starts."""
        self.parts: dict[str, list[float]] = {name: [] for name in self.names}
        self.n_tokens = 0
        self.collecting = 0.0

    def _note(self, taken: dict[str, float]) -> None:
        for name, seconds in taken.items():
            self.parts[name].append(seconds)

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


class SchedulerLoad(_Timed):
    """The scheduler by itself, one event after the other."""

    names = ("submit", "tick", "received", "metrics")

    def __init__(self, case: ScheduleCase, seed: int):
        """Nothing runs yet.

        Args:
            case: what is to run.
            seed: of lengths and tokens.
        """
        self._case = case
        self._random = random.Random(seed)
        self._requests = _requests(case, self._random)
        self._sizes = _sizes(case)
        state = initial_state(self._sizes)
        if not case.plain:
            pools = tuple(self._used(pool) for pool in state.pools)
            state = dataclasses.replace(state, pools=pools)
        self._state = state
        self._metrics = Metrics()
        self._results: deque[tuple[Plan, list[list[int]]]] = deque()
        self._now = 0.0
        self._n_due = 0  # requests to make up for those that ended
        super().__init__()

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
        self._saved = self._state, self._metrics, tuple(self._results)

    def rewind(self) -> None:
        """Go back to where `fill` ended; what an old state takes for that is no part of a burst."""
        self._state, self._metrics, results = self._saved
        self._results = deque(results)
        for pool in self._state.pools:
            acquire(pool, ())
            find(pool, b"")

    def burst(self) -> None:
        """Plan a burst, and take in the results of the one before it."""
        requests = [
            dataclasses.replace(next(self._requests), arrival=self._now) for _ in range(self._n_due)
        ]
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
        self._note(taken)

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

    def _used(self, pool: PagePool) -> PagePool:
        """As after a while: all pages hold what older prompts began with."""
        pool, pages = allocate(pool, pool.n_available)
        known = [(page, self._random.randbytes(16)) for page in pages]
        pool = register(pool, [(key, page) for page, key in known])
        return release(pool, known)


class EngineLoad(_Timed):
    """A whole engine; its device answers at once, and has no tokenizer."""

    names = ("step",)

    def __init__(self, case: ScheduleCase, seed: int):
        """Nothing runs yet; arguments as of `SchedulerLoad`."""
        self._case = case
        self._random = random.Random(seed)
        self._requests = _requests(case, self._random)
        super().__init__()

    def fill(self, warm_up: int) -> None:
        """Submit as many requests as are to run, and step until all of them do, and for a while."""
        self._warm_up = warm_up
        self._device = _Device(self._random)
        self._engine = Engine(self._device, _sizes(self._case), vocab_size=_VOCAB + 1)
        for _ in range(self._case.running):
            self._engine.submit(next(self._requests))
        for _ in range(warm_up + 2):
            self._engine.step()

    def rewind(self) -> None:
        """Fill another engine, and sweep the old one up, off the clock."""
        self.fill(self._warm_up)
        gc.collect()

    def burst(self) -> None:
        """One step of the engine."""
        device = self._device
        device.seconds, device.n_tokens = 0.0, 0
        start = time.thread_time()
        with self._collections_timed():
            self._engine.step()
        self._note({"step": time.thread_time() - start - device.seconds})
        self.n_tokens += device.n_tokens


class _Device:
    """Invents tokens and their log-probabilities.

    Attributes:
        seconds: that this took.
        n_tokens: how many they were.
    """

    def __init__(self, source: random.Random):
        self._random = source
        self.seconds = 0.0
        self.n_tokens = 0

    def dispatch(self, plan: Plan) -> "_Pending":
        start = time.thread_time()
        steps = plan.decode.steps
        rows = tuple(
            RowResult(
                token_ids=self._random.choices(range(_VOCAB), k=n),
                logprobs=[-self._random.random() for _ in range(n)],
                top_logprobs=None,
                failed=None,
            )
            for n in steps
        )
        self.n_tokens += sum(steps)
        self.seconds += time.thread_time() - start
        return _Pending(plan, BurstResult(rows, ()))

    def reset(self) -> None:
        """Nothing is ever lost here."""

    def programs(
        self, requests: Sequence[Request], *, sequences: int, prompt_tokens: int
    ) -> tuple[Program, ...]:
        """None: nothing is compiled."""
        return ()

    def release(self) -> None:
        """Nothing is held either."""


@dataclasses.dataclass(frozen=True)
class _Pending:
    plan: Plan
    result: BurstResult

    def read(self) -> BurstResult:
        return self.result


def _requests(case: ScheduleCase, source: random.Random) -> Iterator[Request]:
    """Requests without end."""
    number = 0
    while True:
        number += 1
        wanted = source.choice(_OUTPUT) if case.churn else None
        yield make_request(
            source.choices(range(_VOCAB), k=source.choice(_PROMPT)),
            SamplingParams(max_tokens=wanted, seed=number),
            vocab_size=_VOCAB + 1,
            max_context=_sizes(case).max_context,
            end_ids=frozenset((_VOCAB,)),
            request_id=str(number),
        )


def _sizes(case: ScheduleCase) -> SchedulerConfig:
    context = _PROMPT[-1] + 2 * GROWTH
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
