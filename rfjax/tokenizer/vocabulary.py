"""A GGUF file's tokens and the policy around them, read and checked once."""

from __future__ import annotations

import dataclasses
import logging
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from rfjax.errors import ModelFormatError, UnsupportedError
from rfjax.tokenizer.attribute import Attribute
from rfjax.tokenizer.end_of_generation import FILL_ROLES, resolve_by_text
from rfjax.tokenizer.pretokenizers import PreTokenizer, pre_tokenizer

logger = logging.getLogger(__name__)

Kind = Literal["spm", "bpe", "wpm", "ugm"]

_KINDS: dict[str, Kind] = {
    "llama": "spm",
    "gpt2": "bpe",
    "gemma4": "bpe",
    "bert": "wpm",
    "t5": "ugm",
}

# Ids that hold where a file does not name its own (BERT's come from its original vocabulary file).
_DEFAULT_IDS: dict[str, dict[str, int]] = {
    "llama": {"bos": 1, "eos": 2, "unknown": 0},
    "gpt2": {"bos": 11, "eos": 11},
    "gemma4": {},
    "bert": {"bos": 101, "unknown": 100, "seperator": 102, "padding": 0, "mask": 103},
    "t5": {"eos": 1, "unknown": 2, "padding": 0},
}

_OLD_KEYS = {"fim_pre": "prefix", "fim_suf": "suffix", "fim_mid": "middle"}
_BYTE_TEXT = re.compile("<0x[0-9A-Fa-f]{2}>")
# Index: GGUF token type 0..6 (undefined, normal, unknown, control, user defined, unused, byte).
_ATTRIBUTE_OF_TYPE = np.array([0, 1, 2, 4, 8, 16, 32], np.uint8)


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """Tokens, special tokens and encoding policy of one file.

    Attributes:
      kind: Algorithm: `spm` (sentencepiece BPE), `bpe`, `wpm` (WordPiece), `ugm` (unigram).
      texts: Token texts as stored; an empty one is named `[EMPTY_<id>]`.
      ids: Text to id, the inverse of `texts`.
      attributes: uint8 `[V]`, `Attribute` bits.
      scores: float32 `[V]`; zeros where the file has none.
      merges: BPE merges as `"left right"`, best first.
      pre: Splitting rules; None unless `kind` is `bpe`.
      special_ids: Role (`bos`, `eos`, `eot`, `unknown`, ...) to id; absent roles are left out.
      end_ids: Tokens that end a generation.
      strip_left: Tokens that swallow the whitespace before them.
      strip_right: Tokens that swallow the whitespace after them.
      add_bos, add_eos: Whether encoding adds them by default.
      add_space_prefix: Whether text at the start, or after a special token, gets a leading space.
      remove_extra_whitespaces: Unigram only: runs of spaces count as one.
      lowercase, strip_accents: WordPiece normalisation.
      charsmap: Unigram only: sentencepiece's compiled normalisation rules.
    """

    kind: Kind
    texts: Sequence[str]
    ids: Mapping[str, int]
    attributes: np.ndarray
    scores: np.ndarray
    merges: Sequence[str]
    pre: PreTokenizer | None
    special_ids: Mapping[str, int]
    end_ids: frozenset[int]
    strip_left: frozenset[int]
    strip_right: frozenset[int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    remove_extra_whitespaces: bool
    lowercase: bool
    strip_accents: bool
    charsmap: bytes


def read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """Reads `tokenizer.ggml.*` of a GGUF file.

    Args:
      metadata: Key to value; arrays of numbers as numpy arrays, of strings as sequences of `str`.

    Returns:
      The vocabulary, with every default that llama.cpp applies filled in.

    Raises:
      UnsupportedError: The file has no vocabulary, or one of a kind that is not supported.
      ModelFormatError: A key has the wrong type, arrays disagree in length, or tokens repeat.
    """
    reader = _Reader(metadata)
    model = reader.string("model", None)
    kind = _kind(model)
    assert model is not None  # _kind refuses a file without it
    texts = _texts(reader)
    ids = {text: i for i, text in enumerate(texts)}
    if len(ids) != len(texts):
        repeated = next(text for i, text in enumerate(texts) if ids[text] != i)
        raise ModelFormatError(
            f"tokenizer.ggml.tokens holds {repeated!r} more than once; expected {len(texts)} "
            "different tokens; convert the model again"
        )
    attributes = _ATTRIBUTE_OF_TYPE[_types(reader, len(texts))]
    _check_bytes(texts, attributes)
    pre = None
    if kind == "bpe":
        name = "gemma4" if model == "gemma4" else reader.string("pre", None)
        pre = pre_tokenizer(name)
    special_ids = _special_ids(reader, model, pre, len(texts))
    end_ids = resolve_by_text(ids, attributes, special_ids)
    strip_left, strip_right = _stripping(reader, metadata, ids, attributes)
    add_bos = reader.boolean("add_bos_token", pre.add_bos if pre else kind in ("spm", "wpm"))
    if pre is not None and not pre.byte_level and pre.add_bos:
        add_bos = True  # Gemma 4 files say false and need it all the same
    lowercase = reader.boolean("normalizer.lowercase", True)
    vocabulary = Vocabulary(
        kind=kind,
        texts=texts,
        ids=ids,
        attributes=attributes,
        scores=_scores(reader, len(texts)),
        merges=reader.strings("merges") if kind == "bpe" else (),
        pre=pre,
        special_ids=special_ids,
        end_ids=end_ids,
        strip_left=strip_left,
        strip_right=strip_right,
        add_bos=add_bos,
        add_eos=reader.boolean("add_eos_token", kind == "ugm"),
        add_space_prefix=reader.boolean("add_space_prefix", kind == "spm"),
        remove_extra_whitespaces=reader.boolean("remove_extra_whitespaces", False),
        lowercase=lowercase,
        strip_accents=reader.boolean("normalizer.strip_accents", lowercase),
        charsmap=_charsmap(reader),
    )
    _check_policy(vocabulary)
    return vocabulary


class _Reader:
    """Typed access to the `tokenizer.ggml.` keys, with errors that name the key."""

    def __init__(self, metadata: Mapping[str, Any]):
        self._metadata = metadata

    def _get(self, key: str) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{key}")

    def _fail(self, key: str, expected: str) -> ModelFormatError:
        value = self._get(key)
        return ModelFormatError(
            f"tokenizer.ggml.{key} is {_describe(value)}; expected {expected}; convert the model "
            "again"
        )

    def string(self, key: str, default: str | None) -> str | None:
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._fail(key, "a string")
        return value

    def boolean(self, key: str, default: bool) -> bool:
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, (bool, np.bool_)):
            raise self._fail(key, "a boolean")
        return bool(value)

    def integer(self, key: str) -> int | None:
        value = self._get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise self._fail(key, "an integer")
        return int(value)

    def strings(self, key: str) -> Sequence[str]:
        value = self._get(key)
        if value is None:
            raise self._fail(key, "an array of strings")
        if isinstance(value, np.ndarray) and not value.size:
            return ()
        if isinstance(value, str | bytes) or not isinstance(value, Sequence):
            raise self._fail(key, "an array of strings")
        if not all(isinstance(text, str) for text in value):
            raise self._fail(key, "an array of strings")
        return value

    def array(self, key: str, kinds: str, what: str) -> np.ndarray | None:
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in kinds:
            raise self._fail(key, f"an array of {what}")
        return value


def _describe(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    text = repr(value)
    return f"{text[:60]}{'...' if len(text) > 60 else ''} ({type(value).__name__})"


def _kind(model: str | None) -> Kind:
    if model in (None, "test", "no_vocab", "none"):
        found = "no tokenizer.ggml.model" if model is None else f"tokenizer.ggml.model = {model!r}"
        raise UnsupportedError(
            f"the file carries no vocabulary ({found}), so text cannot be encoded or decoded; "
            "feed token ids instead"
        )
    if model not in _KINDS:
        raise UnsupportedError(
            f"tokenizer.ggml.model is {model!r}; supported: {', '.join(sorted(_KINDS))}; feed "
            "token ids instead"
        )
    return _KINDS[model]


def _texts(reader: _Reader) -> Sequence[str]:
    texts = reader.strings("tokens")
    if not texts:
        raise ModelFormatError("tokenizer.ggml.tokens is empty; expected at least one token")
    if "" in texts:
        return tuple(text or f"[EMPTY_{i}]" for i, text in enumerate(texts))
    return texts


def _check_length(key: str, array: np.ndarray, n_tokens: int) -> np.ndarray:
    if len(array) < n_tokens:
        raise ModelFormatError(
            f"tokenizer.ggml.{key} has {len(array)} values for {n_tokens} tokens; expected one for "
            "each; convert the model again"
        )
    return array[:n_tokens]


def _types(reader: _Reader, n_tokens: int) -> np.ndarray:
    types = reader.array("token_type", "iu", "integers")
    if types is None:
        return np.ones(n_tokens, np.int32)
    types = _check_length("token_type", types, n_tokens)
    return np.where((types >= 0) & (types < len(_ATTRIBUTE_OF_TYPE)), types, 0)


def _check_bytes(texts: Sequence[str], attributes: np.ndarray) -> None:
    for id_ in np.flatnonzero(attributes & Attribute.BYTE).tolist():
        if not _BYTE_TEXT.fullmatch(texts[id_]):
            raise ModelFormatError(
                f"token {id_} is of type byte and its text is {texts[id_]!r}; expected <0x00> to "
                "<0xFF>; convert the model again"
            )


def _scores(reader: _Reader, n_tokens: int) -> np.ndarray:
    scores = reader.array("scores", "iuf", "numbers")
    if scores is None:
        return np.zeros(n_tokens, np.float32)
    scores = _check_length("scores", scores, n_tokens).astype(np.float32)
    if np.isnan(scores).any():
        raise ModelFormatError("tokenizer.ggml.scores holds NaN; expected numbers that compare")
    return scores


def _charsmap(reader: _Reader) -> bytes:
    charsmap = reader.array("precompiled_charsmap", "iu", "bytes")
    if charsmap is None:
        return b""
    if charsmap.dtype.itemsize != 1:
        raise ModelFormatError(
            f"tokenizer.ggml.precompiled_charsmap is an array of {charsmap.dtype}; expected bytes"
        )
    return charsmap.tobytes()


def _special_ids(
    reader: _Reader, model: str, pre: PreTokenizer | None, n_tokens: int
) -> dict[str, int]:
    special = {role: id_ for role, id_ in _DEFAULT_IDS[model].items() if id_ < n_tokens}
    if pre is not None and not pre.default_bos:
        special.pop("bos", None)
    keys = {role: role for role in ("bos", "eos", "eot", "eom", "unknown", "seperator")}
    keys |= {role: role for role in ("padding", "mask", *FILL_ROLES)}
    if model == "bert":  # a BERT file may name its first token by its role only
        keys = {"cls": "bos"} | keys
    keys |= {old: role for role, old in _OLD_KEYS.items()}
    for key, role in keys.items():
        id_ = reader.integer(f"{key}_token_id")
        if id_ is None:
            continue
        if 0 <= id_ < n_tokens:
            special[role] = id_
        elif id_ not in (-1, 0xFFFFFFFF):  # "no such token" in older files
            logger.warning(
                "tokenizer.ggml.%s_token_id is %d but there are %d tokens; ignored",
                *(key, id_, n_tokens),
            )
    return special


def _stripping(
    reader: _Reader, metadata: Mapping[str, Any], ids: Mapping[str, int], attributes: np.ndarray
) -> tuple[frozenset[int], frozenset[int]]:
    """Tokens that swallow neighbouring whitespace: GGUF has no field for it, the names tell."""
    pre = reader.string("pre", None) or ""
    architecture = str(metadata.get("general.architecture", ""))
    name = str(metadata.get("general.name", "")).lower()
    mask = None
    if any(part in pre for part in ("jina-v2-de", "jina-v2-es", "jina-v2-code")) or any(
        part in architecture for part in ("nomic-bert-moe", "jina-bert-v3")
    ):
        mask = "<mask>"
    elif "phi-3" in name or "phi3" in name:
        special = Attribute.CONTROL | Attribute.USER_DEFINED | Attribute.UNKNOWN
        right = {int(i) for i in np.flatnonzero(attributes & special)}
        right |= {ids["</s>"]} if "</s>" in ids else set()
        right -= {ids[text] for text in ("<unk>", "<s>", "<|endoftext|>") if text in ids}
        return frozenset(), frozenset(right)
    elif "modern-bert" in name:
        mask = "[MASK]"
    left = {ids[mask]} if mask is not None and mask in ids else set()
    return frozenset(left), frozenset()


def _check_policy(vocabulary: Vocabulary) -> None:
    needed = []
    if vocabulary.add_bos or vocabulary.kind == "wpm":
        needed.append(("bos", "add_bos_token"))
    if vocabulary.add_eos:
        needed.append(("eos", "add_eos_token"))
    if vocabulary.kind == "wpm":
        needed += [("seperator", "add_sep_token"), ("unknown", "model")]
    for role, key in needed:
        if role not in vocabulary.special_ids:
            raise ModelFormatError(
                f"tokenizer.ggml.{key} calls for a token that the file does not name: "
                f"tokenizer.ggml.{role}_token_id is missing or out of range; set it or convert the "
                "model again"
            )
