"""Replies as they stream: reasoning shown with its delimiters, or kept out of the text."""

import itertools

import numpy as np
import pytest

from rfjax.engine.chat_stream import ReplyReader, chat_stream, check_reasoning
from rfjax.engine.output import StreamOutput
from rfjax.errors import RequestError
from rfjax.tokenizer.tokenizer import Tokenizer
from rfjax.tokenizer.vocabulary import read_vocabulary

USER = {"role": "user", "content": "Hi"}
TEMPLATE = "{{ messages[0].content }}[/INST]"
SPECIAL = ("[THINK]", "[/THINK]", "</s>")


def make(kind):
    """Tokens are characters, and the delimiters of one kind."""
    texts = [*map(chr, range(0x21, 0x7F)), "Ġ", "Ċ", "Ã", "©", *SPECIAL, "<think>", "</think>"]
    types = [1] * (len(texts) - 5) + [3] * 3 + [kind] * 2
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tuple(texts),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": (),
        "tokenizer.ggml.eos_token_id": texts.index("</s>"),
    }
    return Tokenizer(read_vocabulary(metadata), {"default": TEMPLATE})


@pytest.fixture(scope="module", params=[3, 4], ids=["control", "user defined"])
def tokenizer(request):
    return make(request.param)


def pieces_of(tokenizer, reply, sizes=(1,), cut=None, sample=0):
    """A reply as an engine streams it, the text cut to so many characters by a stop string."""
    ids = tokenizer.encode(reply, parse_special=True)
    decoder = tokenizer.stream(continuation=True)
    given, at = 0, 0
    for size in itertools.cycle(sizes):
        new, at = ids[at : at + size], at + size
        text = decoder.push(new)
        text = text if cut is None else text[: max(0, cut - given)]
        given += len(text)
        reason = "stop" if at >= len(ids) else None
        yield StreamOutput(text, new, [0.0] * len(new), reason, sample=sample)
        if reason is not None:
            return


def read(tokenizer, pieces, mode, template=None):
    prompt = tokenizer.chat_prompt([USER], template=template)
    pieces = list(pieces)
    found = list(chat_stream(pieces, tokenizer, prompt, mode))
    assert [piece.token_ids for piece in found] == [piece.token_ids for piece in pieces]
    return "".join(p.text for p in found), "".join(p.reasoning for p in found)


@pytest.mark.parametrize("sizes", [(1,), (2, 1, 5), (99,)])
@pytest.mark.parametrize("opening, closing", [("[THINK]", "[/THINK]"), ("<think>", "</think>")])
def test_reasoning_is_shown_or_hidden(tokenizer, opening, closing, sizes):
    reply = f"{opening}ab é\n{closing}\nc é!</s>"
    pieces = list(pieces_of(tokenizer, reply, sizes))
    assert read(tokenizer, pieces, "hide") == ("c é!", "ab é")
    assert read(tokenizer, pieces, "show") == (reply.removesuffix("</s>"), "")


def test_a_reply_without_reasoning_is_as_it_was(tokenizer):
    for mode in ("show", "hide"):
        assert read(tokenizer, pieces_of(tokenizer, " c <é>"), mode) == (" c <é>", "")


def test_a_reply_may_begin_inside(tokenizer):
    template = TEMPLATE + "{{ '<think>\n' }}"
    pieces = list(pieces_of(tokenizer, "a</think>b"))
    assert read(tokenizer, pieces, "hide", template) == ("b", "a")
    assert read(tokenizer, pieces, "show", template) == ("<think>\na</think>b", "")


@pytest.mark.parametrize("cut", range(6))
def test_a_text_that_a_stop_string_cut_short(tokenizer, cut):
    """The tokens go on behind what is shown, and their delimiters are not put in there."""
    text, reasoning = read(tokenizer, pieces_of(tokenizer, "[THINK]ab[/THINK]cd", cut=cut), "hide")
    assert "abcd".startswith(reasoning + text)
    assert (reasoning, text) == ("abcd"[:2][:cut], "cd"[: max(0, cut - 2)])


def test_a_text_that_lags_behind_its_tokens():
    tokenizer = make(3)
    ids = tokenizer.encode("[THINK]ab[/THINK]cd", parse_special=True)
    pieces = [StreamOutput("a", ids, [], None), StreamOutput("bcd", [], [], "length")]
    assert read(tokenizer, pieces, "hide") == ("cd", "ab")
    assert read(tokenizer, pieces, "show") == ("[THINK]ab[/THINK]cd", "")


def test_samples_are_read_apart(tokenizer):
    first = list(pieces_of(tokenizer, "<think>a</think>b"))
    second = list(pieces_of(tokenizer, "cdefg", sample=1))
    mixed = [piece for pair in itertools.zip_longest(first, second) for piece in pair if piece]
    prompt = tokenizer.chat_prompt([USER])
    found = list(chat_stream(mixed, tokenizer, prompt, "hide"))
    assert "".join(piece.text for piece in found if piece.sample == 0) == "b"
    assert "".join(piece.text for piece in found if piece.sample == 1) == "cdefg"


def test_leaving_early_ends_the_reply(tokenizer):
    ended = []

    def pieces():
        try:
            yield from pieces_of(tokenizer, "abc")
        finally:
            ended.append(True)

    stream = chat_stream(pieces(), tokenizer, tokenizer.chat_prompt([USER]), "hide")
    assert next(stream).text == "a"
    stream.close()
    assert ended


def test_other_modes_are_refused(tokenizer):
    with pytest.raises(RequestError, match="expected 'show' or 'hide'"):
        ReplyReader(tokenizer, tokenizer.chat_prompt([USER]), "mute")
    with pytest.raises(RequestError, match="got 'mute', expected 'show' or 'hide'"):
        check_reasoning("mute")
