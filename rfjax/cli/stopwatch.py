"""Timing of one streamed generation."""

import dataclasses
import time
from collections.abc import Iterable, Iterator

from rfjax.engine.output import StreamOutput


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds and rates of one generation.

    Attributes:
        prompt_tokens: tokens of the prompt.
        generated_tokens: tokens of the output.
        first_tokens: those of its first piece, which a burst of few steps makes.
        first_token_s: from the start to the first piece: prompt and burst, and compilation where a
            program is not cached yet.
        decode_s: from the first piece to the last.
        prompt_tokens_per_s: over `first_token_s`.
        decode_tokens_per_s: of the tokens behind the first piece, over `decode_s`; None where there
            are none.
    """

    prompt_tokens: int
    generated_tokens: int
    first_tokens: int
    first_token_s: float
    decode_s: float
    prompt_tokens_per_s: float
    decode_tokens_per_s: float | None

    def __str__(self) -> str:
        text = (
            f"{self.prompt_tokens} prompt tokens and the first {self.first_tokens} of output in "
            f"{self.first_token_s:.2f} s ({self.prompt_tokens_per_s:.1f} tokens/s, compilation "
            f"included)"
        )
        if self.decode_tokens_per_s is None:
            return text
        return (
            f"{text}; {self.generated_tokens - self.first_tokens} more in {self.decode_s:.2f} s "
            f"({self.decode_tokens_per_s:.1f} tokens/s)"
        )


class Stopwatch:
    """Passes the pieces of a generation on and times them."""

    def __init__(self, prompt_tokens: int):
        self._prompt_tokens = prompt_tokens
        self._generated = self._in_first = 0
        self._start = self._first = self._last = time.perf_counter()

    def watch(self, pieces: Iterable[StreamOutput]) -> Iterator[StreamOutput]:
        """The same pieces; time runs from the first one asked for."""
        self._start = time.perf_counter()
        for piece in pieces:
            self._last = time.perf_counter()
            if not self._generated:
                self._first, self._in_first = self._last, len(piece.token_ids)
            self._generated += len(piece.token_ids)
            yield piece

    def timing(self) -> Timing:
        """What was measured so far."""
        first, decode = self._first - self._start, self._last - self._first
        later = self._generated - self._in_first
        return Timing(
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated,
            first_tokens=self._in_first,
            first_token_s=first,
            decode_s=decode,
            prompt_tokens_per_s=self._prompt_tokens / first,
            decode_tokens_per_s=later / decode if later > 0 else None,
        )
