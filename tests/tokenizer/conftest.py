"""Small vocabularies of every kind, as the metadata of a GGUF file, trained or written here."""

import io
from typing import Any

import numpy as np
import pytest
import sentencepiece

TEXT = """The quick brown fox jumps over the lazy dog. It's 1234 o'clock, isn't it? They've gone.
We'll see: naïve café, größer, 你好世界, 한국어, emoji 🙂👍. Numbers 3.14 and 2,718.
    def f(x):\n        return x + 1\n\nA tab\there; two  spaces, three   spaces.
She sells sea shells by the sea shore. Peter Piper picked a peck of pickled peppers."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def train_sentencepiece(model_type: str) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("\n") * 4),
        model_writer=model,
        vocab_size=400 if model_type == "bpe" else 90,
        model_type=model_type,
        byte_fallback=model_type == "bpe",
        normalization_rule_name="identity" if model_type == "bpe" else "nmt_nfkc",
        remove_extra_whitespaces=model_type != "bpe",
        minloglevel=3,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture(scope="session")
def spm_processor() -> sentencepiece.SentencePieceProcessor:
    """The library's own tokenizer of the SPM vocabulary: the reference."""
    return train_sentencepiece("bpe")


@pytest.fixture(scope="session")
def ugm_processor() -> sentencepiece.SentencePieceProcessor:
    """The library's own tokenizer of the unigram vocabulary."""
    return train_sentencepiece("unigram")


def sentencepiece_metadata(processor: sentencepiece.SentencePieceProcessor) -> dict[str, Any]:
    ids = range(processor.vocab_size())
    types = [
        UNKNOWN
        if processor.IsUnknown(i)
        else CONTROL
        if processor.IsControl(i)
        else BYTE
        if processor.IsByte(i)
        else NORMAL
        for i in ids
    ]
    return {
        "tokenizer.ggml.tokens": tuple(processor.IdToPiece(i) for i in ids),
        "tokenizer.ggml.scores": np.array([processor.GetScore(i) for i in ids], np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.bos_token_id": processor.bos_id(),
        "tokenizer.ggml.eos_token_id": processor.eos_id(),
        "tokenizer.ggml.unknown_token_id": processor.unk_id(),
    }


@pytest.fixture
def spm_metadata(spm_processor) -> dict[str, Any]:
    return sentencepiece_metadata(spm_processor) | {"tokenizer.ggml.model": "llama"}


@pytest.fixture
def ugm_metadata(ugm_processor) -> dict[str, Any]:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(ugm_processor.serialized_model_proto())
    charsmap = np.frombuffer(proto.normalizer_spec.precompiled_charsmap, np.uint8)
    return sentencepiece_metadata(ugm_processor) | {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.ggml.remove_extra_whitespaces": True,
        "tokenizer.ggml.precompiled_charsmap": charsmap,
    }


@pytest.fixture
def bpe_metadata() -> dict[str, Any]:
    """Byte-level BPE with a few merges, two control tokens and one user-defined token."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = [chr(code) for code in printable] + [chr(0x100 + i) for i in range(68)]
    merges = ["Ġ t", "h e", "Ġt he", "l l", "Ġ Ġ", "1 2", "12 3", "' s", "Ġ f", "o x", "Ċ Ċ"]
    tokens = alphabet + [merge.replace(" ", "") for merge in merges]
    special = ["<|im_start|>", "<|im_end|>", "<tool>"]
    types = [NORMAL] * len(tokens) + [CONTROL, CONTROL, USER_DEFINED]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": (*tokens, *special),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": tuple(merges),
        "tokenizer.ggml.bos_token_id": len(tokens),
        "tokenizer.ggml.eos_token_id": len(tokens) + 1,
    }


@pytest.fixture
def wpm_metadata() -> dict[str, Any]:
    words = ["▁the", "▁fox", "▁jump", "ed", "s", "▁cafe", "▁!", "▁'", "▁s", "▁你", "▁a", "a"]
    tokens = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words)
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([CONTROL] * 5 + [NORMAL] * len(words), np.int32),
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
    }


@pytest.fixture
def gemma_metadata() -> dict[str, Any]:
    """BPE over sentencepiece's spelling: raw text, bytes for the rest."""
    letters = [*"thefoxab▁\n"]
    merges = ["t h", "th e", "▁ the", "o x"]
    made = [merge.replace(" ", "") for merge in merges]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<bos>", "<eos>", *bytes_, *letters, *made, "\n\n"]
    types = [CONTROL] * 2 + [BYTE] * 256 + [NORMAL] * (len(letters) + len(made) + 1)
    return {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": tuple(tokens),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": tuple(merges),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
    }
