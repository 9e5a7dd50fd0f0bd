"""Encoding and decoding with every kind of vocabulary, through the public class."""

import subprocess
import sys

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rfjax.errors import ModelFormatError, RequestError, UnsupportedError
from rfjax.tokenizer import Tokenizer, load_tokenizer
from rfjax.tokenizer.bpe import MAX_RUN
from rfjax.tokenizer.chat import read_templates
from rfjax.tokenizer.vocabulary import read_vocabulary

# The fixtures are values, made once a test and never changed by it.
PROPERTY = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="▁")
SNIPPETS = ["the", " the", "  ", "\n\n", "\r\n", "'s", "'LL", "123", "é", "你好", "🙂", "\0", "fox"]
# Without sentencepiece's own mark for a space, which decodes as a space.
TEXTS = st.lists(st.sampled_from(SNIPPETS) | st.text(CHARACTERS, max_size=6)).map("".join)


def build(metadata) -> Tokenizer:
    return Tokenizer(read_vocabulary(metadata), read_templates(metadata))


@pytest.fixture
def spm(spm_metadata):
    return build(spm_metadata)


@pytest.fixture
def bpe(bpe_metadata):
    return build(bpe_metadata)


@pytest.fixture
def wpm(wpm_metadata):
    return build(wpm_metadata)


@pytest.fixture
def ugm(ugm_metadata):
    return build(ugm_metadata)


@pytest.fixture
def gemma(gemma_metadata):
    return build(gemma_metadata)


def pieces(tokenizer, text, **kwargs):
    return [tokenizer.id_to_piece(i) for i in tokenizer.encode(text, **kwargs)]


class TestSpm:
    @PROPERTY
    @given(text=TEXTS)
    def test_ids_are_those_of_sentencepiece(self, spm, spm_processor, text):
        # The library's own normaliser puts the prefix before an empty text too.
        expected = spm_processor.EncodeAsIds(text) if text else []
        assert spm.encode(text, add_special_tokens=False) == expected

    @PROPERTY
    @given(text=TEXTS)
    def test_decoding_gives_the_text_back(self, spm, text):
        assert spm.decode(spm.encode(text)) == text

    def test_bos_is_added_by_default(self, spm):
        assert spm.encode("")[0] == spm.bos_id
        assert spm.encode("", add_special_tokens=False) == []
        assert (spm.add_bos, spm.add_eos) == (True, False)

    def test_the_file_decides_what_is_added(self, spm_metadata):
        spm_metadata |= {
            "tokenizer.ggml.add_bos_token": False,
            "tokenizer.ggml.add_eos_token": True,
        }
        tokenizer = build(spm_metadata)
        assert tokenizer.encode("") == [tokenizer.eos_id]

    def test_characters_out_of_vocabulary_are_bytes(self, spm):
        assert pieces(spm, "☃", add_special_tokens=False)[1:] == ["<0xE2>", "<0x98>", "<0x83>"]

    def test_control_tokens_are_text_unless_parsed(self, spm):
        assert spm.eos_id not in spm.encode("a</s>b")
        ids = spm.encode("a</s>b", add_special_tokens=False, parse_special=True)
        assert spm.eos_id in ids
        assert spm.decode(ids, skip_special_tokens=False) == "a</s>b"

    def test_no_space_prefix_when_the_file_says_so(self, spm_metadata):
        tokenizer = build(spm_metadata | {"tokenizer.ggml.add_space_prefix": False})
        assert not pieces(tokenizer, "the", add_special_tokens=False)[0].startswith("▁")
        assert tokenizer.decode(tokenizer.encode(" the")) == " the"

    def test_a_continuation_keeps_its_leading_space(self, spm):
        ids = spm.encode("the", add_special_tokens=False)
        assert (spm.decode(ids), spm.decode(ids, continuation=True)) == ("the", " the")

    def test_a_vocabulary_without_bytes_uses_unknown(self, spm_metadata):
        tokens = spm_metadata["tokenizer.ggml.tokens"]
        spm_metadata["tokenizer.ggml.tokens"] = tuple(t.replace("<0x", "<no") for t in tokens)
        spm_metadata["tokenizer.ggml.token_type"][3:259] = 5
        tokenizer = build(spm_metadata)
        assert tokenizer.encode("☃", add_special_tokens=False)[-1] == tokenizer.unk_id

    def test_a_vocabulary_without_bytes_and_unknown_is_refused(self, spm_metadata):
        tokens = spm_metadata["tokenizer.ggml.tokens"]
        spm_metadata["tokenizer.ggml.tokens"] = tuple(t.replace("<0x", "<no") for t in tokens)
        spm_metadata["tokenizer.ggml.token_type"][3:259] = 5
        vocabulary = read_vocabulary(spm_metadata)
        del vocabulary.special_ids["unknown"]
        with pytest.raises(ModelFormatError, match="neither a token for the byte <0x00>"):
            Tokenizer(vocabulary, {})

    def test_tokens_that_are_no_text_do_no_harm(self, spm_metadata):
        tokens = spm_metadata["tokenizer.ggml.tokens"]
        spm_metadata["tokenizer.ggml.tokens"] = (*tokens[:-1], "\udce2\udc98")
        tokenizer = build(spm_metadata)
        assert tokenizer.decode(tokenizer.encode("the fox")) == "the fox"
        assert tokenizer.decode_bytes([tokenizer.vocab_size - 1]) == b"\xe2\x98"


class TestBpe:
    @PROPERTY
    @given(text=TEXTS)
    def test_decoding_gives_the_text_back(self, bpe, text):
        assert bpe.decode(bpe.encode(text)) == text

    def test_merges_go_by_rank_and_stop_at_words(self, bpe):
        assert pieces(bpe, "the the") == ["t", "he", "Ġthe"]
        assert pieces(bpe, "1234") == ["1", "2", "3", "4"]  # qwen2: every digit is a word

    def test_the_pre_tokenizer_decides_the_words(self, bpe_metadata):
        tokenizer = build(bpe_metadata | {"tokenizer.ggml.pre": "llama-bpe"})
        assert pieces(tokenizer, "1234", add_special_tokens=False) == ["123", "4"]
        assert tokenizer.add_bos

    def test_a_whole_word_wins_where_merges_are_ignored(self, bpe_metadata):
        tokens = bpe_metadata["tokenizer.ggml.tokens"]
        bpe_metadata["tokenizer.ggml.tokens"] = (*tokens, "zebra")
        types = bpe_metadata["tokenizer.ggml.token_type"]
        bpe_metadata["tokenizer.ggml.token_type"] = np.append(types, np.int32(1))
        assert len(build(bpe_metadata).encode("zebra")) == 5
        llama = build(bpe_metadata | {"tokenizer.ggml.pre": "llama-bpe"})
        assert pieces(llama, "zebra", add_special_tokens=False) == ["zebra"]

    def test_user_defined_tokens_always_match_and_control_tokens_on_request(self, bpe):
        assert "<tool>" in pieces(bpe, "a<tool>b")
        assert "<|im_end|>" not in pieces(bpe, "a<|im_end|>b")
        assert pieces(bpe, "a<|im_end|>b", parse_special=True) == ["a", "<|im_end|>", "b"]

    def test_missing_bytes_are_dropped_and_keep_words_apart(self, bpe_metadata):
        tokens = list(bpe_metadata["tokenizer.ggml.tokens"])
        tokens[tokens.index("ċ")] = "[gone]"  # the vertical tab
        tokenizer = build(bpe_metadata | {"tokenizer.ggml.tokens": tuple(tokens)})
        assert pieces(tokenizer, "l\vl") == ["l", "l"]

    def test_a_merge_that_makes_no_token_is_ignored(self, bpe_metadata, caplog):
        bpe_metadata["tokenizer.ggml.merges"] += ("q q",)
        assert pieces(build(bpe_metadata), "qq") == ["q", "q"]
        assert "1 of 12 merges" in caplog.text

    def test_a_merge_of_one_part_is_refused(self, bpe_metadata):
        bpe_metadata["tokenizer.ggml.merges"] += ("qq",)
        with pytest.raises(ModelFormatError, match="'qq'; expected two parts"):
            build(bpe_metadata)


class TestGemma:
    def test_spaces_newlines_and_bytes(self, gemma):
        assert gemma.add_bos  # whatever the file says
        assert pieces(gemma, "the ox\n\n\n☃", add_special_tokens=False) == [
            *("the", "▁", "ox", "\n", "\n", "\n"),
            *("<0xE2>", "<0x98>", "<0x83>"),
        ]
        assert pieces(gemma, "a\n\nb", add_special_tokens=False) == ["a", "\n\n", "b"]

    @PROPERTY
    @given(text=TEXTS)
    def test_decoding_gives_the_text_back(self, gemma, text):
        assert gemma.decode(gemma.encode(text)) == text


class TestWpm:
    def test_longest_match_from_the_left(self, wpm):
        assert pieces(wpm, "The fox jumped, cafés!") == [
            *("[CLS]", "▁the", "▁fox", "▁jump", "ed", "[UNK]", "▁cafe", "s", "▁!", "[SEP]"),
        ]

    def test_specials_are_added_only_on_request(self, wpm):
        assert pieces(wpm, "the", add_special_tokens=False) == ["▁the"]

    def test_chinese_characters_and_punctuation_stand_alone(self, wpm):
        assert pieces(wpm, "a你a'a", add_special_tokens=False) == ["▁a", "▁你", "▁a", "▁'", "▁a"]

    def test_case_and_accents_stay_where_the_file_says_so(self, wpm_metadata):
        tokenizer = build(wpm_metadata | {"tokenizer.ggml.normalizer.lowercase": False})
        assert pieces(tokenizer, "The café the", add_special_tokens=False) == [
            *("[UNK]", "[UNK]", "▁the"),
        ]

    def test_long_words_match_as_short_ones_do(self, wpm):
        for n in (10, 199, 200, 201, 5000):
            assert pieces(wpm, "a" * n, add_special_tokens=False) == ["▁a"] + ["a"] * (n - 1)
        assert pieces(wpm, "a" * 500 + "z the", add_special_tokens=False) == ["[UNK]", "▁the"]

    def test_control_characters_vanish(self, wpm):
        assert pieces(wpm, "t\0he\u200b", add_special_tokens=False) == ["▁the"]

    def test_decoding_joins_words(self, wpm):
        assert wpm.decode(wpm.encode("the fox jumped")) == "the fox jumped"


class TestUgm:
    @PROPERTY
    @given(text=st.text(st.sampled_from("thequickbrown fx.,é你"), max_size=30))
    def test_ids_are_those_of_sentencepiece(self, ugm, ugm_processor, text):
        expected = ugm_processor.EncodeAsIds(text)
        assert ugm.encode(text, add_special_tokens=False) == expected

    def test_text_is_normalised(self, ugm):
        assert ugm.encode("ｔｈｅ   ｆｏｘ") == ugm.encode("the fox")

    def test_eos_is_added_by_default(self, ugm):
        assert ugm.encode("the")[-1] == ugm.eos_id
        assert ugm.decode(ugm.encode("the fox")) == "the fox"

    def test_an_unknown_token_is_required(self, ugm_metadata):
        vocabulary = read_vocabulary(ugm_metadata)
        del vocabulary.special_ids["unknown"]
        with pytest.raises(ModelFormatError, match="needs an unknown token"):
            Tokenizer(vocabulary, {})

    def test_a_broken_charsmap_is_refused(self, ugm_metadata):
        charsmap = ugm_metadata["tokenizer.ggml.precompiled_charsmap"]
        with pytest.raises(ModelFormatError, match="precompiled_charsmap cannot be read"):
            build(ugm_metadata | {"tokenizer.ggml.precompiled_charsmap": charsmap[:2]})


class TestPublicErrors:
    @pytest.mark.parametrize("text", ["\ud800", "ab\udce9"])
    def test_lone_surrogates(self, bpe, text):
        with pytest.raises(RequestError, match="lone surrogate"):
            bpe.encode(text)

    def test_text_is_a_string(self, bpe):
        with pytest.raises(RequestError, match="is a str; got bytes"):
            bpe.encode(b"abc")

    @pytest.mark.parametrize("char", [" ", "a"])
    def test_runs_that_the_patterns_cannot_stand(self, bpe, char):
        assert bpe.decode(bpe.encode(char * 10**5)) == char * 10**5
        with pytest.raises(RequestError, match="from character 1; at most 2097152"):
            bpe.encode(("\n" if char == "a" else "x") + char * (MAX_RUN + 1))

    @pytest.mark.parametrize("id_", [-1, 10**6])
    def test_ids_outside_the_vocabulary(self, bpe, id_):
        for call in (bpe.decode, bpe.decode_bytes, bpe.stream().push):
            with pytest.raises(RequestError, match="outside the vocabulary of 270"):
                call([id_])
        with pytest.raises(RequestError, match="outside the vocabulary"):
            bpe.id_to_piece(id_)

    @pytest.mark.parametrize("id_", [1.0, "a", True])
    def test_ids_are_integers(self, bpe, id_):
        with pytest.raises(RequestError, match="token ids are integers"):
            bpe.decode([id_])


class TestLoading:
    def test_from_a_path(self, tmp_path, bpe_metadata):
        path = tmp_path / "vocab.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tokenizer_model(bpe_metadata["tokenizer.ggml.model"])
        writer.add_tokenizer_pre(bpe_metadata["tokenizer.ggml.pre"])
        writer.add_token_list(bpe_metadata["tokenizer.ggml.tokens"])
        writer.add_token_types(bpe_metadata["tokenizer.ggml.token_type"].tolist())
        writer.add_token_merges(bpe_metadata["tokenizer.ggml.merges"])
        writer.add_chat_template([{"name": "rag", "template": "r"}])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        tokenizer = load_tokenizer(path)
        assert tokenizer.encode("the 12") == build(bpe_metadata).encode("the 12")
        assert dict(tokenizer.chat_templates) == {"rag": "r"}
        assert repr(tokenizer) == "Tokenizer(kind='bpe', vocab_size=270)"

    def test_a_file_without_vocabulary(self, tmp_path):
        path = tmp_path / "none.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        with pytest.raises(UnsupportedError, match=r"none\.gguf: .*feed token ids instead"):
            load_tokenizer(str(path))

    def test_importing_is_cheap(self):
        code = (
            "import sys, rfjax.tokenizer;"
            "print(sorted({'jax', 'sentencepiece', 'tokenizers', 'jinja2'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        assert done.stdout.strip() == b"[]"


class TestIdentity:
    def test_pieces_and_ids_are_inverse(self, spm):
        for id_ in range(spm.vocab_size):
            assert spm.piece_to_id(spm.id_to_piece(id_)) == id_
        assert spm.piece_to_id("no such token") is None

    def test_special_ids(self, bpe, wpm):
        assert bpe.id_to_piece(bpe.bos_id) == "<|im_start|>"
        assert bpe.eog_ids == {bpe.eos_id}
        assert [wpm.bos_id, wpm.sep_id, wpm.unk_id, wpm.pad_id] == [2, 3, 1, 0]
        assert wpm.eos_id is None
