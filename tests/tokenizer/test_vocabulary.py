"""Reading `tokenizer.ggml.*`: defaults, special tokens, and what is refused."""

import numpy as np
import pytest

from rfjax.errors import ModelFormatError, UnsupportedError
from rfjax.tokenizer.vocabulary import read_vocabulary


def bpe(tokens, types=None, **keys):
    """A BPE vocabulary of just these tokens."""
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tuple(tokens),
        "tokenizer.ggml.merges": (),
    }
    if types is not None:
        metadata["tokenizer.ggml.token_type"] = np.array(types, np.int32)
    return metadata | {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


class TestWithoutVocabulary:
    @pytest.mark.parametrize("model", [None, "test", "no_vocab", "none"])
    def test_token_ids_must_be_fed(self, model):
        metadata = {} if model is None else {"tokenizer.ggml.model": model}
        with pytest.raises(UnsupportedError, match="feed token ids instead"):
            read_vocabulary(metadata)

    @pytest.mark.parametrize("model", ["rwkv", "plamo2", "hybriddna"])
    def test_other_kinds_are_refused_by_name(self, model):
        with pytest.raises(UnsupportedError, match=f"'{model}'; supported: bert, gemma4, gpt2"):
            read_vocabulary({"tokenizer.ggml.model": model})


class TestMalformed:
    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("model", 3, r"tokenizer.ggml.model is 3 \(int\); expected a string"),
            ("pre", True, "pre is True .*expected a string"),
            ("tokens", "abc", "tokens is 'abc' .*expected an array of strings"),
            ("tokens", (1, 2), "expected an array of strings"),
            ("tokens", (), "tokens is empty"),
            ("tokens", ("a", "b", "a"), "'a' more than once"),
            ("tokens", np.arange(3), "an array of int64; expected an array of strings"),
            ("merges", None, "merges is missing"),
            ("token_type", np.ones(1, np.int32), "1 values for 2 tokens"),
            ("token_type", np.ones(2, np.float32), "an array of float32; expected an array of int"),
            ("token_type", np.array([6, 1], np.int32), "of type byte and its text is 'a'"),
            ("scores", np.zeros(1, np.float32), "1 values for 2 tokens"),
            ("scores", np.array([0, np.nan], np.float32), "holds NaN"),
            ("scores", (0.0, 0.0), "expected an array of numbers"),
            ("add_bos_token", 1, "add_bos_token is 1 .*expected a boolean"),
            ("eos_token_id", "1", "eos_token_id is '1' .*expected an integer"),
            ("eos_token_id", True, "expected an integer"),
            ("precompiled_charsmap", np.zeros(3, np.int32), "an array of int32; expected bytes"),
        ],
    )
    def test_the_key_is_named(self, key, value, message):
        metadata = bpe(["a", "b"]) | {f"tokenizer.ggml.{key}": value}
        with pytest.raises(ModelFormatError, match=message):
            read_vocabulary(metadata)

    @pytest.mark.parametrize("role", ["bos", "eos"])
    def test_a_token_to_add_must_exist(self, role):
        with pytest.raises(ModelFormatError, match=f"{role}_token_id is missing or out of range"):
            read_vocabulary(bpe(["a"], **{f"add_{role}_token": True}))

    def test_bert_needs_its_tokens(self):
        metadata = {"tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": ("a",)}
        with pytest.raises(ModelFormatError, match="bos_token_id is missing"):
            read_vocabulary(metadata)


class TestDefaults:
    def test_sentencepiece(self):
        tokens = ("<unk>", "<s>", "</s>")
        vocabulary = read_vocabulary(
            {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens}
        )
        assert vocabulary.special_ids == {"bos": 1, "eos": 2, "unknown": 0}
        assert vocabulary.add_bos and not vocabulary.add_eos and vocabulary.add_space_prefix
        assert vocabulary.scores.tolist() == [0.0, 0.0, 0.0]

    def test_bpe_has_a_historic_default_that_small_vocabularies_lack(self):
        assert read_vocabulary(bpe("abc")).special_ids == {}
        assert read_vocabulary(bpe("abcdefghijkl")).special_ids == {"bos": 11, "eos": 11}
        glm = read_vocabulary(bpe("abcdefghijkl", pre="glm4"))
        assert glm.special_ids == {"eos": 11}

    def test_integer_scores_are_numbers(self):
        scores = read_vocabulary(bpe("ab", scores=np.array([-1, -2], np.int32))).scores
        assert scores.tolist() == [-1.0, -2.0]

    def test_empty_tokens_get_names(self):
        vocabulary = read_vocabulary(bpe(["a", "", ""]))
        assert vocabulary.texts == ("a", "[EMPTY_1]", "[EMPTY_2]")

    def test_ids_out_of_range_are_ignored_and_no_token_is_silent(self, caplog):
        keys = {"eos_token_id": 9, "padding_token_id": 0xFFFFFFFF}
        assert read_vocabulary(bpe("ab", **keys)).special_ids == {}
        assert "eos_token_id is 9 but there are 2 tokens" in caplog.text
        assert "padding" not in caplog.text

    def test_bert_normalises_accents_as_case_unless_told(self):
        metadata = {
            "tokenizer.ggml.model": "bert",
            "tokenizer.ggml.tokens": tuple("abcd"),
            "tokenizer.ggml.bos_token_id": 0,
            "tokenizer.ggml.seperator_token_id": 1,
            "tokenizer.ggml.unknown_token_id": 2,
        }
        lowercase = {"tokenizer.ggml.normalizer.lowercase": False}
        assert read_vocabulary(metadata).strip_accents
        assert not read_vocabulary(metadata | lowercase).strip_accents
        accents = {"tokenizer.ggml.normalizer.strip_accents": True}
        assert read_vocabulary(metadata | lowercase | accents).strip_accents


class TestStripping:
    def test_phi_3_tokens_swallow_what_follows(self):
        tokens = ("<unk>", "<s>", "</s>", "<|user|>", "<|endoftext|>")
        metadata = {
            "general.name": "Phi-3 mini",
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": np.array([2, 3, 4, 3, 3], np.int32),
        }
        vocabulary = read_vocabulary(metadata)
        assert {tokens[i] for i in vocabulary.strip_right} == {"</s>", "<|user|>"}
        assert not read_vocabulary(metadata | {"general.name": "other"}).strip_right

    @pytest.mark.parametrize(
        ("keys", "mask"),
        [
            ({"tokenizer.ggml.pre": "jina-v2-code"}, "<mask>"),
            ({"general.architecture": "nomic-bert-moe"}, "<mask>"),
            ({"general.name": "modern-bert"}, "[MASK]"),
        ],
    )
    def test_masks_swallow_what_precedes(self, keys, mask):
        assert read_vocabulary(bpe(["a", mask], types=[1, 3]) | keys).strip_left == {1}
        assert read_vocabulary(bpe(["a", "b"]) | keys).strip_left == frozenset()
