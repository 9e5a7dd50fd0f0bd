"""HellaSwag, WinoGrande and multiple choice for `rfjax perplexity`, printed as in llama.cpp.

stdout gets llama-perplexity's lines, stderr what a person wants to know: which tasks were left out,
and how long it took.
"""

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rfjax.cli.files import read_text
from rfjax.cli.journal import opened_journal
from rfjax.cli.output import note, write, write_json
from rfjax.cli.running import running_output
from rfjax.errors import RequestError

if TYPE_CHECKING:
    from rfjax.evals.tasks.choice_task import ChoiceOutcome
    from rfjax.evals.tasks.hellaswag import HellaSwagResult
    from rfjax.evals.tasks.multiple_choice import MultipleChoiceResult
    from rfjax.evals.tasks.winogrande import WinoGrandeResult
    from rfjax.llm import LLM

    Result = HellaSwagResult | MultipleChoiceResult | WinoGrandeResult

Line = Callable[[int, int, "ChoiceOutcome"], str]
"""From how many tasks are done, how many of them were right, and the last one's outcome."""

_LEAST_FOR_SCORE = 100
"""Tasks below which llama-perplexity prints no final score of WinoGrande."""


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """What the three kinds have in common.

    Attributes:
        n_ctx: tokens of llama-perplexity's context, which bounds the length of tasks.
        json: print one JSON object instead of lines.
        quiet: print no summary on stderr.
        journal: a file that keeps likelihoods as they come; None for none.
    """

    n_ctx: int
    json: bool = False
    quiet: bool = False
    journal: Path | None = None


def run_hellaswag(
    load: Callable[[], "LLM"], path: Path, n_tasks: int, settings: TaskSettings
) -> None:
    """The score of a text file of six lines a task, of which `n_tasks` are drawn."""
    from rfjax.evals.tasks.hellaswag import hellaswag, read_hellaswag, wilson_interval

    def line(n_done: int, n_correct: int, outcome: "ChoiceOutcome") -> str:
        low, high = wilson_interval(n_correct, n_done)
        share = 100 * (n_correct / n_done)
        return f"{n_done}\t{share:.8f}%\t[{100 * low:.4f}%, {100 * high:.4f}%]\n"

    text = _whole(path)
    items = read_hellaswag(text, str(path))
    run = _Run(load(), path, {"hellaswag": text}, n_tasks, settings)
    with run.going_on(line, "\ntask\tacc_norm\t95% confidence interval\n") as common:
        result = hellaswag(run.scorer, run.tokenizer, items, n_tasks=n_tasks, **common)
    run.finish(result, "\n")


def run_winogrande(
    load: Callable[[], "LLM"], path: Path, n_tasks: int, settings: TaskSettings
) -> None:
    """The score of a comma-separated file, of which `n_tasks`, or for 0 all, are drawn."""
    from rfjax.evals.tasks.winogrande import n_unread, read_winogrande, winogrande

    def line(n_done: int, n_correct: int, outcome: "ChoiceOutcome") -> str:
        first, second = (_number(score, 10, 6) for score in outcome.scores)
        chosen = f"{first}  {second}  {outcome.choice + 1}  {outcome.right[0] + 1}"
        return f"{n_done}\t{100.0 * n_correct / n_done:.4f}\t{chosen}\n"

    text = _whole(path)
    items = read_winogrande(text, str(path))
    if n_unread(text):
        note(
            f"{path}: the last line is not read, as llama-perplexity does not read it either; "
            "end the file with an empty line to have it scored"
        )
    run = _Run(load(), path, {"winogrande": text}, n_tasks, settings)
    with run.going_on(line, "") as common:
        result = winogrande(run.scorer, run.tokenizer, items, n_tasks=n_tasks or None, **common)
    end = "\n"
    if result.n_tasks >= _LEAST_FOR_SCORE:
        end += f"Final Winogrande score({result.n_tasks} tasks): {_percent(result)}\n"
    run.finish(result, end)


def run_multiple_choice(
    load: Callable[[], "LLM"], path: Path, n_tasks: int, settings: TaskSettings
) -> None:
    """The score of a binary file, of which `n_tasks`, or for 0 all, are drawn."""
    from rfjax.evals.tasks.multiple_choice import multiple_choice
    from rfjax.evals.tasks.multiple_choice_file import read_multiple_choice

    def line(n_done: int, n_correct: int, outcome: "ChoiceOutcome") -> str:
        return f"{n_done}\t{100.0 * n_correct / n_done:.8f}\n"

    data = _bytes(path)
    items = read_multiple_choice(data, str(path), n_tasks=n_tasks or None)
    run = _Run(load(), path, {"multiple_choice": data}, n_tasks, settings)
    with run.going_on(line, "\ntask\tacc_norm\n") as common:
        result = multiple_choice(run.scorer, run.tokenizer, items, **common)
    chance = _plus_minus(result.random_accuracy, result.random_stderr)
    run.finish(result, f"\nFinal result: {_percent(result)}\nRandom chance: {chance}\n")


class _Run:
    """One of the commands: what was asked, and what its output has in common with the others."""

    def __init__(
        self,
        llm: "LLM",
        path: Path,
        tasks: dict[str, str | bytes],
        n_tasks: int,
        settings: TaskSettings,
    ):
        """`tasks` is the file by the name of the measurement."""
        if llm.tokenizer is None:
            raise RequestError(f"{llm.model.path} has no tokenizer, and tasks are texts")
        from rfjax.evals.records.provenance import text_hash

        self.tokenizer, self.scorer = llm.tokenizer, llm.scorer()
        self._model, self._path, self._n_tasks, self._settings = llm.model, path, n_tasks, settings
        # A likelihood does not depend on how many tasks are drawn: that is no part of it.
        self._about = {name: text_hash(data) for name, data in tasks.items()}
        self._about |= {"n_ctx": settings.n_ctx, "batch_invariant": True}
        self._n_kept, self._start = 0, 0.0

    @contextlib.contextmanager
    def going_on(self, line: Line, start: str) -> Iterator[dict[str, Any]]:
        """Arguments that the three functions share: the journal, and what prints a line for each
        task in order and shows how many are done."""
        settings, done, correct = self._settings, itertools.count(1), 0
        with (
            opened_journal(
                settings.journal, self._model, self._about, quiet=settings.quiet
            ) as journal,
            running_output(printing=not settings.json, start=start) as tell,
        ):
            self._n_kept = 0 if journal is None else len(journal)
            self._start = time.perf_counter()  # hashing for the journal is over

            def on_task(n_done: int, n_tasks: int, outcomes: Sequence["ChoiceOutcome"]) -> None:
                nonlocal correct
                lines = []
                for outcome in outcomes:
                    correct += outcome.correct
                    lines.append(line(next(done), correct, outcome))
                tell(n_done, n_tasks, "", "".join(lines))

            yield {"n_ctx": settings.n_ctx, "journal": journal, "on_task": on_task}

    def finish(self, result: "Result", end: str) -> None:
        """The lines at the end, or all as JSON; and what was left out."""
        seconds = time.perf_counter() - self._start
        if self._settings.json:
            self._write_json(result, seconds)
        else:
            write(end)
        for unfit in result.too_long:
            note(unfit.reason)
        if result.n_too_long:
            total = result.n_tasks + result.n_too_long
            note(f"{result.n_too_long} of {total} tasks are too long and not counted in the score")
        if not self._settings.quiet:
            what = f"{result.n_tasks} tasks in {seconds:.2f} s"
            if self._n_kept:  # a rate would say nothing
                note(f"{what}, the journal's likelihoods not computed again")
            else:
                rate = f"{result.n_tasks / seconds:.1f} tasks/s"
                note(f"{what}: {rate}, tokenization and compilation included")

    def _write_json(self, result: "Result", seconds: float) -> None:
        from rfjax.evals.records.provenance import with_provenance

        names = {"model": self._model.path, "file": str(self._path)}
        figures = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
        chosen = {**self._about, "n_tasks": self._n_tasks}
        write_json(with_provenance({**names, **figures, "seconds": seconds}, self._model, chosen))


def _percent(result: "MultipleChoiceResult | WinoGrandeResult") -> str:
    return _plus_minus(result.accuracy, result.stderr)


def _plus_minus(share: float, error: float) -> str:
    """In percent; multiplied in f32, as llama-perplexity does it, so that no digit differs."""
    return " +/- ".join(_number(float(np.float32(100) * np.float32(x))) for x in (share, error))


def _number(value: float, width: int = 0, digits: int = 4) -> str:
    """As C prints it; 0/0 has a sign on the processors that llama-perplexity mostly runs on."""
    return f"{'-nan' if math.isnan(value) else f'{value:.{digits}f}':>{width}}"


def _whole(path: Path) -> str:
    """The text of a file, with the newline at its end that `read_text` takes off."""
    return read_text(path) + "\n"


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RequestError(
            f"{path}: cannot be read ({error.strerror}); expected a binary file of tasks"
        ) from error
