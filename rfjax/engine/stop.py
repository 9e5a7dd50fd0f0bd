"""Stop strings: text of a sequence as it comes, up to where one of them begins. No JAX.

Tokens and characters do not end at the same places, and neither do tokens and stop strings: a
character is shown once all its bytes are there, and text that may become a stop string is held
back until that is decided.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from rfjax.engine.finish import Finish, StopString, StopToken
from rfjax.engine.sampling_params import SamplingParams


class Decoder(Protocol):
    """Decodes tokens as they come, as `rfjax.tokenizer.decoding.StreamDecoder` does."""

    def push(self, ids: int | Iterable[int]) -> str:
        """The characters that further tokens complete."""
        ...

    def flush(self) -> str:
        """What is left of an unfinished character."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class StopScanner:
    """Looks for stop strings in a text that comes in pieces; where the pieces end is no matter.

    Attributes:
        strings: to look for.
        include: whether the string found stays in the text.
        held: the end of the text so far, which may be the beginning of a stop string.
    """

    strings: tuple[str, ...]
    include: bool = False
    held: str = ""

    def push(self, text: str) -> tuple["StopScanner", str, str | None]:
        """Look into further text.

        Returns:
            The scanner for what follows, the text that is certain by now, and the string that was
            found: the one complete first, the longest of those that end at the same place.
        """
        text = self.held + text
        ends = [
            (text.index(string) + len(string), -len(string), string)
            for string in self.strings
            if string in text
        ]
        if ends:
            end, minus_length, found = min(ends)
            shown = text[:end] if self.include else text[: end + minus_length]
            return dataclasses.replace(self, held=""), shown, found
        held = self._undecided(text)
        certain = text[: len(text) - held]
        return dataclasses.replace(self, held=text[len(certain) :]), certain, None

    def _undecided(self, text: str) -> int:
        """How many of the last characters are the beginning of a stop string."""
        longest = max((len(string) - 1 for string in self.strings), default=0)
        for n in range(min(longest, len(text)), 0, -1):
            if any(string.startswith(text[-n:]) for string in self.strings):
                return n
        return 0


class TextPiece(NamedTuple):
    """New text of a sequence.

    Attributes:
        text: never ends inside a character or, before the end, inside a stop string.
        n_tokens: how many of the given tokens belong to the output. The last of them completes
            the stop string, where one was found; those behind it are dropped.
        finish: why the sequence ended; a stop string found comes before an end behind it.
    """

    text: str
    n_tokens: int
    finish: Finish | None


class TextStream:
    """The text of one sequence on the host; like the decoder it holds, it changes as it is read."""

    def __init__(self, decoder: Decoder, params: SamplingParams):
        """A stream.

        Args:
            decoder: of this sequence alone, at its first token of output.
            params: with the stop strings; in the text of the first `min_tokens` tokens they are
                not looked for.
        """
        self._decoder = decoder
        self._scanner = StopScanner(params.stop_strings, params.include_stop_str_in_output)
        self._unscanned = params.min_tokens

    def push(self, token_ids: Sequence[int], finish: Finish | None = None) -> TextPiece:
        """Decode further tokens.

        Args:
            token_ids: new ones.
            finish: set with the last ones. A stop token, the last of these, is not shown.
        """
        shown = token_ids[:-1] if isinstance(finish, StopToken) else token_ids
        if not self._scanner.strings:
            text = self._decoder.push(shown)
            text += self._decoder.flush() if finish is not None else ""
            return TextPiece(text, len(token_ids), finish)
        pieces = []
        for count, token in enumerate(shown, start=1):
            found = self._scan(self._decoder.push(token), pieces)
            if found is not None:
                return TextPiece("".join(pieces), count, StopString(found))
        if finish is not None:
            found = self._scan(self._decoder.flush(), pieces, last=True)
            if found is not None:
                return TextPiece("".join(pieces), len(token_ids), StopString(found))
            pieces.append(self._scanner.held)
        return TextPiece("".join(pieces), len(token_ids), finish)

    def _scan(self, text: str, pieces: list[str], *, last: bool = False) -> str | None:
        """Append what is certain by now to the pieces; the stop string, if one is found."""
        if self._unscanned and not last:
            self._unscanned -= 1
            pieces.append(text)
            return None
        self._scanner, certain, found = self._scanner.push(text)
        pieces.append(certain)
        return found
