"""HellaSwag: the file, the draw, the mean in f64, the interval."""

import math

import pytest
from support.choice_goldens import FOLDER, InventedScorer, Letters, invented

from rfjax.errors import RequestError
from rfjax.evals.scoring.continuation import Continuation
from rfjax.evals.tasks.hellaswag import hellaswag, read_hellaswag, wilson_interval
from rfjax.evals.tasks.task_sampling import draw_uniform

TASK = "A cat\n2\nsits.\nruns.\nflies.\nreads.\n"


def test_a_file_is_read():
    items = read_hellaswag(TASK + "Él, —\n 0 \n日\nb\n\nd", "tasks.txt")
    assert [item.number for item in items] == [1, 2]
    assert items[0].context == "A cat" and items[0].label == 2
    assert items[0].endings == ("sits.", "runs.", "flies.", "reads.")
    assert items[1].endings == ("日", "b", "", "d") and items[1].label == 0
    assert items[1].place == "tasks.txt, task 2 (line 7)"


@pytest.mark.parametrize("end", ["", "\n"])
def test_an_empty_line_at_the_end_is_no_line(end):
    assert len(read_hellaswag(TASK + end)) == 1


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "tasks.txt: got 0 lines, expected six"),
        (TASK + "one more\n", "tasks.txt: got 7 lines"),
        (TASK + TASK.replace("\n2\n", "\n4\n"), r"tasks.txt, line 8: got '4' for .* task 2's"),
        (TASK.replace("2", "two"), "tasks.txt, line 2: got 'two'.*expected 0, 1, 2 or 3"),
        (TASK.replace("2", "-1"), "line 2: got '-1'"),
        (TASK.replace("2", ""), "line 2: got ''"),
    ],
)
def test_bad_lines_are_named(text, message):
    with pytest.raises(RequestError, match=message):
        read_hellaswag(text, "tasks.txt")


def test_tasks_are_drawn_and_scored_by_the_mean_over_their_ends():
    items = read_hellaswag((FOLDER / "hellaswag.txt").read_text(encoding="utf-8"))
    result = hellaswag(InventedScorer(), Letters(), items, n_tasks=5)
    drawn = [items[index] for index in draw_uniform(30, 5)]
    assert [outcome.number for outcome in result.outcomes] == [item.number for item in drawn]
    for outcome, item in zip(result.outcomes, drawn, strict=True):
        texts = [(1, *map(ord, f"{item.context} {ending}")) for ending in item.endings]
        start = len(item.context) + 2
        while len({text[: start + 1] for text in texts}) == 1:
            start += 1
        means = [
            invented(Continuation(text[:start], text[start:])).astype(float).mean()
            for text in texts
        ]
        assert outcome.scores == pytest.approx(means, rel=1e-12)
        assert outcome.right == (item.label,)
    assert result.n_tasks == 5 and result.accuracy == result.n_correct / 5
    assert result.interval == wilson_interval(result.n_correct, 5)


def test_all_tasks_are_taken_where_more_are_asked_for():
    items = read_hellaswag(TASK * 3)
    for n_tasks in (None, 3, 400):
        result = hellaswag(InventedScorer(), Letters(), items, n_tasks=n_tasks)
        assert sorted(outcome.number for outcome in result.outcomes) == [1, 2, 3]
    with pytest.raises(RequestError, match="number of HellaSwag tasks: got 0"):
        hellaswag(InventedScorer(), Letters(), items, n_tasks=0)


def test_without_a_task_that_fits_there_is_no_accuracy():
    scorer = InventedScorer()
    scorer.max_inputs = 4
    result = hellaswag(scorer, Letters(), read_hellaswag(TASK * 2))
    assert math.isnan(result.accuracy) and result.interval == (0.0, 1.0)
    assert result.n_too_long == len(result.too_long) == 2 and not result.outcomes


@pytest.mark.parametrize(
    "n_correct, n_tasks, low, high",
    [
        (47, 200, 18.1574, 29.8414),
        (1, 1, 20.6549, 100.0),
        (1, 2, 9.4531, 90.5469),
        (0, 1, 0, 79.3451),
    ],
)
def test_the_interval_is_llama_perplexitys(n_correct, n_tasks, low, high):
    interval = wilson_interval(n_correct, n_tasks)
    assert [100 * bound for bound in interval] == pytest.approx([low, high], abs=5e-5)
