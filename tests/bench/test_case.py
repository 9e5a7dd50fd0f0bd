"""Cases: llama-bench's names and lists, and what is refused."""

import pathlib

import pytest

from rfjax.bench.case import Case, cases, numbers
from rfjax.errors import ConfigError

GOLDEN = pathlib.Path(__file__).parent / "goldens" / "llama-bench.md"


def test_cases_and_names_are_those_of_llama_bench():
    # What `llama-bench -p 16 -n 4 -pg 8,4 -d 0,8` printed.
    rows = GOLDEN.read_text(encoding="utf-8").splitlines()[2:]
    names = [row.split("|")[-3].strip() for row in rows]
    found = cases(prompts=(16,), generations=(4,), pairs=((8, 4),), depths=(0, 8))
    assert [case.name for case in found] == names


def test_several_sequences_and_scoring():
    found = cases(prompts=(0,), generations=(32,), batches=(1, 8), scores=(512, 4096))
    assert [case.name for case in found] == ["tg32", "tg32 x8", "score512 x4", "score4096"]
    assert [case.n_tokens for case in found] == [32, 256, 2048, 4096]
    assert [case.n_context for case in found] == [32, 32, 512, 4096]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("512", (512,)),
        ("0,128, 4", (0, 128, 4)),
        ("1-3", (1, 2, 3)),
        ("128-512+128", (128, 256, 384, 512)),
        ("1-9*2", (1, 2, 4, 8)),
    ],
)
def test_lists_of_numbers(text, expected):
    assert numbers(text) == expected


@pytest.mark.parametrize("text", ["", "x", "1,,2", "-1", "1-2-3", "1-8*1", "0-8*2", "1-8+0"])
def test_what_is_no_list_of_numbers(text):
    with pytest.raises(ConfigError):
        numbers(text)


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"n_prompt": -1},
        {"n_gen": 1, "n_seqs": 0},
        {"n_score": 3},
        {"n_score": 64, "n_gen": 1},
    ],
)
def test_cases_that_make_no_sense(sizes):
    with pytest.raises(ConfigError):
        Case(**sizes)


def test_nothing_to_measure():
    with pytest.raises(ConfigError, match="nothing to measure"):
        cases(prompts=(0,), generations=(0,))
