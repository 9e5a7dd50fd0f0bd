"""Cutting special tokens out of a text before the rest of it is tokenized."""

from __future__ import annotations

import dataclasses

import numpy as np

from rfjax.tokenizer.attribute import Attribute
from rfjax.tokenizer.vocabulary import Vocabulary

_PREFIX = 4  # characters by which absent tokens are ruled out together
_WHITESPACE = " \t\n\v\f\r"


@dataclasses.dataclass(frozen=True)
class _Special:
    id: int
    text: str
    hidden: bool  # only matched when special tokens are parsed
    strip_left: bool
    strip_right: bool


class Partition:
    """Splits a text at its special tokens.

    User-defined tokens are always matched; control and unknown tokens only on request. Longer
    tokens are cut out of the whole text before shorter ones, as llama.cpp does, so a short token
    never breaks a long one even where it starts further left.
    """

    def __init__(self, vocabulary: Vocabulary):
        special = Attribute.CONTROL | Attribute.USER_DEFINED | Attribute.UNKNOWN
        hidden = Attribute.CONTROL | Attribute.UNKNOWN
        tokens = [
            _Special(
                id=int(i),
                text=vocabulary.texts[int(i)],
                hidden=bool(vocabulary.attributes[i] & hidden),
                strip_left=int(i) in vocabulary.strip_left,
                strip_right=int(i) in vocabulary.strip_right,
            )
            for i in np.flatnonzero(vocabulary.attributes & special)
        ]
        tokens.sort(key=lambda token: -len(token.text.encode("utf-8", "surrogateescape")))
        self._all = _by_prefix(tokens)
        self._visible = _by_prefix([token for token in tokens if not token.hidden])
        self._rank = {token.id: rank for rank, token in enumerate(tokens)}

    def __call__(self, text: str, parse_special: bool) -> list[str | int]:
        """Splits `text` into pieces of plain text and ids of special tokens, in order."""
        groups = self._all if parse_special else self._visible
        present = [
            token
            for prefix, tokens in groups.items()
            if prefix in text
            for token in tokens
            if token.text in text
        ]
        present.sort(key=lambda token: self._rank[token.id])
        pieces: list[str | int] = [text] if text else []
        for token in present:
            pieces = [part for piece in pieces for part in _cut(piece, token)]
        return pieces


def _by_prefix(tokens: list[_Special]) -> dict[str, list[_Special]]:
    groups: dict[str, list[_Special]] = {}
    for token in tokens:
        groups.setdefault(token.text[:_PREFIX], []).append(token)
    return groups


def _cut(piece: str | int, token: _Special) -> list[str | int]:
    if isinstance(piece, int) or token.text not in piece:
        return [piece]
    parts: list[str | int] = []
    first, *rest = piece.split(token.text)
    _append(parts, first.rstrip(_WHITESPACE) if token.strip_left else first)
    for i, part in enumerate(rest):
        parts.append(token.id)
        if token.strip_right:
            part = part.lstrip(_WHITESPACE)
        if token.strip_left and i + 1 < len(rest):
            part = part.rstrip(_WHITESPACE)
        _append(parts, part)
    return parts


def _append(parts: list[str | int], text: str) -> None:
    if text:
        parts.append(text)
