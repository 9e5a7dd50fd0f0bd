"""WinoGrande as llama-perplexity counts it: which of two words belongs into a gap. Needs no JAX.

A line is a task: `index,sentence,choice 1,choice 2,answer`, the gap an underscore, the answer 1
or 2. The sentence may stand in quotes. Each choice is scored by what follows it, less the very last
token; where little follows (three tokens or fewer that differ) by all that differs, itself
included.

Two faults of llama-perplexity are repeated unless asked otherwise, so that figures are the same:

* The last line of a file is not read unless an empty line follows it.
* Where a choice is scored itself, the first token of the second one is given the probability that
  it would have after the whole of the first sentence.

What it reads out of another task's or nobody's memory is not repeated: the first tokens of a first
choice whose tokens end before the sentences differ, and what a sentence that begins with the gap
does, in a vocabulary without BOS, to the tasks computed with it.
"""

import dataclasses
import itertools
import re
from collections.abc import Sequence

from rfjax.errors import RequestError
from rfjax.evals.records.journal import Journal
from rfjax.evals.scoring.continuation import Continuation
from rfjax.evals.tasks.choice_task import (
    Choice,
    ChoiceOutcome,
    ChoiceTask,
    OnTask,
    TaskScorer,
    UnfitTask,
    common_length,
    places_of,
    score_tasks,
)
from rfjax.evals.tasks.multiple_choice import share
from rfjax.evals.tasks.task_sampling import draw_scaled
from rfjax.tokenizer import Tokenizer

_SHORT_TAIL = 3
"""Tokens behind the common ones up to which the choice itself is scored."""

_N_COMMAS = 4
_ANSWER = re.compile(r"\s*\+?0*([12])\s*(,|$)")


@dataclasses.dataclass(frozen=True, slots=True)
class WinoGrandeItem:
    """A task in words.

    Attributes:
        number: which one of its file, from 1.
        place: how messages name it.
        before, after: the sentence around the gap.
        choices: two texts for the gap, with quotes as they stand in the file.
        answer: index of the right one, 0 or 1.
    """

    number: int
    place: str
    before: str
    after: str
    choices: tuple[str, str]
    answer: int


@dataclasses.dataclass(frozen=True, slots=True)
class WinoGrandeResult:
    """How often the model chose the right word.

    Attributes:
        accuracy: share of right choices, 0 to 1; NaN without a task.
        stderr: its standard error; NaN for a single task.
        n_tasks: tasks that were scored.
        n_correct: those of them where the choice was right.
        n_too_long: tasks that do not fit the context; not among `n_tasks`.
        too_long: which, and why.
        outcomes: of every scored task, in the order in which they were taken.
    """

    accuracy: float
    stderr: float
    n_tasks: int
    n_correct: int
    n_too_long: int
    too_long: tuple[UnfitTask, ...]
    outcomes: tuple[ChoiceOutcome, ...]


def read_winogrande(
    text: str, source: str = "winogrande", *, last_line: bool = False
) -> list[WinoGrandeItem]:
    """The tasks of a file, in its order.

    Args:
        text: of the file, all of it.
        source: the file's name, for messages.
        last_line: read the last line even if no empty line follows, which llama-perplexity does
            not (see `n_unread`).

    Raises:
        RequestError: a line with too few commas, without a gap or with an answer other than 1 or 2;
            names the line. Or no task.
    """
    lines = text.removesuffix("\n").split("\n")
    if not last_line:
        lines.pop()
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise RequestError(
            f"{source}: got no task, expected lines of index,sentence,choice 1,choice 2,answer; "
            "llama-perplexity, and so rfjax, does not read a last line that no empty one follows"
        )
    return [_item(line, source, number) for number, line in enumerate(lines, 1)]


def n_unread(text: str) -> int:
    """Lines, 0 or 1, that are not read because the file ends with them."""
    return int(bool(text.removesuffix("\n").split("\n")[-1]))


def winogrande(
    scorer: TaskScorer,
    tokenizer: Tokenizer,
    items: Sequence[WinoGrandeItem],
    *,
    n_tasks: int | None = None,
    exact: bool = False,
    n_ctx: int | None = None,
    journal: Journal | None = None,
    on_task: OnTask | None = None,
) -> WinoGrandeResult:
    """Share of tasks in which the right choice has the higher mean log-probability per token.

    Of equals, or without a score, the second choice counts as chosen.

    Args:
        scorer: of the model.
        tokenizer: the model's.
        items: tasks to draw from.
        n_tasks: how many to draw, the same ones as llama-perplexity; None, and any number that is
            not below theirs, takes all in their order.
        exact: give every token its own probability, other than llama-perplexity.
        n_ctx, journal, on_task: as in `score_tasks`.

    Raises:
        RequestError: `n_tasks` is not positive.
    """
    if n_tasks is not None and n_tasks < 1:
        raise RequestError(f"number of WinoGrande tasks: got {n_tasks}, expected at least 1")
    count = len(items) if n_tasks is None else n_tasks
    drawn = [items[index] for index in draw_scaled(len(items), count)]
    tasks = [_task(tokenizer, item, exact=exact) for item in drawn]
    scored, too_long = score_tasks(
        scorer, tasks, choose=_choose, n_ctx=n_ctx, journal=journal, on_task=on_task
    )
    n_correct = sum(outcome.correct for outcome in scored)
    accuracy, stderr = share(n_correct, len(scored), len(scored))
    return WinoGrandeResult(
        accuracy=accuracy,
        stderr=stderr,
        n_tasks=len(scored),
        n_correct=n_correct,
        n_too_long=len(too_long),
        too_long=too_long,
        outcomes=scored,
    )


def _item(line: str, source: str, number: int) -> WinoGrandeItem:
    place = f"{source}, line {number}"
    commas = _separators(line)
    if len(commas) < _N_COMMAS:
        raise RequestError(
            f"{place}: got {line[:60]!r} with {len(commas)} commas outside of quotes, expected "
            "index,sentence,choice 1,choice 2,answer"
        )
    sentence, *choices = (line[a + 1 : b] for a, b in itertools.pairwise(commas))
    if sentence.startswith('"'):
        if len(sentence) < 2 or not sentence.endswith('"'):
            raise RequestError(
                f"{place}: got the sentence {sentence[:60]!r}, expected a quote at its end as well"
            )
        sentence = sentence[1:-1]
    before, gap, after = sentence.partition("_")
    if not gap:
        raise RequestError(
            f"{place}: got the sentence {sentence[:60]!r}, expected an underscore for the gap"
        )
    answer = line[commas[-1] + 1 :]
    found = _ANSWER.match(answer)
    if found is None:
        raise RequestError(f"{place}: got the answer {answer[:40]!r}, expected 1 or 2")
    first, second = choices
    return WinoGrandeItem(number, place, before, after, (first, second), int(found.group(1)) - 1)


def _separators(line: str) -> list[int]:
    """Where the first four commas outside of quotes stand."""
    commas: list[int] = []
    quoted = False
    for index, character in enumerate(line):
        if character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            commas.append(index)
            if len(commas) == _N_COMMAS:
                break
    return commas


def _choose(scores: Sequence[float]) -> int:
    return 0 if scores[0] > scores[1] else 1


def _task(tokenizer: Tokenizer, item: WinoGrandeItem, *, exact: bool) -> ChoiceTask:
    texts = [tuple(tokenizer.encode(item.before + one + item.after)) for one in item.choices]
    n_common = common_length(texts)
    starts = [n_common, n_common]
    if all(len(tokens) - n_common > _SHORT_TAIL for tokens in texts):
        starts = [len(tokenizer.encode(item.before + one)) for one in item.choices]
    if exact:
        # Nothing gives a probability to the first token of all.
        starts = [max(1, start) for start in starts]
    others = () if exact else _other_contexts(texts[0], n_common, starts[1])
    choices = _choice(texts[0], starts[0]), _choice(texts[1], starts[1], others)
    places = places_of(texts, n_common)
    return ChoiceTask(item.number, item.place, choices, (item.answer,), places)


def _choice(tokens: tuple[int, ...], start: int, others: Sequence[tuple[int, ...]] = ()) -> Choice:
    """The tokens from `start` to the last but one, or the last if there is no other.

    Args:
        tokens: of the whole text.
        start: index of the first that is scored; from 0, and behind the end, none is.
        others: contexts of the first tokens in place of their own.
    """
    left = len(tokens) - start
    dropped = 0 if left in (0, 1) else 1
    end = len(tokens) - dropped
    parts: list[Continuation] = []
    if start > 0:
        for context, token in zip(others, tokens[start:end], strict=False):
            parts.append(Continuation(context, (token,)))
        rest = start + len(parts)
        if rest < end:
            parts.append(Continuation(tokens[:rest], tokens[rest:end]))
    return Choice(tuple(parts), abs(left - dropped))


def _other_contexts(first: tuple[int, ...], n_common: int, start: int) -> list[tuple[int, ...]]:
    """The contexts in whose place llama-perplexity takes those of the second choice's first tokens.

    It keeps the logits of a task in one list: one row for the end of what is common, one for each
    further token of the first text, then those of the second. The second choice's rows are counted
    from the end of the first text's, which is one too few for the row of the common tokens, and
    that many more where its tokens begin before the texts differ. Rows of other tasks, which it
    reads where the first text is too short for that, are nothing to repeat.

    Args:
        first: tokens of the first text.
        n_common: tokens that both texts begin with.
        start: index of the second text's first scored token.
    """
    early = n_common - start
    if not 0 <= early <= len(first) - n_common:
        return []
    return [first[:end] for end in range(len(first) - early, len(first) + 1)]
