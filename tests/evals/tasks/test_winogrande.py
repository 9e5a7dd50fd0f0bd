"""WinoGrande: the file, what of a sentence is scored, and llama-perplexity's faults."""

import math

import pytest
from support.choice_goldens import FOLDER, InventedScorer, Letters

from rfjax.errors import RequestError
from rfjax.evals.scoring.continuation import Continuation
from rfjax.evals.tasks.choice_task import ChoiceTask
from rfjax.evals.tasks.task_sampling import draw_scaled
from rfjax.evals.tasks.winogrande import (
    WinoGrandeItem,
    _task,
    n_unread,
    read_winogrande,
    winogrande,
)

LINE = "0,Ann met Bea so _ smiled.,Ann,Bea,1\n"


def ids(text: str) -> tuple[int, ...]:
    return (1, *map(ord, text))


def task(before, first, second, after, *, exact=False, bos=True) -> ChoiceTask:
    item = WinoGrandeItem(1, "line 1", before, after, (first, second), 0)
    return _task(Letters(bos=bos), item, exact=exact)


def test_a_file_is_read():
    text = LINE + '1,"Él, who met _, left ""it"".",the "big, old" one,B,2\r\n' + LINE + "\n"
    items = read_winogrande(text, "tasks.csv")
    assert [item.number for item in items] == [1, 2, 3]
    assert items[0] == WinoGrandeItem(
        1, "tasks.csv, line 1", "Ann met Bea so ", " smiled.", ("Ann", "Bea"), 0
    )
    assert (items[1].before, items[1].after) == ("Él, who met ", ', left ""it"".')
    assert items[1].choices == ('the "big, old" one', "B") and items[1].answer == 1


def test_the_last_line_is_read_when_an_empty_one_follows_or_when_asked():
    for end, n_read, unread in (("", 2, 1), ("\n", 3, 0), ("\n\n", 3, 0)):
        assert len(read_winogrande(LINE * 3 + end)) == n_read
        assert len(read_winogrande(LINE * 3 + end, last_line=True)) == 3
        assert n_unread(LINE * 3 + end) == unread
    assert len(read_winogrande((LINE * 3).rstrip("\n"))) == 2


@pytest.mark.parametrize(
    "line, message",
    [
        ("0,Ann _ Bea", r"line 2: got '0,Ann _ Bea' with 1 commas outside of quotes"),
        ('0,"Ann _ Bea,A,B,1', "line 2: .* with 1 commas"),
        ("", "line 2: got '' with 0 commas"),
        ("0,Ann met Bea,Ann,Bea,1", "line 2: got the sentence 'Ann met Bea', expected an under"),
        ("0,Ann _ Bea,Ann,Bea,3", "line 2: got the answer '3', expected 1 or 2"),
        ("0,Ann _ Bea,Ann,Bea,", "line 2: got the answer ''"),
        ("0,Ann _ Bea,Ann,Bea,12", "line 2: got the answer '12'"),
        ("0,Ann _ Bea,Ann,Bea,A", "line 2: got the answer 'A'"),
        ('0,"Ann" _ Bea,Ann,Bea,1', "line 2: got the sentence .* expected a quote at its end"),
    ],
)
def test_bad_lines_are_named(line, message):
    """llama-perplexity leaves them out."""
    with pytest.raises(RequestError, match="tasks.csv, " + message):
        read_winogrande(f"{LINE}{line}\n{LINE}\n", "tasks.csv")


@pytest.mark.parametrize("text", ["", "\n", LINE])
def test_a_file_without_a_task_says_why(text):
    with pytest.raises(RequestError, match=r"tasks\.csv: got no task.*last line that no empty one"):
        read_winogrande(text, "tasks.csv")


def test_what_follows_the_choice_is_scored_less_the_last_token():
    one = task("It is ", "me", "you", " again")
    assert [choice.parts for choice in one.choices] == [
        (Continuation(ids("It is me"), ids(" agai")[1:]),),
        (Continuation(ids("It is you"), ids(" agai")[1:]),),
    ]
    assert [choice.divisor for choice in one.choices] == [5, 5]
    assert one.n_tokens == 7 + len("me again") + len("you again")


def test_the_choice_is_scored_where_little_follows():
    one = task("It is ", "me", "you", ".", exact=True)
    assert [choice.parts for choice in one.choices] == [
        (Continuation(ids("It is "), ids("me")[1:]),),
        (Continuation(ids("It is "), ids("you")[1:]),),
    ]


def test_its_first_token_is_then_scored_after_the_first_sentence():
    one = task("It is ", "me", "you", ".")
    assert one.choices[0] == task("It is ", "me", "you", ".", exact=True).choices[0]
    assert one.choices[1].parts == (
        Continuation(ids("It is me."), (ord("y"),)),
        Continuation(ids("It is y"), ids("ou")[1:]),
    )
    assert one.choices[1].divisor == 3


def test_a_single_token_is_not_dropped():
    one = task("It is ", "a", "b", "", exact=True)
    assert [choice.parts[0].tokens for choice in one.choices] == [(ord("a"),), (ord("b"),)]


def test_more_tokens_are_misread_where_the_sentences_differ_later_than_the_choices():
    """Second choice "a", and "a a" begins what follows it, too: one token more each."""
    one = task("It is ", "a ab", "a", " ab, then")
    assert one.choices[0].parts == (Continuation(ids("It is a ab"), ids(" ab, the")[1:]),)
    whole, common = ids("It is a ab ab, then"), len(ids("It is a ab"))
    start = len(ids("It is a"))
    early = common - start
    assert one.choices[1].parts[: early + 1] == tuple(
        Continuation(whole[: len(whole) - early + i], (ids("It is a ab, then")[start + i],))
        for i in range(early + 1)
    )
    exact = task("It is ", "a ab", "a", " ab, then", exact=True)
    assert exact.choices[1].parts == (Continuation(ids("It is a"), ids(" ab, the")[1:]),)


def test_rows_of_other_tasks_are_not_repeated():
    """What follows the second choice agrees with the first for longer than the first goes on."""
    after = " ab" * 10 + "cdef"
    early = task("_", "a" + " ab" * 7, "a", after)
    assert [len(choice.parts) for choice in early.choices] == [1, 1]


def test_choices_without_tokens_of_their_own_have_no_score():
    scorer = InventedScorer()
    items = [WinoGrandeItem(1, "line 1", "It is ", ".", ("x", "x"), 1)]
    outcome = winogrande(scorer, Letters(), items).outcomes[0]
    assert all(math.isnan(score) for score in outcome.scores)
    assert outcome.choice == 1 and outcome.correct and not scorer.asked


def test_a_sentence_that_nothing_precedes():
    """No BOS, and the sentences differ at once: the short ones are not scored, the score is 0."""
    short = task("", "x", "y", "!", bos=False)
    assert [choice.parts for choice in short.choices] == [(), ()]
    assert [choice.divisor for choice in short.choices] == [1, 1]
    exact = task("", "x", "y", "!", bos=False, exact=True)
    assert exact.choices[1].parts == (Continuation((ord("y"),), (ord("!"),)),)
    long = task("", "x", "y", " was here", bos=False)
    assert long.choices[1].parts == (Continuation((ord("y"),), tuple(map(ord, " was her"))),)


def test_tasks_are_drawn_as_llama_perplexity_does():
    text = (FOLDER / "winogrande.csv").read_bytes().decode()
    items = read_winogrande(text)
    assert len(items) == 127
    result = winogrande(InventedScorer(), Letters(), items, n_tasks=20)
    drawn = [index + 1 for index in draw_scaled(127, 20)]
    assert [outcome.number for outcome in result.outcomes] == drawn
    whole = winogrande(InventedScorer(), Letters(), items, n_tasks=500)
    assert [outcome.number for outcome in whole.outcomes] == list(range(1, 128))
    share = whole.n_correct / 127
    assert whole.accuracy == pytest.approx(share)
    assert whole.stderr == pytest.approx(math.sqrt(share * (1 - share) / 126))
    with pytest.raises(RequestError, match="number of WinoGrande tasks: got 0"):
        winogrande(InventedScorer(), Letters(), items, n_tasks=0)


def test_equal_scores_count_for_the_second():
    class Even(InventedScorer):
        def score(self, continuations, *, on_scored):
            same = [Continuation((1,), (2,) * len(one.tokens)) for one in continuations]
            super().score(same, on_scored=on_scored)

    items = [WinoGrandeItem(1, "line 1", "It is ", ", is it", ("x", "y"), 0)]
    assert winogrande(Even(), Letters(), items).outcomes[0].choice == 1
