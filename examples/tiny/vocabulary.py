"""A sentencepiece vocabulary learned from a text."""

import io

import numpy as np
import sentencepiece

from rfjax.errors import ConfigError

UNKNOWN, BOS, EOS = 0, 1, 2
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6  # GGUF token types
_SPACE = "\u2581"  # sentencepiece's visible space


class Vocabulary:
    """Byte-pair merges over plain text: nothing is normalised, no space is put in front.

    What the pieces cannot spell, newlines among it, is spelled in bytes.
    """

    def __init__(self, text: str, size: int):
        """Learns `size` tokens from a text.

        Raises:
            ConfigError: the text is too short for that many, or has too many characters for so few.
        """
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(text.split("\n")),
                model_writer=model,
                model_type="bpe",
                vocab_size=size,
                byte_fallback=True,
                character_coverage=1.0,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                split_digits=True,
                max_sentence_length=1 << 20,
                unk_id=UNKNOWN,
                bos_id=BOS,
                eos_id=EOS,
                pad_id=-1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ConfigError(
                f"vocab_size: sentencepiece cannot learn {size} tokens from a text of {len(text)} "
                f"characters: {error}"
            ) from error
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())

    @property
    def texts(self) -> list[str]:
        """Tokens in the order of their ids."""
        return [self._processor.id_to_piece(i) for i in self._ids]

    @property
    def scores(self) -> list[float]:
        """Rank of each token's merge: the higher one goes first."""
        return [self._processor.get_score(i) for i in self._ids]

    @property
    def types(self) -> list[int]:
        """GGUF token types."""
        return [self._type(i) for i in self._ids]

    @property
    def byte_lengths(self) -> np.ndarray:
        """Bytes of text that each token stands for, int64 `[V]`."""
        lengths = {_UNKNOWN: 0, _CONTROL: 0, _BYTE: 1}
        return np.array(
            [
                lengths.get(type_, len(text.replace(_SPACE, " ").encode()))
                for text, type_ in zip(self.texts, self.types, strict=True)
            ]
        )

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32, without BOS."""
        return np.asarray(self._processor.encode(text, out_type=int), np.int32)

    def segment(self, text: str, noise: float) -> np.ndarray:
        """Token ids of a random segmentation: a share `noise` of the merges is left out.

        Source: Provilkov et al., "BPE-Dropout" (2020).
        """
        ids = self._processor.encode(text, out_type=int, enable_sampling=True, alpha=noise)
        return np.asarray(ids, np.int32)

    @property
    def _ids(self) -> range:
        return range(self._processor.get_piece_size())

    def _type(self, id_: int) -> int:
        if self._processor.is_byte(id_):
            return _BYTE
        if self._processor.is_unknown(id_):
            return _UNKNOWN
        return _CONTROL if self._processor.is_control(id_) else _NORMAL


def training_ids(vocabulary: Vocabulary, text: str, *, copies: int, noise: float, seed: int):
    """Token ids to draw rows from, int32: the text as it is, and `copies` random segmentations.

    The usual segmentation makes up half, whatever the number of copies.
    """
    plain = vocabulary.encode(text)
    sentencepiece.set_random_generator_seed(seed)
    noisy = [vocabulary.segment(text, noise) for _ in range(copies)]
    return np.concatenate([*[plain] * max(1, copies), *noisy])
