"""Streaming: what is shown token by token is the text, and never half a character."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rfjax.errors import RequestError
from rfjax.tokenizer.tokenizer import Tokenizer
from rfjax.tokenizer.vocabulary import read_vocabulary

PROPERTY = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
KINDS = ("spm", "bpe", "wpm", "ugm", "gemma")


@pytest.fixture
def tokenizers(spm_metadata, bpe_metadata, wpm_metadata, ugm_metadata, gemma_metadata):
    all_metadata = (spm_metadata, bpe_metadata, wpm_metadata, ugm_metadata, gemma_metadata)
    return {
        kind: Tokenizer(read_vocabulary(metadata), {})
        for kind, metadata in zip(KINDS, all_metadata, strict=True)
    }


@PROPERTY
@given(data=st.data(), kind=st.sampled_from(KINDS), skip=st.booleans(), continuation=st.booleans())
def test_streaming_agrees_with_decoding_the_whole(tokenizers, data, kind, skip, continuation):
    tokenizer = tokenizers[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    options = {"skip_special_tokens": skip, "continuation": continuation}
    stream = tokenizer.stream(**options)
    shown = "".join(stream.push(id_) for id_ in ids) + stream.flush()
    assert shown == tokenizer.decode(ids, **options)
    at = data.draw(st.integers(0, len(ids)))
    stream = tokenizer.stream(**options)
    assert stream.push(ids[:at]) + stream.push(ids[at:]) + stream.flush() == shown
    assert tokenizer.decode(np.array(ids, np.int64), **options) == shown  # one by one


def test_what_is_no_token_is_refused_among_tokens_decoded_before(tokenizers):
    tokenizer = tokenizers["bpe"]
    tokenizer.decode([0, 1, 2])
    for ids in ([1, True], [1, 2.0], [-1, 1], [1, tokenizer.vocab_size]):
        with pytest.raises(RequestError, match="token id"):
            tokenizer.stream().push(ids)


def test_a_character_is_shown_when_it_is_whole(tokenizers):
    for kind in ("spm", "bpe", "gemma"):
        tokenizer = tokenizers[kind]
        stream = tokenizer.stream(continuation=True)
        ids = tokenizer.encode("🙂☃", add_special_tokens=False)
        shown = [stream.push(id_) for id_ in ids]
        assert "".join(shown) + stream.flush() == tokenizer.decode(ids, continuation=True)
        assert {text.strip() for text in shown} <= {"", "🙂", "☃"}


def test_a_broken_character_is_replaced_at_the_end(tokenizers):
    tokenizer = tokenizers["bpe"]
    ids = tokenizer.encode("☃", add_special_tokens=False)[:2]
    stream = tokenizer.stream()
    assert (stream.push(ids), stream.flush()) == ("", "\ufffd")
    assert tokenizer.decode(ids) == "\ufffd"
    assert tokenizer.decode_bytes(ids) == "☃".encode()[:2]


def test_special_tokens_are_hidden_unless_asked_for(tokenizers):
    tokenizer = tokenizers["bpe"]
    ids = tokenizer.encode("a<tool>b<|im_end|>", parse_special=True)
    assert tokenizer.decode(ids) == "a<tool>b"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "a<tool>b<|im_end|>"
    assert tokenizer.decode_bytes(ids) == b"a<tool>b"
    assert tokenizer.decode_bytes(ids, skip_special_tokens=False) == b"a<tool>b<|im_end|>"


def test_bytes_are_additive(tokenizers):
    tokenizer = tokenizers["spm"]
    left, right = tokenizer.encode("the fox"), tokenizer.encode("größer 你")
    whole = tokenizer.decode_bytes(left + right)
    assert whole == tokenizer.decode_bytes(left) + tokenizer.decode_bytes(right)
    assert whole == " the fox größer 你".encode()


def test_unused_tokens_stand_for_nothing(spm_metadata):
    spm_metadata["tokenizer.ggml.token_type"][-1] = 5
    tokenizer = Tokenizer(read_vocabulary(spm_metadata), {})
    assert tokenizer.decode([tokenizer.vocab_size - 1]) == ""


def test_byte_level_tokens_that_are_plain_text(bpe_metadata):
    tokens = bpe_metadata["tokenizer.ggml.tokens"]
    bpe_metadata["tokenizer.ggml.tokens"] = (*tokens[:-1], "你 好")
    bpe_metadata["tokenizer.ggml.token_type"][-1] = 1
    tokenizer = Tokenizer(read_vocabulary(bpe_metadata), {})
    assert tokenizer.decode([tokenizer.vocab_size - 1]) == "你 好"
