"""Cutting special tokens out of texts."""

import numpy as np
import pytest

from rfjax.tokenizer.partition import Partition
from rfjax.tokenizer.vocabulary import read_vocabulary


def partition(tokens, types, **keys):
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tuple(tokens),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": (),
    }
    return Partition(read_vocabulary(metadata | keys))


NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4


@pytest.mark.parametrize(
    ("text", "hidden", "parsed"),
    [
        ("", [], []),
        ("plain", ["plain"], ["plain"]),
        ("a<c>b<u>c", ["a<c>b", 2, "c"], ["a", 1, "b", 2, "c"]),
        ("<u><u>", [2, 2], [2, 2]),
        ("<c>", ["<c>"], [1]),
        ("<unk>", ["<unk>"], [3]),
        ("<c", ["<c"], ["<c"]),
    ],
)
def test_user_defined_tokens_match_and_others_on_request(text, hidden, parsed):
    cut = partition(["a", "<c>", "<u>", "<unk>"], [NORMAL, CONTROL, USER_DEFINED, UNKNOWN])
    assert cut(text, parse_special=False) == hidden
    assert cut(text, parse_special=True) == parsed


def test_longer_tokens_are_cut_out_first_wherever_they_are():
    cut = partition(["xa", "abc", "ab"], [USER_DEFINED] * 3)
    assert cut("xabc", parse_special=False) == ["x", 1]
    assert cut("xaab", parse_special=False) == [0, 2]


def test_length_counts_bytes():
    cut = partition(["ab", "é", "béé"], [USER_DEFINED] * 3)
    assert cut("abéé", parse_special=False) == ["a", 2]


def test_whitespace_to_the_right_is_swallowed():
    tokens, types = ["</s>", "<|user|>", "<s>"], [CONTROL] * 3
    cut = partition(tokens, types, **{"general.name": "phi-3"})
    assert cut("<|user|>\n a <s> b</s> \t", parse_special=True) == [1, "a ", 2, " b", 0]
    assert cut("<|user|>  <|user|>", parse_special=True) == [1, 1]


def test_whitespace_to_the_left_is_swallowed():
    cut = partition(["<mask>"], [CONTROL], **{"tokenizer.ggml.pre": "jina-v2-code"})
    assert cut(" a  <mask> b <mask>", parse_special=True) == [" a", 0, " b", 0]
    assert cut("  <mask>", parse_special=True) == [0]


def test_no_break_space_is_not_swallowed():
    cut = partition(["<mask>"], [CONTROL], **{"tokenizer.ggml.pre": "jina-v2-code"})
    assert cut("a\u00a0<mask>", parse_special=True) == ["a\u00a0", 0]
