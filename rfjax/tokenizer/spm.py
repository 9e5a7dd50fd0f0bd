"""Sentencepiece vocabularies (SPM), run by the sentencepiece library."""

from __future__ import annotations

from rfjax.errors import ModelFormatError
from rfjax.tokenizer.alphabet import BYTE_TEXTS, RESERVED, SPACE, is_text, unmatchable
from rfjax.tokenizer.vocabulary import Vocabulary


class SpmModel:
    """Byte-pair merging by score, with bytes for what the vocabulary lacks.

    Every token may come out of a merge whatever its type, as in llama.cpp; the file's types only
    matter to `Partition`. So the model proto calls them all normal, except the bytes.
    """

    def __init__(self, vocabulary: Vocabulary):
        import sentencepiece

        self._own_unknown = len(vocabulary.texts)
        self._unknown = vocabulary.special_ids.get("unknown")
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(_model_proto(vocabulary))
        except RuntimeError as error:
            raise ModelFormatError(
                f"sentencepiece refuses the vocabulary: {error}; convert the model again"
            ) from error

    def encode(self, text: str) -> list[int]:
        """Tokenizes plain text; a space prefix is the caller's to add."""
        ids: list[int] = self._processor.EncodeAsIds(text.replace(" ", SPACE))
        if self._own_unknown in ids:
            assert self._unknown is not None  # checked when the proto was built
            return [self._unknown if id_ == self._own_unknown else id_ for id_ in ids]
        return ids


def _model_proto(vocabulary: Vocabulary) -> bytes:
    from sentencepiece import sentencepiece_model_pb2 as schema

    proto = schema.ModelProto()  # pyright: ignore[reportAttributeAccessIssue] - made at run time
    missing = [text for text in BYTE_TEXTS if text not in vocabulary.ids]
    if missing and "unknown" not in vocabulary.special_ids:
        raise ModelFormatError(
            f"the vocabulary has neither a token for the byte {missing[0]} nor an unknown token; "
            "expected all 256 bytes or tokenizer.ggml.unknown_token_id"
        )
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.byte_fallback = not missing
    # The text comes as it is to be matched.
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.escape_whitespaces = False
    normal, byte = proto.SentencePiece.NORMAL, proto.SentencePiece.BYTE
    bytes_ = frozenset() if missing else frozenset(BYTE_TEXTS)
    add = proto.pieces.add
    for i, (text, score) in enumerate(
        zip(vocabulary.texts, vocabulary.scores.tolist(), strict=True)
    ):
        add(
            piece=text if is_text(text) else unmatchable(i),
            score=score,
            type=byte if text in bytes_ else normal,
        )
    # Sentencepiece insists on an unknown piece of its own; it is mapped to the file's.
    add(piece=RESERVED * 2, score=0.0, type=proto.SentencePiece.UNKNOWN)
    return proto.SerializeToString()
