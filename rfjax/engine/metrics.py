"""What the engine has done and does, in numbers: an immutable value. No JAX."""

import bisect
import dataclasses
from collections.abc import Iterable, Mapping
from typing import get_args

from rfjax.engine.effects import Effects
from rfjax.engine.finish import FinishReason
from rfjax.engine.scheduler_state import SchedulerState


@dataclasses.dataclass(frozen=True, slots=True)
class Histogram:
    """How often values fell between bounds.

    Attributes:
        bounds: upper ones, rising, each inclusive; above the last there is one bucket more.
        counts: of each bucket, one more than bounds.
        total: sum of all values.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float = 0.0

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    def observed(self, values: Iterable[tuple[float, int]]) -> "Histogram":
        """With further values, each as often as the number beside it says."""
        counts, total = list(self.counts), self.total
        for value, times in values:
            counts[bisect.bisect_left(self.bounds, value)] += times
            total += value * times
        return Histogram(self.bounds, tuple(counts), total)


def _empty(*bounds: float) -> Histogram:
    return Histogram(bounds, (0,) * (len(bounds) + 1))


# Bounds as vLLM has them, so that its dashboards serve.
_FIRST_TOKEN = _empty(
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_BETWEEN_TOKENS = _empty(
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_WHOLE_REQUEST = _empty(
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_TOKENS = _empty(*(float(2**n) for n in range(18)))


@dataclasses.dataclass(frozen=True, slots=True)
class Metrics:
    """Counters since the start, and gauges of the moment. Times are in seconds.

    Attributes:
        running: sequences that have a slot.
        waiting: sequences that have none, preempted ones included.
        page_usage: share of the pages that sequences own, from 0 to 1, of the fullest group.
        prefix_queries: prompt tokens that were looked for in cached pages.
        prefix_hits: those of them that were found.
        prompt_tokens: tokens of admitted prompts.
        generation_tokens: tokens of output.
        preemptions: sequences that lost their pages.
        finished: sequences that ended, by reason.
        time_to_first_token: from arrival to when the host read the first token.
        inter_token_latency: time between two readings divided by the tokens read, once for each
            of them; tokens that come with the first one do not count.
        queue_time: from arrival to the first admission.
        request_latency: from arrival to the end, of each sequence.
        prompt_length, output_length: tokens of each sequence that ended.
    """

    running: int = 0
    waiting: int = 0
    page_usage: float = 0.0
    prefix_queries: int = 0
    prefix_hits: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    finished: Mapping[FinishReason, int] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(get_args(FinishReason), 0)
    )
    time_to_first_token: Histogram = _FIRST_TOKEN
    inter_token_latency: Histogram = _BETWEEN_TOKENS
    queue_time: Histogram = _WHOLE_REQUEST
    request_latency: Histogram = _WHOLE_REQUEST
    prompt_length: Histogram = _TOKENS
    output_length: Histogram = _TOKENS


def recorded(metrics: Metrics, state: SchedulerState, effects: Effects) -> Metrics:
    """The metrics after a transition of the scheduler to `state`, which had these effects."""
    first, ended = [], []
    between: dict[tuple[float, int], int] = {}  # outputs by waiting time and number of tokens
    n_generated = 0
    for output in effects.outputs:
        _, _, _, tokens, n_output, waited, _, finish = output
        n = len(tokens)
        if n == n_output and n:
            first.append((waited, 1))
            n_generated += n
        elif n:
            # Nearly all sequences of a burst wait as long for as many tokens.
            kind = (waited, n)
            between[kind] = between.get(kind, 0) + 1
            n_generated += n
        if finish is not None:
            ended.append(output)
    finished = dict(metrics.finished)
    for output in ended:
        finished[output.finish.reason] += 1
    admitted = [admission for admission in effects.admissions if admission.kind == "first"]
    n_prompt = sum(admission.n_tokens for admission in admitted)
    return Metrics(
        running=len(state.active),
        waiting=len(state.live) - len(state.active),
        page_usage=state.page_usage,
        prefix_queries=metrics.prefix_queries + n_prompt,
        prefix_hits=metrics.prefix_hits + sum(admission.n_cached for admission in admitted),
        prompt_tokens=metrics.prompt_tokens + n_prompt,
        generation_tokens=metrics.generation_tokens + n_generated,
        preemptions=metrics.preemptions + len(effects.preempted),
        finished=finished,
        time_to_first_token=metrics.time_to_first_token.observed(first),
        inter_token_latency=metrics.inter_token_latency.observed(
            (waited / n, n * times) for (waited, n), times in between.items()
        ),
        queue_time=metrics.queue_time.observed((a.waited, 1) for a in admitted),
        request_latency=metrics.request_latency.observed((o.age, 1) for o in ended),
        prompt_length=metrics.prompt_length.observed((len(o.request.token_ids), 1) for o in ended),
        output_length=metrics.output_length.observed((o.n_output, 1) for o in ended),
    )
