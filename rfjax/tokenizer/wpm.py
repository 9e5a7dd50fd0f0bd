"""WordPiece vocabularies (BERT), run by the tokenizers library after BERT's normalisation."""

from __future__ import annotations

import unicodedata

from rfjax.tokenizer.alphabet import SPACE
from rfjax.tokenizer.vocabulary import Vocabulary

_LONG_WORD = 200  # characters; the library's greedy match is quadratic in a word's length
# Ranges that BERT isolates character by character. The fourth of the extension ranges starts at
# U+2B920 in the tokenizers library, and so in every vocabulary's reference.
_CHINESE = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F)),
    *((0x2B740, 0x2B81F), (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)
_SPACES = frozenset(
    map(chr, (*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029))
) | {"\u202f", "\u205f", "\u3000"}


class WpmModel:
    """Longest match from the left in every word; a word that cannot be covered is unknown."""

    def __init__(self, vocabulary: Vocabulary):
        import tokenizers
        from tokenizers import models, pre_tokenizers

        self._ids = vocabulary.ids
        self._unknown = vocabulary.special_ids["unknown"]
        self._longest = max(map(len, vocabulary.texts))
        self._normalize = _CharacterMap(vocabulary.lowercase, vocabulary.strip_accents)
        # GGUF marks the starts of words instead of their continuations, so with the mark put back
        # into the text the continuation prefix is empty.
        self._tokenizer = tokenizers.Tokenizer(
            models.WordPiece(
                vocab=dict(vocabulary.ids),
                unk_token=vocabulary.texts[self._unknown],
                continuing_subword_prefix="",
                max_input_chars_per_word=_LONG_WORD + 1,
            )
        )
        self._tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()

    def encode(self, text: str) -> list[int]:
        """Tokenizes plain text."""
        ids: list[int] = []
        short: list[str] = []
        for word in text.translate(self._normalize).split(" "):
            if len(word) > _LONG_WORD:
                ids += self._encode_short(short)
                ids += self._encode_long(SPACE + word)
                short = []
            elif word:
                short.append(SPACE + word)
        return ids + self._encode_short(short)

    def _encode_short(self, words: list[str]) -> list[int]:
        if not words:
            return []
        return self._tokenizer.encode(" ".join(words), add_special_tokens=False).ids

    def _encode_long(self, word: str) -> list[int]:
        """The same match with the length of a token as its bound: linear in the word."""
        ids: list[int] = []
        start = 0
        while start < len(word):
            for end in range(min(len(word), start + self._longest), start, -1):
                id_ = self._ids.get(word[start:end])
                if id_ is not None:
                    ids.append(id_)
                    start = end
                    break
            else:
                return [self._unknown]
        return ids


class _CharacterMap(dict[int, str]):
    """BERT's normalisation as a table for `str.translate`, filled as characters are met.

    Whitespace becomes a space, control characters go, punctuation and Chinese characters stand
    alone. Accents are stripped by taking the first character of the canonical decomposition, as
    llama.cpp does: this also cuts Hangul syllables down to their first letter.
    """

    def __init__(self, lowercase: bool, strip_accents: bool):
        super().__init__()
        self._lowercase = lowercase
        self._strip_accents = strip_accents

    def __missing__(self, code: int) -> str:
        value = self[code] = self._map(chr(code))
        return value

    def _map(self, char: str) -> str:
        if self._strip_accents:
            char = unicodedata.normalize("NFD", char)[0]
        if char in _SPACES:
            return " "
        category = unicodedata.category(char)
        if char == "\ufffd" or (category[0] == "C" and category != "Cn"):
            return ""
        if self._strip_accents and category[0] == "M":
            return ""
        alone = category[0] == "P" or (category[0] == "S" and char < "\x7f") or _is_chinese(char)
        if self._lowercase:
            char = char.lower()[0]
        return f" {char} " if alone else char


def _is_chinese(char: str) -> bool:
    return any(first <= ord(char) <= last for first, last in _CHINESE)
