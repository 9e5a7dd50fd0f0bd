"""HellaSwag as llama-perplexity counts it: which of four endings goes on best. Needs no JAX.

A task is six lines: a context, the number of the right ending from 0, and four endings.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from rfjax.errors import RequestError
from rfjax.evals.records.journal import Journal
from rfjax.evals.tasks.choice_task import (
    ChoiceOutcome,
    ChoiceTask,
    OnTask,
    TaskScorer,
    UnfitTask,
    endings_task,
    score_tasks,
)
from rfjax.evals.tasks.task_sampling import draw_uniform
from rfjax.tokenizer import Tokenizer

N_TASKS = 400
"""Tasks that llama-perplexity draws when nobody says how many."""

_LINES = 6
_Z = 1.95996398454
"""Two-sided 95% quantile of the normal distribution, to llama-perplexity's digits."""


@dataclasses.dataclass(frozen=True, slots=True)
class HellaSwagItem:
    """A task in words.

    Attributes:
        number: which one of its file, from 1.
        place: how messages name it.
        context: what is to be continued.
        endings: four, each behind the context and a space.
        label: index of the right one.
    """

    number: int
    place: str
    context: str
    endings: tuple[str, ...]
    label: int


@dataclasses.dataclass(frozen=True, slots=True)
class HellaSwagResult:
    """How often the model chose the right ending.

    Attributes:
        accuracy: share of right choices, 0 to 1; NaN without a task.
        interval: its 95% Wilson interval.
        n_tasks: tasks that were scored.
        n_correct: those of them where the choice was right.
        n_too_long: tasks that do not fit the context; not among `n_tasks`.
        too_long: which, and why.
        outcomes: of every scored task, in the order in which they were drawn.
    """

    accuracy: float
    interval: tuple[float, float]
    n_tasks: int
    n_correct: int
    n_too_long: int
    too_long: tuple[UnfitTask, ...]
    outcomes: tuple[ChoiceOutcome, ...]


def read_hellaswag(text: str, source: str = "hellaswag") -> list[HellaSwagItem]:
    """The tasks of a file, in its order.

    Args:
        text: of the file, all of it; it may end with an empty line.
        source: the file's name, for messages.

    Raises:
        RequestError: the number of lines is no multiple of six, or a label is not 0 to 3; names the
            line.
    """
    lines = text.removesuffix("\n").split("\n")
    if not lines[-1]:
        lines.pop()
    if not lines or len(lines) % _LINES:
        raise RequestError(
            f"{source}: got {len(lines)} lines, expected six for each task: context, number of the "
            "right ending from 0, four endings"
        )
    items = []
    for number, start in enumerate(range(0, len(lines), _LINES), 1):
        context, label, *endings = lines[start : start + _LINES]
        if label.strip() not in ("0", "1", "2", "3"):
            raise RequestError(
                f"{source}, line {start + 2}: got {label[:40]!r} for the number of task {number}'s "
                "right ending, expected 0, 1, 2 or 3; is a line missing or too many before it?"
            )
        place = f"{source}, task {number} (line {start + 1})"
        items.append(HellaSwagItem(number, place, context, tuple(endings), int(label)))
    return items


def hellaswag(
    scorer: TaskScorer,
    tokenizer: Tokenizer,
    items: Sequence[HellaSwagItem],
    *,
    n_tasks: int | None = N_TASKS,
    n_ctx: int | None = None,
    journal: Journal | None = None,
    on_task: OnTask | None = None,
) -> HellaSwagResult:
    """Share of tasks in which the right ending has the highest mean log-probability per token.

    Args:
        scorer: of the model.
        tokenizer: the model's.
        items: tasks to draw from.
        n_tasks: how many to draw, the same ones as llama-perplexity; None for all.
        n_ctx, journal, on_task: as in `score_tasks`.

    Raises:
        RequestError: `n_tasks` is not positive, or texts of a task share no first token.
    """
    if n_tasks is not None and n_tasks < 1:
        raise RequestError(f"number of HellaSwag tasks: got {n_tasks}, expected at least 1")
    count = len(items) if n_tasks is None else min(n_tasks, len(items))
    tasks = [_task(tokenizer, items[index]) for index in draw_uniform(len(items), count)]
    scored, too_long = score_tasks(
        scorer, tasks, average=_average, n_ctx=n_ctx, journal=journal, on_task=on_task
    )
    n_correct = sum(outcome.correct for outcome in scored)
    return HellaSwagResult(
        accuracy=n_correct / len(scored) if scored else math.nan,
        interval=wilson_interval(n_correct, len(scored)),
        n_tasks=len(scored),
        n_correct=n_correct,
        n_too_long=len(too_long),
        too_long=too_long,
        outcomes=scored,
    )


def wilson_interval(n_correct: int, n_tasks: int) -> tuple[float, float]:
    """The 95% score interval of a share (Wilson, 1927); 0 to 1 without tasks."""
    if not n_tasks:
        return 0.0, 1.0
    share = n_correct / n_tasks
    z = _Z * _Z / n_tasks
    half = z * math.sqrt(n_tasks * (4.0 * share * (1 - share) + z)) / (2 * _Z)
    return (share + z * 0.5 - half) / (1.0 + z), (share + z * 0.5 + half) / (1.0 + z)


def _task(tokenizer: Tokenizer, item: HellaSwagItem) -> ChoiceTask:
    texts = [tokenizer.encode(f"{item.context} {ending}") for ending in item.endings]
    return endings_task(item.number, item.place, texts, (item.label,))


def _average(logprobs: np.ndarray, divisor: int) -> float:
    """In f64, other than in the tasks of the other two kinds."""
    return float(logprobs.sum(dtype=np.float64)) / divisor
