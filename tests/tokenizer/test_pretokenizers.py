"""The table of BPE pre-tokenizers."""

import pytest
import tokenizers
from tokenizers import pre_tokenizers

from rfjax.errors import UnsupportedError
from rfjax.tokenizer.pretokenizers import DEFAULT, PRE_TOKENIZERS, pre_tokenizer


def split(name, text):
    steps = [
        pre_tokenizers.Split(tokenizers.Regex(step.pattern), step.behavior)
        for step in pre_tokenizer(name).splits
    ]
    words = pre_tokenizers.Sequence(steps).pre_tokenize_str(text)
    assert "".join(word for word, _ in words) == text
    return [word for word, _ in words]


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_every_row_compiles_and_keeps_the_text(name):
    text = "Don't STOP'S café 12345 x_y!! \u3000\t\n\n  你好カナ한국어 1٣½ e\u0301🙂\x00"
    assert split(name, text)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "gpt-2",
            "don't  stop 123!\n\nok",
            ["don", "'t", " ", " stop", " 123", "!", "\n", "\n", "ok"],
        ),
        ("llama-bpe", "DON'T 12345!\n", ["DON", "'T", " ", "123", "45", "!\n"]),
        ("qwen2", "a 123", ["a", " ", "1", "2", "3"]),
        ("starcoder", "a 12", ["a", " ", "1", "2"]),
        ("deepseek-v3", "ab 12345你好.x", ["ab", " ", "123", "45", "你好", ".x"]),
        ("deepseek-llm", "ab, 123\n", ["ab", ",", " ", "123", "\n"]),
        ("deepseek-coder", "ab, 12", ["ab", ",", " ", "1", "2"]),
        ("falcon", "a+b 12345", ["a", "+", "b", " ", "123", "45"]),
        ("default", "a+b 12345", ["a", "+", "b", " ", "123", "45"]),
        ("tekken", "HelloWorld 12", ["Hello", "World", " ", "1", "2"]),
        ("gpt-4o", "it's HelloWorld/\n", ["it's", " Hello", "World", "/\n"]),
        ("bloom", "ab,cd e", ["ab", ",", "cd", " e"]),
        ("tiny_aya", "1234567", ["1", "234", "567"]),
        ("afmoe", "a1234", ["a", "1", "234"]),
        ("superbpe", "a b 12345", ["a b ", "12", "345"]),
        ("kimi-k2", "你好ab's 12345", ["你好", "ab's", " ", "123", "45"]),
        ("gemma4", "a b\n\nc", ["a b", "\n\n", "c"]),
        ("chameleon", "IMGIMGABZ a!!", ["IMGIMGABZ", " a", "!", "!"]),
        ("ufakzeka", "a'da 1", ["a", "'da", " ", "1"]),
        ("qwen35", "e\u0301a", ["e\u0301a"]),
    ],
)
def test_words(name, text, words):
    assert split(name, text) == words


def test_the_long_s_is_no_contraction():
    assert split("llama-bpe", "a'ſ") == ["a", "'ſ"]
    assert split("llama-bpe", "'ſx") == ["'ſx"]


@pytest.mark.parametrize("name", [None, ""])
def test_a_file_that_says_nothing_gets_the_default_and_a_warning(name, caplog):
    assert pre_tokenizer(name) is DEFAULT
    assert "names no BPE pre-tokenizer" in caplog.text


def test_an_unknown_name_is_refused():
    with pytest.raises(UnsupportedError, match=r"'qwen3'\. Did you mean 'qwen\d+'\? Supported: a"):
        pre_tokenizer("qwen3")
