"""Multiple choice: binary files, written and read, faults in them, and the score."""

import dataclasses
import math
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.choice_goldens import InventedScorer, Letters, multiple_choice_items

from rfjax.errors import RequestError
from rfjax.evals.tasks.multiple_choice import multiple_choice, share
from rfjax.evals.tasks.multiple_choice_file import (
    Answers,
    MultipleChoiceItem,
    read_multiple_choice,
    write_multiple_choice,
)
from rfjax.evals.tasks.task_sampling import draw_scaled

ITEM = MultipleChoiceItem("Who?", Answers(("me", "yoü"), (0, 1)), Answers(("x",), (1,)))


def contents(items):
    return [(item.question, item.single, item.several) for item in items]


def test_the_bytes_of_a_file():
    mc1 = struct.pack("<II2sI4s2i", 2, 2, b"me", 4, "yoü".encode(), 0, 1)
    mc2 = struct.pack("<II1si", 1, 1, b"x", 1)
    task = struct.pack("<I4s", 4, b"Who?") + mc1 + mc2
    expected = struct.pack("<3I", 2, 12, 12 + len(task)) + task + task
    assert write_multiple_choice([ITEM, ITEM]) == expected
    items = read_multiple_choice(expected, "t.bin")
    assert contents(items) == contents([ITEM, ITEM])
    assert [item.place for item in items] == [
        "t.bin, task 1 (offset 12)",
        f"t.bin, task 2 (offset {12 + len(task)})",
    ]


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@st.composite
def _answers(draw):
    n = draw(st.integers(1, 5))
    texts = draw(st.lists(_TEXT, min_size=n, max_size=n))
    labels = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n).filter(any))
    return Answers(tuple(texts), tuple(labels))


@given(
    st.lists(st.builds(MultipleChoiceItem, _TEXT, _answers(), _answers()), min_size=1, max_size=5)
)
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read(items):
    data = write_multiple_choice(items)
    assert contents(read_multiple_choice(data)) == contents(items)
    for n_tasks in range(1, len(items) + 2):
        drawn = draw_scaled(len(items), n_tasks)
        read = read_multiple_choice(data, n_tasks=n_tasks)
        assert contents(read) == contents(items[index] for index in drawn)
        assert [item.number for item in read] == [index + 1 for index in drawn]


def test_every_truncated_file_is_refused():
    data = write_multiple_choice([ITEM, ITEM])
    for size in range(len(data)):
        with pytest.raises(RequestError, match=r"^t\.bin.*truncated"):
            read_multiple_choice(data[:size], "t.bin")


def test_offsets_count_only_where_tasks_are_drawn():
    """As in llama-perplexity, which reads all tasks one after the other."""
    data = bytearray(write_multiple_choice([ITEM, ITEM]))
    data[4:12] = struct.pack("<2I", 2**31, 2**31)
    assert len(read_multiple_choice(bytes(data))) == 2
    with pytest.raises(RequestError, match="truncated, or no file of multiple-choice tasks"):
        read_multiple_choice(bytes(data), n_tasks=1)


def raw(question=b"Q", answers=(b"a", b"b"), labels=(1, 0), count=None):
    """A file of one task, whatever is wrong with it."""
    task = struct.pack("<I", len(question)) + question
    task += struct.pack("<I", len(answers) if count is None else count)
    for answer in answers:
        task += struct.pack("<I", len(answer)) + answer
    task += struct.pack(f"<{len(labels)}i", *labels) + struct.pack("<I", 0)
    return struct.pack("<2I", 1, 8) + task


@pytest.mark.parametrize(
    "data, message",
    [
        (struct.pack("<I", 0), "t.bin: it says that it has no tasks"),
        (
            b"%PDF-1.7 and so on",
            "t.bin: the places of 1178882085 tasks would be .* truncated, or no",
        ),
        (raw(question=b""), r"t.bin, task 1 \(offset 8\): its question is empty"),
        (raw(answers=(), labels=()), "task 1 .*: it has no answer"),
        (raw(answers=(b"a", b"")), "task 1 .*: answer 2 is empty"),
        (raw(labels=(0, 0)), r"task 1 .*: the labels of its answers are \[0, 0\], expected a 1"),
        (
            raw(count=101),
            "task 1 .*: it says that it has 101 mc1 answers, expected no more than 100",
        ),
        (raw(count=2**32 - 1), "it has 4294967295 mc1 answers"),
        (
            raw(question=b"caf\xe9!"),
            "the question is not UTF-8: byte 0xe9 at offset 15 of the file",
        ),
        (raw(answers=(b"a", b"\xff")), "mc1 answer 2 is not UTF-8: byte 0xff"),
    ],
)
def test_bad_tasks_are_named(data, message):
    with pytest.raises(RequestError, match=message):
        read_multiple_choice(data, "t.bin")


def test_a_bad_task_is_named_by_its_place_among_all():
    good, bad = write_multiple_choice([ITEM])[8:], raw(question=b"")[8:]
    data = struct.pack("<3I", 2, 12, 12 + len(good)) + good + bad
    with pytest.raises(RequestError, match=rf"task 2 \(offset {12 + len(good)}\): its question"):
        read_multiple_choice(data)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"question": ""}, "task 2: its question is empty"),
        ({"single": Answers(("a",), (1, 0))}, "task 2: got 1 mc1 answers and 2 labels"),
        ({"several": Answers(("a",) * 101, (1,) * 101)}, "task 2: got 101 mc2 answers"),
        ({"single": Answers(("a",), (2,))}, r"task 2: the labels of its answers are \[2\]"),
    ],
)
def test_what_could_not_be_evaluated_is_not_written(change, message):
    with pytest.raises(RequestError, match=message):
        write_multiple_choice([ITEM, dataclasses.replace(ITEM, **change)])


def test_a_number_of_tasks_that_is_none_is_refused():
    with pytest.raises(RequestError, match="number of multiple-choice tasks: got 0"):
        read_multiple_choice(write_multiple_choice([ITEM]), n_tasks=0)


def test_any_right_answer_counts_and_chance_is_that_of_all_answers_together():
    items = read_multiple_choice(write_multiple_choice(multiple_choice_items()))
    result = multiple_choice(InventedScorer(), Letters(), items)
    assert result.n_tasks == len(items) == 110
    assert result.n_correct == sum(one.correct for one in result.outcomes)
    assert len(result.outcomes[31].right) == 2
    for outcome in result.outcomes:
        assert outcome.choice == outcome.scores.index(max(outcome.scores))
        assert outcome.correct == (outcome.choice in outcome.right)
    chance = 110 / sum(len(item.single.answers) for item in items)
    assert result.random_accuracy == pytest.approx(chance)
    assert result.random_stderr == pytest.approx(math.sqrt(chance * (1 - chance) / 109))
    assert result.accuracy == pytest.approx(result.n_correct / 110)


def test_shares_are_f32_and_have_an_error_from_two_tasks_on():
    assert share(1, 3, 3) == (0.3333333432674408, pytest.approx(1 / 3, rel=1e-6))
    assert share(1, 1, 1)[0] == 1.0 and math.isnan(share(1, 1, 1)[1])
    assert all(math.isnan(value) for value in share(0, 0, 0))
