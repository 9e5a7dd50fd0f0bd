"""Tokens back to bytes and text."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

import numpy as np

from rfjax.errors import RequestError
from rfjax.tokenizer.alphabet import BYTE_ALPHABET, SPACE
from rfjax.tokenizer.attribute import Attribute
from rfjax.tokenizer.vocabulary import Vocabulary

# Plain integers: these are tested for every token, and operations on flags are slow.
_VERBATIM = int(Attribute.CONTROL | Attribute.UNKNOWN | Attribute.USER_DEFINED)
_HIDDEN = int(Attribute.CONTROL | Attribute.UNKNOWN)
_NORMAL = int(Attribute.NORMAL)
_BYTE = int(Attribute.BYTE)


class Pieces:
    """The bytes that each token stands for."""

    def __init__(self, vocabulary: Vocabulary):
        self._ordinary: dict[int, bytes] = {}
        self._texts = vocabulary.texts
        self._attributes = vocabulary.attributes.tobytes()  # one byte a token
        self._byte_level = vocabulary.pre is not None and vocabulary.pre.byte_level

    def is_hidden(self, id_: int) -> bool:
        """Whether a token is control or unknown: shown only when asked for."""
        return bool(self._attributes[id_] & _HIDDEN)

    def is_special(self, id_: int) -> bool:
        """Whether `Partition` matches the token, so that the text after it starts afresh."""
        return bool(self._attributes[id_] & _VERBATIM)

    def ordinary(self, ids: Sequence[int]) -> bytes | None:
        """The bytes of tokens that were all asked for before and are not special, else None.

        An engine decodes thousands of tokens at a time: this is what it spends on most of them.
        """
        pieces = list(map(self._ordinary.get, ids))
        return None if None in pieces else b"".join(pieces)  # pyright: ignore[reportArgumentType]

    def keep(self, id_: int, piece: bytes) -> None:
        """Let `ordinary` know the bytes of a token that is not special."""
        self._ordinary[id_] = piece

    def __getitem__(self, id_: int) -> bytes:
        text = self._texts[id_]
        attribute = self._attributes[id_]
        if attribute & _VERBATIM:
            return _to_bytes(text)
        if attribute & _NORMAL:
            return _spelled(text) if self._byte_level else _to_bytes(text.replace(SPACE, " "))
        if attribute & _BYTE:
            return bytes([int(text[3:5], 16)])
        return b""  # unused and undefined tokens stand for nothing


def _spelled(text: str) -> bytes:
    try:
        return bytes([BYTE_ALPHABET[ord(char)] for char in text])
    except KeyError:  # not in the byte alphabet: a token added as plain text
        return _to_bytes(text)


def _to_bytes(text: str) -> bytes:
    """The file's own bytes, also where they are not UTF-8 and were read as lone surrogates."""
    return text.encode("utf-8", "surrogateescape")


class StreamDecoder:
    """Decodes tokens as they come, never emitting a part of a character.

    The concatenation of everything that `push` and `flush` return is exactly what
    `Tokenizer.decode` returns for all ids at once. Bytes that are not UTF-8 become U+FFFD.
    """

    def __init__(
        self,
        pieces: Pieces,
        vocab_size: int,
        *,
        skip_special_tokens: bool,
        drop_prefix: bool,
        at_start: bool,
    ):
        self._pieces = pieces
        self._vocab_size = vocab_size
        self._skip = skip_special_tokens
        self._drop_prefix = drop_prefix
        self._at_start = at_start
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: int | Iterable[int]) -> str:
        """Decodes further tokens.

        Args:
          ids: One token or several.

        Returns:
          The characters completed so far; possibly empty.

        Raises:
          RequestError: An id is outside the vocabulary.
        """
        if isinstance(ids, int | np.integer):
            ids = (int(ids),)
        if isinstance(ids, list | tuple) and not (self._drop_prefix and self._at_start):
            # Types are looked at because True would find the bytes of 1.
            known = self._pieces.ordinary(ids) if set(map(type, ids)) == {int} else None
            if known is not None:
                self._at_start = False
                return self._utf8.decode(known)
        return self._utf8.decode(b"".join(map(self._bytes, checked(ids, self._vocab_size))))

    def flush(self) -> str:
        """Ends the text: an unfinished character becomes U+FFFD."""
        return self._utf8.decode(b"", final=True)

    def _bytes(self, id_: int) -> bytes:
        if self._pieces.is_special(id_):
            self._at_start = True
            return b"" if self._skip and self._pieces.is_hidden(id_) else self._pieces[id_]
        piece = self._pieces[id_]
        self._pieces.keep(id_, piece)
        if self._drop_prefix and self._at_start:
            piece = piece.removeprefix(b" ")
        self._at_start = False
        return piece


def checked(ids: Iterable[int], vocab_size: int) -> Iterable[int]:
    """Yields ids as Python integers.

    Raises:
      RequestError: An id is not an integer in `[0, vocab_size)`.
    """
    for id_ in ids:
        if isinstance(id_, bool) or not isinstance(id_, int | np.integer):
            raise RequestError(f"token ids are integers; got {id_!r} ({type(id_).__name__})")
        if not 0 <= id_ < vocab_size:
            raise RequestError(f"token id {id_} is outside the vocabulary of {vocab_size} tokens")
        yield int(id_)
