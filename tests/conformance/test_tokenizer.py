"""Token ids of real vocabularies, as llama.cpp gives them."""

import functools
import json
import time

import pytest

from rfjax.tokenizer import load_tokenizer

NAMES = (
    "bert-bge",
    "deepseek-coder",
    "falcon",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
    "phi-3",
    "qwen2",
    "starcoder",
)
SEPARATOR = "\n__ggml_vocab_test__\n"


@pytest.fixture(scope="module")
def tokenizer_of(conformance):
    """The tokenizer of a vocabulary, built once."""

    @functools.cache
    def build(name):
        return load_tokenizer(conformance / "vocab" / f"ggml-vocab-{name}.gguf")

    return build


@pytest.fixture(scope="module", params=NAMES)
def case(request, conformance, tokenizer_of):
    """A tokenizer, the texts and the ids of each."""
    path = conformance / "vocab" / f"ggml-vocab-{request.param}.gguf"
    texts = path.with_suffix(".gguf.inp").read_bytes().decode().split(SEPARATOR)[:-1]
    lines = path.with_suffix(".gguf.out").read_text().splitlines()
    ids = [list(map(int, line.split())) for line in lines]
    return tokenizer_of(request.param), texts, ids


def test_ids(case):
    tokenizer, texts, expected = case
    assert len(texts) == len(expected) == 46
    assert [tokenizer.encode(text, add_special_tokens=False) for text in texts] == expected


def test_round_trip(case):
    tokenizer, texts, _ = case
    if tokenizer.kind == "wpm":
        pytest.skip("BERT vocabularies normalise text")
    assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts


def test_streaming(case):
    tokenizer, texts, _ = case
    for text in texts:
        ids = tokenizer.encode(text)
        stream = tokenizer.stream()
        shown = "".join(stream.push(id_) for id_ in ids) + stream.flush()
        assert shown == tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("bert-bge", {0}),
        ("deepseek-coder", {32014}),
        ("falcon", {11}),
        ("gpt-2", {50256}),
        ("llama-bpe", {128001, 128009}),
        ("llama-spm", {2}),
        ("phi-3", {2, 32000, 32007}),
        ("qwen2", {128247, 151643, 151645}),
        ("starcoder", {0, 4}),
    ],
)
def test_tokens_that_end_a_generation(tokenizer_of, name, ends):
    assert tokenizer_of(name).eog_ids == ends


def test_greedy_text(conformance):
    folder = conformance / "perplexity"
    golden = json.loads((folder / "stories260K-greedy.json").read_text())
    tokenizer = load_tokenizer(folder / "stories260K.gguf")
    assert tokenizer.decode(golden["ids"]) == golden["expected_text"]


def test_a_large_vocabulary_is_built_in_two_seconds(conformance):
    start = time.process_time()
    tokenizer = load_tokenizer(conformance / "vocab" / "ggml-vocab-llama-bpe.gguf")
    assert time.process_time() - start < 2.0
    assert tokenizer.vocab_size == 128256


@pytest.mark.parametrize("name", ["llama-bpe", "llama-spm", "bert-bge", "falcon"])
@pytest.mark.parametrize("unit", ["a", " ", "\n", "ab1 !é你"])
def test_long_texts_take_linear_time(tokenizer_of, name, unit):
    tokenizer = tokenizer_of(name)
    text = unit * (200_000 // len(unit))
    start = time.process_time()
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert time.process_time() - start < 5.0
    if tokenizer.kind != "wpm":
        assert tokenizer.decode(ids) == text
