"""Multiple-choice tasks as llama-perplexity counts them. Needs no JAX.

Which of a question's answers, each behind the question and a space, has the highest mean
log-probability per token. The files are those of `multiple_choice_file`.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

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
from rfjax.evals.tasks.multiple_choice_file import MultipleChoiceItem
from rfjax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, slots=True)
class MultipleChoiceResult:
    """How often the model chose a right answer.

    Attributes:
        accuracy: share of right choices, 0 to 1; NaN without a task.
        stderr: its standard error; NaN for a single task.
        random_accuracy: what choosing at random would be expected to reach.
        random_stderr: its standard error over as many tasks.
        n_tasks: tasks that were scored.
        n_correct: those of them where the choice was right.
        n_too_long: tasks that do not fit the context; not among `n_tasks`.
        too_long: which, and why.
        outcomes: of every scored task, in the order in which they were given.
    """

    accuracy: float
    stderr: float
    random_accuracy: float
    random_stderr: float
    n_tasks: int
    n_correct: int
    n_too_long: int
    too_long: tuple[UnfitTask, ...]
    outcomes: tuple[ChoiceOutcome, ...]


def multiple_choice(
    scorer: TaskScorer,
    tokenizer: Tokenizer,
    items: Sequence[MultipleChoiceItem],
    *,
    n_ctx: int | None = None,
    journal: Journal | None = None,
    on_task: OnTask | None = None,
) -> MultipleChoiceResult:
    """Share of tasks in which an answer with label 1 has the highest score; of equals the first.

    Args:
        scorer: of the model.
        tokenizer: the model's.
        items: the tasks, as `read_multiple_choice` draws them.
        n_ctx, journal, on_task: as in `score_tasks`.

    Raises:
        RequestError: the texts of a task share no first token.
    """
    tasks = [_task(tokenizer, item) for item in items]
    scored, too_long = score_tasks(scorer, tasks, n_ctx=n_ctx, journal=journal, on_task=on_task)
    n_correct = sum(outcome.correct for outcome in scored)
    n_answers = sum(len(outcome.scores) for outcome in scored)
    accuracy, stderr = share(n_correct, len(scored), len(scored))
    # As llama-perplexity has it: one right answer a task, and all answers in one urn.
    random_accuracy, random_stderr = share(len(scored), n_answers, len(scored))
    return MultipleChoiceResult(
        accuracy=accuracy,
        stderr=stderr,
        random_accuracy=random_accuracy,
        random_stderr=random_stderr,
        n_tasks=len(scored),
        n_correct=n_correct,
        n_too_long=len(too_long),
        too_long=too_long,
        outcomes=scored,
    )


def share(part: int, whole: int, n_tasks: int) -> tuple[float, float]:
    """`part / whole` and its standard error over `n_tasks`, NaN where there is none.

    In f32, as in llama-perplexity, so that no printed digit differs.
    """
    if not whole:
        return math.nan, math.nan
    value = np.float32(part) / np.float32(whole)
    if n_tasks < 2:
        return float(value), math.nan
    return float(value), float(np.sqrt(value * (np.float32(1) - value) / np.float32(n_tasks - 1)))


def _task(tokenizer: Tokenizer, item: MultipleChoiceItem) -> ChoiceTask:
    texts = [tokenizer.encode(f"{item.question} {answer}") for answer in item.single.answers]
    return endings_task(item.number, item.place, texts, item.single.right)
