"""Sentencepiece vocabularies (SPM and unigram), run by the sentencepiece library."""

from __future__ import annotations

import numpy as np

from rfjax.errors import ModelFormatError
from rfjax.tokenizer.vocabulary import Attribute, Vocabulary

SPACE = "\u2581"
BYTE_TEXTS = tuple(f"<0x{byte:02X}>" for byte in range(256))
# Private text: stands for tokens that no text may match, and for sentencepiece's own unknown.
_RESERVED = "\U0010fffd"


class SpmModel:
    """Byte-pair merging by score, with bytes for what the vocabulary lacks.

    Every token may come out of a merge whatever its type, as in llama.cpp; the file's types only
    matter to `Partition`. So the model proto calls them all normal, except the bytes.
    """

    def __init__(self, vocabulary: Vocabulary):
        proto = _new_proto()
        proto.trainer_spec.model_type = proto.trainer_spec.BPE
        proto.trainer_spec.byte_fallback = all(text in vocabulary.ids for text in BYTE_TEXTS)
        if not proto.trainer_spec.byte_fallback and "unknown" not in vocabulary.special_ids:
            missing = next(text for text in BYTE_TEXTS if text not in vocabulary.ids)
            raise ModelFormatError(
                f"the vocabulary has neither a token for the byte {missing} nor an unknown token; "
                "expected all 256 bytes or tokenizer.ggml.unknown_token_id"
            )
        piece = proto.SentencePiece
        kinds = np.full(len(vocabulary.texts), piece.NORMAL)
        if proto.trainer_spec.byte_fallback:
            kinds[[vocabulary.ids[text] for text in BYTE_TEXTS]] = piece.BYTE
        _add_pieces(proto, vocabulary, kinds, vocabulary.scores)
        self._run = _Processor(proto, vocabulary)

    def encode(self, text: str) -> list[int]:
        """Tokenizes plain text; a space prefix is the caller's to add."""
        return self._run(text.replace(" ", SPACE))


class UgmModel:
    """Unigram: the segmentation of the highest total score, after sentencepiece's normalisation."""

    def __init__(self, vocabulary: Vocabulary):
        proto = _new_proto()
        proto.trainer_spec.model_type = proto.trainer_spec.UNIGRAM
        normalizer = proto.normalizer_spec
        normalizer.precompiled_charsmap = vocabulary.charsmap
        merge = vocabulary.remove_extra_whitespaces
        normalizer.remove_extra_whitespaces = merge
        normalizer.add_dummy_prefix = vocabulary.add_space_prefix or merge
        normalizer.escape_whitespaces = True
        if "unknown" not in vocabulary.special_ids:
            raise ModelFormatError(
                "a unigram vocabulary needs an unknown token; tokenizer.ggml.unknown_token_id is "
                "missing or out of range"
            )
        piece = proto.SentencePiece
        matched = Attribute.NORMAL | Attribute.USER_DEFINED | Attribute.UNUSED
        kinds = np.where(vocabulary.attributes & matched, piece.NORMAL, piece.CONTROL)
        defined = (vocabulary.attributes & Attribute.USER_DEFINED) != 0
        _add_pieces(proto, vocabulary, kinds, np.where(defined, 0.0, vocabulary.scores))
        self._run = _Processor(proto, vocabulary)

    def encode(self, text: str) -> list[int]:
        """Tokenizes plain text; the normaliser adds the space prefix."""
        return self._run(text)


class _Processor:
    """A sentencepiece processor whose own unknown token is mapped to the file's."""

    def __init__(self, proto, vocabulary: Vocabulary):
        import sentencepiece

        unknown = proto.pieces.add()
        unknown.piece = _RESERVED * 2
        unknown.type = proto.SentencePiece.UNKNOWN
        self._own_unknown = len(vocabulary.texts)
        self._unknown = vocabulary.special_ids.get("unknown")
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(proto.SerializeToString())
        except RuntimeError as error:
            raise ModelFormatError(
                f"sentencepiece refuses the vocabulary: {error}; convert the model again"
            ) from error

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = self._processor.EncodeAsIds(text)
        if self._own_unknown in ids:
            assert self._unknown is not None
            return [self._unknown if id_ == self._own_unknown else id_ for id_ in ids]
        return ids


def _new_proto():
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    normalizer = proto.normalizer_spec
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = False
    normalizer.remove_extra_whitespaces = False
    normalizer.escape_whitespaces = False
    return proto


def _add_pieces(proto, vocabulary: Vocabulary, kinds: np.ndarray, scores: np.ndarray) -> None:
    add = proto.pieces.add
    for i, (text, score, kind) in enumerate(
        zip(vocabulary.texts, scores.tolist(), kinds.tolist(), strict=True)
    ):
        if not text.isascii() and not _is_valid(text):
            text = f"{_RESERVED}{i}{_RESERVED}"
        add(piece=text, score=score, type=kind)


def _is_valid(text: str) -> bool:
    """Whether a token is text at all: files may hold stray bytes, read as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
