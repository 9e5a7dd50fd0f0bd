"""The pieces of a reply to a conversation, with its reasoning shown or hidden. No JAX."""

import collections
from collections.abc import Iterable, Iterator
from typing import Literal

from rfjax.engine.output import StreamOutput
from rfjax.errors import RequestError
from rfjax.tokenizer import Tokenizer
from rfjax.tokenizer.chat_prompt import ChatPrompt

ReasoningMode = Literal["show", "hide"]


def check_reasoning(mode: str) -> None:
    """Refuse what is no mode.

    Raises:
        RequestError: it is neither "show" nor "hide".
    """
    if mode not in ("show", "hide"):
        raise RequestError(f"reasoning: got {mode!r}, expected 'show' or 'hide'")


def chat_stream(
    pieces: Iterable[StreamOutput],
    tokenizer: Tokenizer,
    prompt: ChatPrompt,
    mode: ReasoningMode,
) -> Iterator[StreamOutput]:
    """The pieces of a reply as a `ReplyReader` reads them; leaving them early ends `pieces` too."""
    reader = ReplyReader(tokenizer, prompt, mode)
    for piece in pieces:
        yield reader.read(piece)


class ReplyReader:
    """Reads the pieces of a reply, of one sample or of several in turns, as they come.

    Args:
        tokenizer: that made the prompt.
        prompt: says how the reply is parted.
        mode: "show" leaves all text and the delimiters of the reasoning in it, also where they
            are control tokens or stand at the end of the prompt. "hide" leaves the answer, and
            puts the reasoning, without its delimiters, in `StreamOutput.reasoning`.

    Raises:
        RequestError: another mode.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: ChatPrompt, mode: ReasoningMode):
        check_reasoning(mode)
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._mode: ReasoningMode = mode
        self._marks = {}
        for text in prompt.reasoning.marks:
            token = tokenizer.piece_to_id(text)
            if token is not None and not tokenizer.decode([token]):
                self._marks[token] = text
        self._samples: dict[int, _Sample] = {}

    def read(self, piece: StreamOutput) -> StreamOutput:
        """The same piece with another text."""
        if piece.sample not in self._samples:
            sample = _Sample(self._tokenizer, self._prompt, self._marks, self._mode)
            self._samples[piece.sample] = sample
        return self._samples[piece.sample].read(piece)


class _Sample:
    """One sample's text as it comes."""

    def __init__(
        self, tokenizer: Tokenizer, prompt: ChatPrompt, marks: dict[int, str], mode: ReasoningMode
    ):
        self._marked = _MarkedText(tokenizer, marks) if marks else None
        self._splitter = prompt.reasoning.splitter(prompt.opened) if mode == "hide" else None
        self._first = prompt.opened_text

    def read(self, piece: StreamOutput) -> StreamOutput:
        text = piece.text
        if self._marked is not None:
            text = self._marked.push(piece.token_ids, text)
        if self._splitter is None:
            text, self._first = self._first + text, ""
            return piece._replace(text=text)
        parts = self._splitter.push(text)
        reasoning, answer = parts
        if piece.finish_reason is not None:
            last = self._splitter.flush()
            reasoning, answer = reasoning + last.reasoning, answer + last.answer
        return piece._replace(text=answer, reasoning=reasoning)


class _MarkedText:
    """Puts control tokens that are delimiters back into a text that lacks them.

    The text lags behind the tokens, and a stop string may cut it short: their places are counted
    in characters, by decoding the tokens once more.
    """

    def __init__(self, tokenizer: Tokenizer, marks: dict[int, str]):
        self._decoder = tokenizer.stream(continuation=True)
        self._marks = marks
        self._waiting: collections.deque[tuple[int, str]] = collections.deque()
        self._decoded = 0
        self._given = 0

    def push(self, token_ids: list[int], text: str) -> str:
        for token in token_ids:
            if token in self._marks:
                self._waiting.append((self._decoded, self._marks[token]))
            self._decoded += len(self._decoder.push(token))
        parts = []
        while self._waiting and self._waiting[0][0] <= self._given + len(text):
            place, mark = self._waiting.popleft()
            before, text = text[: place - self._given], text[place - self._given :]
            self._given = place
            parts += (before, mark)
        self._given += len(text)
        return "".join((*parts, text))
