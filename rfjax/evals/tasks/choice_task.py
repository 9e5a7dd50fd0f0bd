"""Tasks in which a model chooses between texts: what llama-perplexity's three kinds share.

All texts of a task are tokenized whole. What their tokens have in common at the beginning is the
context, computed once; the text whose further tokens are likeliest on average is the choice. Needs
no JAX.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from rfjax.errors import RequestError
from rfjax.evals.records.journal import Journal, continuation_key
from rfjax.evals.scoring.continuation import Continuation, ContinuationScore

_PADDING = 256
_SEQUENCES = 4
"""llama-perplexity's cache for these tasks: four times the context, in steps of 256 tokens."""

Average = Callable[[np.ndarray, int], float]
"""From log-probabilities, f32 [n], and what their sum is divided by, to a score."""

Choose = Callable[[Sequence[float]], int]
"""From the scores of a task's choices to the index of one."""


class TaskScorer(Protocol):
    """What scores: a `rfjax.evals.scoring.scorer.Scorer`, or anything like it."""

    @property
    def max_inputs(self) -> int:
        """Most tokens of context and continuation together, the last one not counted."""
        ...

    def score(
        self,
        continuations: Sequence[Continuation],
        *,
        on_scored: Callable[[int, ContinuationScore], None],
    ) -> object:
        """Calls `on_scored` with the number of each continuation and its score, in any order."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """One of a task's texts.

    Attributes:
        parts: what is scored of it, in order.
        divisor: what the sum over all scored tokens is divided by, mostly their number.
    """

    parts: tuple[Continuation, ...]
    divisor: int


@dataclasses.dataclass(frozen=True, slots=True)
class ChoiceTask:
    """A task in tokens.

    Attributes:
        number: which one of its file, from 1.
        place: how messages name it, such as "tasks.txt, task 3 (line 13)".
        choices: at least one.
        right: indices of the right choices.
        n_tokens: places that it takes up: the common beginning once and the rest of each text.
    """

    number: int
    place: str
    choices: tuple[Choice, ...]
    right: tuple[int, ...]
    n_tokens: int


@dataclasses.dataclass(frozen=True, slots=True)
class ChoiceOutcome:
    """What a model chose.

    Attributes:
        number: of the task in its file, from 1.
        choice: index of what it chose.
        right: indices of the right choices.
        correct: whether the choice is one of them.
        scores: mean log-probability per token of every choice, in nats; NaN for one without any.
    """

    number: int
    choice: int
    right: tuple[int, ...]
    correct: bool
    scores: tuple[float, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class UnfitTask:
    """A task that was left out because it is too long.

    Attributes:
        number: of the task in its file, from 1.
        reason: a message: which one, how long, and what there is room for.
    """

    number: int
    reason: str


class Outcomes(NamedTuple):
    """Of many tasks, both in the tasks' order."""

    scored: tuple[ChoiceOutcome, ...]
    too_long: tuple[UnfitTask, ...]


OnTask = Callable[[int, int, Sequence[ChoiceOutcome]], None]
"""Called with how many of how many tasks are done, and the outcomes that are next in order."""


def average(logprobs: np.ndarray, divisor: int) -> float:
    """The mean in f32, summed in order, as llama-perplexity has it; NaN for nothing by nothing."""
    if not divisor:
        return float("nan")
    total = np.cumsum(logprobs, dtype=np.float32)[-1] if logprobs.size else np.float32(0)
    return float(total / np.float32(divisor))


def likeliest(scores: Sequence[float]) -> int:
    """The choice with the highest score; of equals the first."""
    return max(range(len(scores)), key=lambda index: scores[index])


def common_length(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with."""
    length = 0
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        length += 1
    return length


def places_of(sequences: Sequence[Sequence[int]], n_common: int) -> int:
    """Tokens of the common beginning and of what each sequence has beyond it."""
    return n_common + sum(len(tokens) - n_common for tokens in sequences)


def endings_task(
    number: int, place: str, texts: Sequence[Sequence[int]], right: tuple[int, ...]
) -> ChoiceTask:
    """A task of whose texts all that is not common counts.

    Where a text is the beginning of all others and would have nothing of its own (llama-perplexity
    then reads past its end), one token less counts as common.

    Args:
        number, place, right: as in `ChoiceTask`.
        texts: token ids of every text, whole.

    Raises:
        RequestError: nothing stands before the first token that differs.
    """
    n_common = common_length(texts)
    before = min(n_common, *(len(tokens) - 1 for tokens in texts))
    if before < 1:
        raise RequestError(
            f"{place}: its texts begin with different tokens, and the vocabulary adds none before "
            "them; expected a context that they share"
        )
    choices = tuple(
        Choice(
            (Continuation(tuple(tokens[:before]), tuple(tokens[before:])),), len(tokens) - before
        )
        for tokens in texts
    )
    return ChoiceTask(number, place, choices, right, places_of(texts, n_common))


def score_tasks(
    scorer: TaskScorer,
    tasks: Sequence[ChoiceTask],
    *,
    average: Average = average,
    choose: Choose = likeliest,
    n_ctx: int | None = None,
    journal: Journal | None = None,
    on_task: OnTask | None = None,
) -> Outcomes:
    """What the model chooses in every task that fits.

    Args:
        scorer: of the model.
        tasks: in the order of the outcomes.
        average: from a choice's log-probabilities to its score.
        choose: from a task's scores to its choice.
        n_ctx: a task may take up four times as many tokens (or as many as it has choices),
            rounded up to 256, which is where llama-perplexity gives up; None for no such limit.
        journal: log-probabilities are taken from it and added to it.
        on_task: told of progress.

    Raises:
        RequestError: `n_ctx` is no positive integer, or token ids are outside the vocabulary.
        CapacityError, ModelFormatError: as `rfjax.evals.scoring.scorer.Scorer.score`.
    """
    if n_ctx is not None and n_ctx < 1:
        raise RequestError(f"n_ctx: got {n_ctx}, expected at least 1")
    fitting: list[ChoiceTask] = []
    too_long: list[UnfitTask] = []
    for task in tasks:
        reason = _why_unfit(task, scorer.max_inputs, n_ctx)
        if reason is None:
            fitting.append(task)
        else:
            too_long.append(UnfitTask(task.number, reason))
    known = _Known(journal)
    missing = known.missing(_parts(fitting))
    scored = _InOrder(fitting, known, average, choose, on_task)
    scored.advance()

    def on_scored(index: int, score: ContinuationScore) -> None:
        known.add(missing[index], score.logprobs)
        scored.arrived(missing[index])

    if missing:
        scorer.score(missing, on_scored=on_scored)
    return Outcomes(tuple(scored.outcomes), tuple(too_long))


class _Known:
    """Log-probabilities that are there, from a journal or just computed."""

    def __init__(self, journal: Journal | None):
        self._journal = journal
        self._logprobs: dict[Continuation, np.ndarray] = {}

    def __contains__(self, one: Continuation) -> bool:
        return one in self._logprobs

    def __getitem__(self, one: Continuation) -> np.ndarray:
        return self._logprobs[one]

    def missing(self, continuations: Iterable[Continuation]) -> list[Continuation]:
        """Those, each once, that the journal does not have."""
        missing = []
        for one in dict.fromkeys(continuations):
            kept = None if self._journal is None else self._journal.get(_key(one))
            if kept is None:
                missing.append(one)
            else:
                self._logprobs[one] = np.asarray(kept, np.float32)
        return missing

    def add(self, one: Continuation, logprobs: np.ndarray) -> None:
        self._logprobs[one] = logprobs
        if self._journal is not None:
            self._journal.add(_key(one), [float(value) for value in logprobs])


class _InOrder:
    """Outcomes as tasks are complete, told in the tasks' order."""

    def __init__(
        self,
        tasks: Sequence[ChoiceTask],
        known: _Known,
        average: Average,
        choose: Choose,
        on_task: OnTask | None,
    ):
        self.outcomes: list[ChoiceOutcome] = []
        self._tasks, self._known = tasks, known
        self._average, self._choose, self._on_task = average, choose, on_task
        self._n_done = 0
        self._waiting: dict[Continuation, list[int]] = {}
        self._n_left = []
        for index, task in enumerate(tasks):
            parts = {part for part in _parts([task]) if part not in known}
            for part in parts:
                self._waiting.setdefault(part, []).append(index)
            self._n_left.append(len(parts))
            self._n_done += not parts

    def arrived(self, one: Continuation) -> None:
        """What a continuation completes."""
        for index in self._waiting.pop(one):
            self._n_left[index] -= 1
            if not self._n_left[index]:
                self._n_done += 1
                self.advance()

    def advance(self) -> None:
        """The outcomes of all complete tasks before the first that is not."""
        start = len(self.outcomes)
        while len(self.outcomes) < len(self._tasks) and not self._n_left[len(self.outcomes)]:
            self.outcomes.append(self._outcome(self._tasks[len(self.outcomes)]))
        if self._on_task is not None and self._n_done:
            self._on_task(self._n_done, len(self._tasks), self.outcomes[start:])

    def _outcome(self, task: ChoiceTask) -> ChoiceOutcome:
        scores = tuple(
            self._average(self._logprobs(choice), choice.divisor) for choice in task.choices
        )
        choice = self._choose(scores)
        return ChoiceOutcome(task.number, choice, task.right, choice in task.right, scores)

    def _logprobs(self, choice: Choice) -> np.ndarray:
        parts = [self._known[part] for part in choice.parts]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)


def _parts(tasks: Iterable[ChoiceTask]) -> Iterable[Continuation]:
    return (part for task in tasks for choice in task.choices for part in choice.parts)


def _key(one: Continuation) -> str:
    """Apart from the keys of others, whose values have another form."""
    return f"logprobs:{continuation_key(one.context, one.tokens)}"


def _why_unfit(task: ChoiceTask, max_inputs: int, n_ctx: int | None) -> str | None:
    longest = max((part.n_inputs for part in _parts([task])), default=0)
    if longest > max_inputs:
        return (
            f"{task.place}: left out, as it needs a context of {longest} tokens, and the model's "
            f"holds {max_inputs}"
        )
    if n_ctx is None:
        return None
    room = -(-max(_SEQUENCES, len(task.choices)) * n_ctx // _PADDING) * _PADDING
    if task.n_tokens > room:
        return (
            f"{task.place}: left out, as its choices take {task.n_tokens} tokens together, and a "
            f"context of {n_ctx} leaves room for {room}; give a larger one"
        )
    return None
