"""Replies are parted into reasoning and answer, however they come in pieces."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfjax.tokenizer.reasoning import TAGS, THINK, Parts, Reasoning, find_reasoning

HARMONY = Reasoning((), harmony=True)
THOUGHT = "<|channel|>analysis<|message|>Say hi.<|end|><|start|>assistant"
ASIDE = "<|channel|>commentary<|message|>Wait.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>Hi!"
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}'
REPLIES = {  # style: reply, reasoning, answer
    "tags": ((THINK,), "<think>\nSay <hi>.\n</think>\n\nHi!", "Say <hi>.", "Hi!"),
    "tags after whitespace": ((THINK,), "\n <think>a</think>b", "a", "b"),
    "none": ((THINK,), "  Hi <think>!</think>", "", "  Hi <think>!</think>"),
    "nothing": ((THINK,), "", "", ""),
    "empty reasoning": ((THINK,), "<think>\n\n</think>\n\nHi!", "", "Hi!"),
    "never closed": ((THINK,), "<think>Hm\n</thin", "Hm\n</thin", ""),
    "opening cut": ((THINK,), "<thi", "", "<thi"),
    "two closings": ((THINK,), "<think>a</think>b</think>c", "a", "b</think>c"),
    "only reasoning": ((THINK,), "<think>a b </think>", "a b", ""),
    "response": (TAGS[:2], "<think>a</think>\n<response>b </response>\n", "a", "b"),
    "no response": (
        TAGS[:2],
        "<think>a</think>\n<resp b </response> c",
        "a",
        "<resp b </response> c",
    ),
    "response without a beginning": (TAGS[:2], "<think>a</think>b</response>", "a", "b</response>"),
    "response in an answer": (
        TAGS[:2],
        "<think>a</think><response>b </response> c </response> ",
        "a",
        "b </response> c",
    ),
    "response cut": (TAGS[:2], "<think>a</think><resp", "a", "<resp"),
    "all": (TAGS, "[THINK]a[/THINK]b", "a", "b"),
    "gemma 4": (TAGS, "<|channel>thought\na\n<channel|>b", "a", "b"),
    "solar": (TAGS[-3:-2], "<|think|>a<|end|><|begin|>assistant<|content|>b<|end|>", "a", "b"),
    "granite 3.2": (
        TAGS,
        "Here is my thought process: a\n\nHere is my response: b",
        "a",
        "b",
    ),
    "harmony": (HARMONY, THOUGHT + FINAL, "Say hi.", "Hi!"),
    "harmony, no reasoning": (HARMONY, FINAL, "", "Hi!"),
    "harmony, no channel": (HARMONY, "<|message|>Hi!", "", "Hi!"),
    "harmony, no header": (HARMONY, "The <b>!", "", "The <b>!"),
    "harmony, cut in a header": (HARMONY, THOUGHT + "<|channel|>fin", "Say hi.", ""),
    "harmony, cut in reasoning": (HARMONY, "<|channel|>analysis<|message|>Say <|e", "Say <|e", ""),
    "harmony, twice": (
        HARMONY,
        THOUGHT + THOUGHT + ASIDE + FINAL,
        "Say hi.\n\nSay hi.",
        "Wait.\n\nHi!",
    ),
    "harmony, header without an end": (
        HARMONY,
        "<|channel|>analysis<|message|>a" + FINAL,
        "a",
        "Hi!",
    ),
    "harmony, a message without a header": (
        HARMONY,
        "<|channel|>analysis<|message|>a<|end|>Hi!<|end|>",
        "a",
        "Hi!",
    ),
    "harmony, call": (HARMONY, THOUGHT + CALL, "Say hi.", "<|start|>assistant" + CALL),
    "harmony, call without a start": (
        HARMONY,
        " to=functions.f<|channel|>commentary<|message|>{}",
        "",
        " to=functions.f<|channel|>commentary<|message|>{}",
    ),
}
CASES = {
    name: (style if isinstance(style, Reasoning) else Reasoning(tuple(style)), *rest)
    for name, (style, *rest) in REPLIES.items()
}


@pytest.mark.parametrize("name", CASES)
def test_a_whole_reply(name):
    reasoning, reply, thought, answer = CASES[name]
    assert reasoning.split(reply) == Parts(thought, answer)


@pytest.mark.parametrize("name", CASES)
def test_a_reply_character_by_character(name):
    reasoning, reply, thought, answer = CASES[name]
    check_pieces(reasoning.splitter(), reply, thought, answer)


@given(st.data())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_pieces_do_not_matter_and_nothing_hidden_flashes(data):
    reasoning = data.draw(st.sampled_from([HARMONY, Reasoning(TAGS), Reasoning((THINK,))]))
    words = ["<think>", "</think>", "<response>", "</response>", " ", "\n", "a", "<", "to="]
    words += ["<|channel|>", "analysis", "final", "<|message|>", "<|end|>", "<|start|>", "[THINK]"]
    reply = "".join(data.draw(st.lists(st.sampled_from(words), max_size=14)))
    whole = reasoning.split(reply)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(reply)), max_size=6)))
    ends = [*cuts, len(reply)]
    pieces = [reply[a:b] for a, b in zip([0, *cuts], ends, strict=True)]
    check_pieces(reasoning.splitter(), pieces, *whole)


def check_pieces(splitter, pieces, thought, answer):
    parts = [*map(splitter.push, pieces), splitter.flush()]
    assert "".join(part.reasoning for part in parts) == thought
    assert "".join(part.answer for part in parts) == answer


def test_a_reply_may_begin_inside():
    reasoning = Reasoning((THINK,))
    opened = reasoning.opened("<|assistant|>\n<think>\n")
    assert opened is THINK
    check_pieces(reasoning.splitter(opened), "\nSay hi.</think>\nHi!", "Say hi.", "Hi!")
    assert reasoning.opened("<think>\n\n</think>\n\n") is None
    assert reasoning.opened("What does <think> mean?<|assistant|>") is None
    assert Reasoning(TAGS).opened("<think>") is TAGS[2]  # as for a reply that begins with it


def test_what_answers_show_comes_at_once():
    splitter = Reasoning((THINK,)).splitter()
    assert splitter.push("Hel") == Parts("", "Hel")
    assert splitter.push("lo") == Parts("", "lo")
    splitter = Reasoning((THINK,)).splitter(THINK)
    assert splitter.push("One <") == Parts("One", "")
    assert splitter.push("two") == Parts(" <two", "")


class TestFinding:
    def test_think_is_always_known(self):
        assert find_reasoning("", ()) == Reasoning((THINK,))

    def test_by_the_template(self):
        found = find_reasoning("[THINK] <think></think> <response></response>", ())
        assert [tags.opening for tags in found.tags] == ["<think>", "<think>", "[THINK]"]
        assert found.tags[1].before == ("<response>",)
        assert not find_reasoning("the <response> tag", ()).tags[1:2]

    def test_by_the_vocabulary(self):
        assert find_reasoning("", ("<seed:think>",)).tags[1].closing == "</seed:think>"
        assert find_reasoning("", ("<|end|>",)).tags == (THINK,)  # of Phi, not of Solar

    def test_harmony(self):
        assert find_reasoning("", ("<|channel|>", "<|message|>")) == HARMONY
        assert find_reasoning("'<|channel|>' '<|message|>'", ()).harmony
        assert not find_reasoning("<|channel|>", ()).harmony
        assert HARMONY.opened("<|start|>assistant") is None
