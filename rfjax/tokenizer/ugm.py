"""Unigram vocabularies (T5, XLM-RoBERTa): sentencepiece's normalisation, tokenizers' search."""

from __future__ import annotations

import numpy as np

from rfjax.errors import ModelFormatError
from rfjax.tokenizer.alphabet import is_text, unmatchable
from rfjax.tokenizer.attribute import Attribute
from rfjax.tokenizer.vocabulary import Vocabulary


class UgmModel:
    """The segmentation of the highest total score.

    The search is the tokenizers library's, because it adds scores in double precision as llama.cpp
    does: sentencepiece's own adds them in single precision and breaks ties differently.
    """

    def __init__(self, vocabulary: Vocabulary):
        import tokenizers
        from tokenizers import models

        unknown = vocabulary.special_ids.get("unknown")
        if unknown is None:
            raise ModelFormatError(
                "a unigram vocabulary needs an unknown token; tokenizer.ggml.unknown_token_id is "
                "missing or out of range"
            )
        matched = Attribute.NORMAL | Attribute.USER_DEFINED | Attribute.UNUSED
        is_matched = (vocabulary.attributes & matched) != 0
        # User-defined tokens win over any combination of others, whose scores are negative.
        is_free = (vocabulary.attributes & Attribute.USER_DEFINED) != 0
        scores = np.where(is_free | ~is_matched, 0.0, vocabulary.scores.astype(np.float64))
        pieces = [
            (text if ok and is_text(text) else unmatchable(i), score)
            for i, (text, ok, score) in enumerate(
                zip(vocabulary.texts, is_matched.tolist(), scores.tolist(), strict=True)
            )
        ]
        self._tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unknown, byte_fallback=False))
        self._normalizer = _normalizer(vocabulary)

    def encode(self, text: str) -> list[int]:
        """Tokenizes plain text; the normaliser adds the space prefix."""
        normalized = self._normalizer.Normalize(text)
        return self._tokenizer.encode(normalized, add_special_tokens=False).ids


def _normalizer(vocabulary: Vocabulary):
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as schema

    merge = vocabulary.remove_extra_whitespaces
    proto = schema.ModelProto()  # pyright: ignore[reportAttributeAccessIssue] - made at run time
    proto.normalizer_spec.precompiled_charsmap = vocabulary.charsmap
    proto.normalizer_spec.remove_extra_whitespaces = merge
    proto.normalizer_spec.add_dummy_prefix = vocabulary.add_space_prefix or merge
    proto.normalizer_spec.escape_whitespaces = True
    try:
        return sentencepiece.SentencePieceNormalizer(
            model_proto=proto.SerializeToString(),
            add_dummy_prefix=proto.normalizer_spec.add_dummy_prefix,
            escape_whitespaces=True,
            remove_extra_whitespaces=merge,
        )
    except RuntimeError as error:
        raise ModelFormatError(
            f"tokenizer.ggml.precompiled_charsmap cannot be read: {error}; convert the model again"
        ) from error
