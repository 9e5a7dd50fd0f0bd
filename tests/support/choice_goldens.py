"""Tasks with choices, what llama-perplexity printed for them, and stand-ins to score them with."""

import json
import pathlib

import numpy as np
import pytest

from rfjax.evals.scoring.continuation import Continuation, ContinuationScore
from rfjax.evals.tasks.multiple_choice_file import Answers, MultipleChoiceItem

FOLDER = pathlib.Path(__file__).parents[1] / "evals" / "goldens" / "choice_tasks"


def multiple_choice_items() -> list[MultipleChoiceItem]:
    """The tasks of multiple_choice.json."""
    tasks = json.loads((FOLDER / "multiple_choice.json").read_text(encoding="utf-8"))
    return [
        MultipleChoiceItem(task["question"], _answers(task), _answers(task.get("several", {})))
        for task in tasks
    ]


def _answers(task: dict) -> Answers:
    return Answers(tuple(task.get("answers", ())), tuple(task.get("labels", ())))


def assert_as_printed(ours: str, golden: str) -> None:
    """Line by line; WinoGrande's scores may differ by 1e-4, which is rounding of f32."""
    lines, expected = ours.rstrip("\n").split("\n"), _read(golden).rstrip("\n").split("\n")
    assert len(lines) == len(expected)
    for line, wanted in zip(lines, expected, strict=True):
        if line == wanted:
            continue
        fields, wanted_fields = line.split(), wanted.split()
        assert len(fields) == 6 and len(line) == len(wanted), (line, wanted)
        for column, (field, want) in enumerate(zip(fields, wanted_fields, strict=True)):
            if column in (2, 3):
                assert float(field) == pytest.approx(float(want), abs=1e-4, nan_ok=True)
            else:
                assert field == want, (line, wanted)


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


class RememberingScorer:
    """Passes on to another scorer what it was not asked before."""

    def __init__(self, scorer):
        self._scorer = scorer
        self._scores: dict[Continuation, ContinuationScore] = {}
        self.max_inputs = scorer.max_inputs

    def score(self, continuations, *, on_scored):
        new = [one for one in continuations if one not in self._scores]
        self._scores.update(zip(new, self._scorer.score(new), strict=True))
        for index, one in enumerate(continuations):
            on_scored(index, self._scores[one])


class InventedScorer:
    """Log-probabilities that depend on the context and the token, and a list of what was asked.

    Answers come in an order of its own, and stop with KeyboardInterrupt after `most`.
    """

    max_inputs = 1000

    def __init__(self, most: int | None = None):
        self.asked: list[Continuation] = []
        self.most = most

    def score(self, continuations, *, on_scored):
        for index in reversed(range(len(continuations))):
            if len(self.asked) == self.most:
                raise KeyboardInterrupt
            self.asked.append(continuations[index])
            logprobs = invented(continuations[index])
            on_scored(index, ContinuationScore(logprobs, np.zeros(len(logprobs), np.bool_)))


def invented(one: Continuation) -> np.ndarray:
    """f32 [n], each a fraction of an eighth, so that sums are exact."""
    ids = (*one.context, *one.tokens)
    ends = range(len(one.context), len(ids))
    return np.asarray([-((sum(ids[:i]) * 7 + ids[i] * 5) % 64) / 8 for i in ends], np.float32)


class Letters:
    """A tokenizer of one token a character, its code, after the id 1 if it adds BOS."""

    def __init__(self, *, bos: bool = True):
        self._start = [1] if bos else []

    def encode(self, text: str) -> list[int]:
        return [*self._start, *(ord(character) for character in text)]
