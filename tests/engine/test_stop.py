"""Stop strings are found wherever tokens, characters and bursts end."""

import codecs

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfjax.engine.finish import LengthReached, StopString, StopToken
from rfjax.engine.sampling_params import SamplingParams
from rfjax.engine.stop import StopScanner, TextStream


class Bytes:
    """Token n is the byte n."""

    def __init__(self):
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids):
        return self.utf8.decode(bytes([ids] if isinstance(ids, int) else ids))

    def flush(self):
        return self.utf8.decode(b"", final=True)


def read(text, finish, *, bursts=(1,) * 99, **params):
    """Text shown, tokens counted and the end, of bytes read in bursts of these sizes."""
    stream = TextStream(Bytes(), SamplingParams(**params))
    data = text.encode() if isinstance(text, str) else text
    shown, count, start = "", 0, 0
    for size in bursts:
        last = start + size >= len(data)
        piece = stream.push(tuple(data[start : start + size]), finish if last else None)
        shown, count, start = shown + piece.text, count + piece.n_tokens, start + size
        if last or piece.finish:
            return shown, count, piece.finish
    raise AssertionError("more bursts are needed")


def test_a_stop_string_across_tokens_ends_the_text_before_it():
    assert read("one END two", LengthReached(), stop="END") == ("one ", 7, StopString("END"))
    assert read("one END two", LengthReached(), stop="END", include_stop_str_in_output=True) == (
        "one END",
        7,
        StopString("END"),
    )


def test_what_only_begins_like_a_stop_string_is_shown_in_the_end():
    assert read("abEN", LengthReached(), stop="END") == ("abEN", 4, LengthReached())
    assert read("EEND", LengthReached(), stop="END") == ("E", 4, StopString("END"))


def test_text_that_may_become_a_stop_string_is_held_back():
    stream = TextStream(Bytes(), SamplingParams(stop="END"))
    assert [stream.push((byte,)).text for byte in b"xENyE"] == ["x", "", "", "ENy", ""]


def test_the_string_complete_first_wins_and_of_those_the_longest():
    assert read("xabcd", None, stop=("bcd", "abc"))[0] == "x"
    assert read("xabc", None, stop=("bc", "abc"))[2] == StopString("abc")


def test_a_stop_token_is_not_shown_and_ends_the_text():
    assert read("abE", StopToken(69), stop="END") == ("ab", 3, StopToken(69))
    assert read("abE", StopToken(69)) == ("ab", 3, StopToken(69))


def test_characters_are_shown_whole():
    stream = TextStream(Bytes(), SamplingParams(stop="€"))
    texts = [stream.push((byte,)).text for byte in "é".encode()]
    assert texts == ["", "é"]
    assert read("aé€b", LengthReached(), stop="€") == ("aé", 6, StopString("€"))
    assert read(b"a\xe2\x82", LengthReached(), stop="b") == ("a\ufffd", 3, LengthReached())


def test_stop_strings_are_not_looked_for_in_the_first_min_tokens():
    assert read("END END", LengthReached(), stop="END", min_tokens=2) == (
        "END ",
        7,
        StopString("END"),
    )


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    text=st.text("abé", max_size=12),
    stop=st.lists(st.text("abé", min_size=1, max_size=4), min_size=1, max_size=3),
    bursts=st.lists(st.integers(1, 5), min_size=30, max_size=30),
)
def test_the_sizes_of_bursts_do_not_matter(text, stop, bursts):
    alone = read(text, LengthReached(), stop=tuple(stop))
    assert read(text, LengthReached(), bursts=bursts, stop=tuple(stop)) == alone
    found = [text.index(string) for string in stop if string in text]
    if isinstance(alone[2], StopString):
        assert text.startswith(alone[0] + alone[2].string)
    else:
        assert not found
        assert alone[0] == text


@pytest.mark.parametrize("text", ["", "a"])
def test_a_scanner_without_strings_holds_nothing(text):
    assert StopScanner(()).push(text) == (StopScanner(()), text, None)
