"""What tasks with choices share: common beginnings, order, limits, journals."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.choice_goldens import InventedScorer, invented

from rfjax.errors import RequestError
from rfjax.evals.records.journal import Journal
from rfjax.evals.scoring.continuation import Continuation
from rfjax.evals.tasks.choice_task import (
    Choice,
    ChoiceTask,
    average,
    common_length,
    endings_task,
    likeliest,
    places_of,
    score_tasks,
)


def task(number, *texts, right=(0,)):
    return endings_task(number, f"task {number}", [tuple(text) for text in texts], right)


def some_tasks(n):
    return [task(i, (1, 2, i, 7), (1, 2, i, 8, 9), (1, 2, i + 1), right=(i % 3,)) for i in range(n)]


def test_the_common_beginning_is_the_context_of_all_choices():
    one = task(1, (1, 5, 6, 7), (1, 5, 8), (1, 5, 6))
    assert [choice.parts for choice in one.choices] == [
        (Continuation((1, 5), (6, 7)),),
        (Continuation((1, 5), (8,)),),
        (Continuation((1, 5), (6,)),),
    ]
    assert [choice.divisor for choice in one.choices] == [2, 1, 1]
    assert one.n_tokens == 2 + 2 + 1 + 1


def test_a_text_that_begins_all_others_keeps_its_last_token():
    """llama-perplexity reads behind its end."""
    one = task(1, (1, 5), (1, 5, 6), (1, 5, 6, 7))
    assert [choice.parts[0].context for choice in one.choices] == [(1,)] * 3
    assert [choice.parts[0].tokens for choice in one.choices] == [(5,), (5, 6), (5, 6, 7)]


def test_equal_texts_are_scored_as_one():
    scorer = InventedScorer()
    outcome = score_tasks(scorer, [task(1, (1, 5), (1, 5))]).scored[0]
    assert len(scorer.asked) == 1
    assert outcome.choice == 0 and outcome.scores[0] == outcome.scores[1]


def test_texts_without_a_common_token_are_refused():
    with pytest.raises(RequestError, match="task 3: its texts begin with different tokens"):
        task(3, (4, 5), (6, 5))
    with pytest.raises(RequestError, match="expected a context that they share"):
        task(3, (4,), (4, 5))


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_common_length_is_the_longest_common_beginning(texts):
    n = common_length(texts)
    assert all(text[:n] == texts[0][:n] and len(text) >= n for text in texts)
    longer = [tuple(text[: n + 1]) for text in texts if len(text) > n]
    assert len(longer) < len(texts) or len(set(longer)) > 1
    assert places_of(texts, n) == n + sum(len(text[n:]) for text in texts)


def test_scores_are_means_and_the_first_of_equals_wins():
    outcome = score_tasks(InventedScorer(), some_tasks(1)).scored[0]
    expected = [
        invented(Continuation((1, 2), (0, 7))).mean(),
        invented(Continuation((1, 2), (0, 8, 9))).mean(),
        invented(Continuation((1, 2), (1,))).mean(),
    ]
    assert outcome.scores == pytest.approx(expected, rel=1e-6)
    assert outcome.choice == int(np.argmax(expected))
    assert outcome.correct == (outcome.choice == 0)
    assert likeliest([-2.0, -1.0, -1.0]) == 1


def test_the_mean_is_summed_in_f32_in_order():
    logprobs = np.asarray([-1e8, -3.0, -3.0], np.float32)  # 3 is less than half a step of 1e8
    assert average(logprobs, 3) == float(np.float32(-1e8) / np.float32(3))
    assert average(logprobs[::-1], 3) == float(np.float32(-100000006) / np.float32(3))
    assert math.isnan(average(np.empty(0, np.float32), 0))
    assert average(np.empty(0, np.float32), 5) == 0.0


def test_outcomes_come_in_order_whatever_order_scores_come_in():
    told = []
    tasks = some_tasks(9)
    outcomes = score_tasks(
        InventedScorer(), tasks, on_task=lambda done, total, new: told.append((done, total, new))
    )
    assert [outcome.number for outcome in outcomes.scored] == list(range(9))
    assert [one for _, _, new in told for one in new] == list(outcomes.scored)
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert told[-1][:2] == (9, 9)


def test_a_task_of_which_nothing_is_scored_is_complete_at_once():
    empty = ChoiceTask(1, "task 1", (Choice((), 0), Choice((), 3)), (0,), 4)
    scored = score_tasks(InventedScorer(), [empty, *some_tasks(1)]).scored
    assert math.isnan(scored[0].scores[0]) and scored[0].scores[1] == 0.0
    scorer = InventedScorer()
    assert len(score_tasks(scorer, [empty]).scored) == 1 and not scorer.asked


def test_what_does_not_fit_the_model_is_left_out_and_named():
    scorer = InventedScorer()
    scorer.max_inputs = 4
    tasks = [*some_tasks(2), task(7, (1, 2, 3, 4, 5, 6), (1, 2)), *some_tasks(1)]
    outcomes = score_tasks(scorer, tasks)
    assert [one.number for one in outcomes.scored] == [0, 1, 0]
    (unfit,) = outcomes.too_long
    assert unfit.number == 7
    assert unfit.reason == (
        "task 7: left out, as it needs a context of 5 tokens, and the model's holds 4"
    )


@pytest.mark.parametrize(
    "n_ctx, n_choices, room", [(1, 2, 256), (64, 4, 256), (65, 4, 512), (64, 5, 512), (128, 2, 512)]
)
def test_a_context_leaves_room_for_four_texts_or_all(n_ctx, n_choices, room):
    """llama-perplexity's cache: -np 4 at least, times -c, in steps of 256."""

    def of_length(n):
        rest = n - 1 - (n_choices - 1)
        return task(1, (1, *range(100, 100 + rest)), *((1, 2 + i) for i in range(n_choices - 1)))

    assert of_length(room).n_tokens == room
    assert not score_tasks(InventedScorer(), [of_length(room)], n_ctx=n_ctx).too_long
    (unfit,) = score_tasks(InventedScorer(), [of_length(room + 1)], n_ctx=n_ctx).too_long
    assert f"take {room + 1} tokens together" in unfit.reason
    assert f"a context of {n_ctx} leaves room for {room}" in unfit.reason


def test_a_context_of_nothing_is_refused():
    with pytest.raises(RequestError, match="n_ctx: got 0"):
        score_tasks(InventedScorer(), some_tasks(1), n_ctx=0)


@pytest.mark.parametrize("most", [0, 1, 7, 20])
def test_an_interrupted_run_goes_on_from_its_journal(tmp_path, most):
    tasks, path, about = some_tasks(8), tmp_path / "journal.jsonl", {"model": "invented"}
    whole = InventedScorer()
    expected = score_tasks(whole, tasks)
    first, second = InventedScorer(most), InventedScorer()
    with Journal.open(path, about) as journal, pytest.raises(KeyboardInterrupt):
        score_tasks(first, tasks, journal=journal)
    with Journal.open(path, about) as journal:
        assert score_tasks(second, tasks, journal=journal) == expected
        assert len(journal) == len(whole.asked)
    assert len(first.asked) == most
    assert not set(first.asked) & set(second.asked)
    third, told = InventedScorer(), []
    with Journal.open(path, about) as journal:
        again = score_tasks(third, tasks, journal=journal, on_task=lambda *now: told.append(now))
    assert again == expected and not third.asked
    assert told == [(8, 8, list(expected.scored))]
