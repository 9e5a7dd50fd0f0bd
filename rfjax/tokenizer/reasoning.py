"""Reasoning of thinking models: what sets it off from the answer, and how to part the two.

A model thinks before it answers, between delimiters of its family (`ThinkingTags`), or in messages
of their own, each under a header that names its channel (gpt-oss, `HARMONY`). Tags count at the
beginning of a reply only: an answer may speak of them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Container
from typing import NamedTuple, Protocol


class Parts(NamedTuple):
    """New text of a reply: some of its reasoning, then some of its answer."""

    reasoning: str = ""
    answer: str = ""


class Splitter(Protocol):
    """Parts one reply as it comes; where the pieces end is no matter."""

    def push(self, text: str) -> Parts:
        """What further text decides. Text that may begin a delimiter waits for more."""
        ...

    def flush(self) -> Parts:
        """What waited, at the end of the reply."""
        ...


@dataclasses.dataclass(frozen=True)
class ThinkingTags:
    """The delimiters of a family.

    Attributes:
      opening: Begins the reasoning.
      closing: Ends it; without one, all of the reply is reasoning.
      before: Texts that may stand between the reasoning and the answer, in this order.
      after: Text that may end an answer which one of these began; empty where nothing does.
      tokens: Texts of those tokens of the vocabulary that are, or begin, one of the above.
    """

    opening: str
    closing: str
    before: tuple[str, ...] = ()
    after: str = ""
    tokens: tuple[str, ...] = ()

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts whose tokens must be seen for the reply to be parted."""
        return self.tokens or (self.opening, self.closing)


THINK = ThinkingTags("<think>", "</think>")  # Qwen, DeepSeek, GLM, EXAONE 4, SmolLM3, MiniMax, ...
TAGS = (
    THINK,
    ThinkingTags("<think>", "</think>", ("<response>",), "</response>"),  # Granite 3.3
    ThinkingTags("<think>", "</think>", ("<answer>",), "</answer>"),  # Hunyuan
    ThinkingTags("<thinking>", "</thinking>"),  # Apriel 1.5
    ThinkingTags("<thought>", "</thought>"),  # EXAONE Deep
    ThinkingTags("<seed:think>", "</seed:think>"),  # Seed-OSS
    ThinkingTags("<mm:think>", "</mm:think>"),  # MiniMax M3
    ThinkingTags("[THINK]", "[/THINK]"),  # Magistral, Ministral
    ThinkingTags("◁think▷", "◁/think▷"),  # Kimi-VL
    ThinkingTags("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ThinkingTags("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A, Command R7B
    ThinkingTags("<|channel>thought", "<channel|>", tokens=("<|channel>", "<channel|>")),  # Gemma 4
    ThinkingTags(
        "<|think|>",
        "<|end|>",
        ("<|begin|>assistant", "<|content|>"),
        "<|end|>",
        ("<|think|>", "<|end|>", "<|begin|>", "<|content|>"),
    ),  # Solar Open
    ThinkingTags("Here is my thought process:", "Here is my response:"),  # Granite 3.2
    ThinkingTags("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),  # Apriel 1.6
)
HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")


@dataclasses.dataclass(frozen=True)
class Reasoning:
    """How a model's replies are parted.

    Attributes:
      tags: Delimiters that may begin a reply; of those with the same opening, the last one holds.
      harmony: Whether replies are messages under headers, and not one text with tags.
    """

    tags: tuple[ThinkingTags, ...]
    harmony: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts of tokens that must be seen for the reply to be parted."""
        if self.harmony:
            return HARMONY
        return tuple({mark: None for tags in self.tags for mark in tags.marks})

    def opened(self, prompt: str) -> ThinkingTags | None:
        """The tags whose reasoning a prompt ends in, so that the reply goes on with it."""
        prompt = prompt.rstrip()
        ended = [tags for tags in self.tags if prompt.endswith(tags.opening)]
        return ended[-1] if ended and not self.harmony else None

    def splitter(self, opened: ThinkingTags | None = None) -> Splitter:
        """Parts a reply that begins inside `opened`, if anything."""
        return _HarmonySplitter() if self.harmony else _TagSplitter(self.tags, opened)

    def split(self, reply: str) -> Parts:
        """Parts a whole reply."""
        splitter = self.splitter()
        first, last = splitter.push(reply), splitter.flush()
        return Parts(first.reasoning + last.reasoning, first.answer + last.answer)


def find_reasoning(template: str, vocabulary: Container[str]) -> Reasoning:
    """How the replies of a model are parted.

    Args:
      template: Jinja source of its chat template.
      vocabulary: Texts of its tokens.

    Returns:
      The delimiters that the template or the vocabulary has, and `<think>` in any case: models
      are taught to use it that have neither.
    """

    def known(text: str) -> bool:
        return text in template or text in vocabulary

    if known("<|channel|>") and known("<|message|>"):
        return Reasoning((), harmony=True)
    found = [
        tags
        for tags in TAGS
        if tags is THINK
        or ((known(tags.opening) or known(tags.closing)) and all(map(known, tags.before)))
    ]
    return Reasoning(tuple(found))


class _TagSplitter:
    """Goes once through the stages of a reply: its beginning, reasoning, what follows, answer."""

    def __init__(self, tags: tuple[ThinkingTags, ...], opened: ThinkingTags | None):
        self._tags = tags
        self._current = opened
        self._held = ""
        self._before: list[str] = []
        self._after = ""
        self._stage = self._begin if opened is None else self._reason
        self._thought = False  # some reasoning is out

    def push(self, text: str) -> Parts:
        self._held += text
        reasoning = answer = ""
        if self._stage == self._begin:
            self._begin()
        if self._stage == self._reason:
            reasoning = self._reason()
        if self._stage == self._skip:
            self._skip()
        if self._stage == self._answer:
            answer = self._answer()
        return Parts(reasoning, answer)

    def flush(self) -> Parts:
        held, self._held = self._held, ""
        if self._stage == self._reason:
            return Parts(held.rstrip(), "")
        return Parts("", "" if self._after and held.strip() == self._after else held)

    def _begin(self) -> None:
        text = self._held.lstrip()
        for tags in reversed(self._tags):
            if text.startswith(tags.opening):
                self._current, self._held = tags, text.removeprefix(tags.opening)
                self._stage = self._reason
                return
        if not any(tags.opening.startswith(text) for tags in self._tags):
            self._stage = self._answer

    def _reason(self) -> str:
        assert self._current is not None
        if not self._thought:
            self._held = self._held.lstrip()
        text, closing, rest = self._held.partition(self._current.closing)
        if closing:
            self._held, self._before = rest, list(self._current.before)
            self._stage = self._skip
            return text.rstrip()
        text = text[: len(text) - _undecided(text, (self._current.closing,))].rstrip()
        self._held = self._held.removeprefix(text)
        self._thought = self._thought or bool(text)
        return text

    def _skip(self) -> None:
        """Drops whitespace and the texts that may come before the answer."""
        assert self._current is not None
        self._held = self._held.lstrip()
        while self._before and self._held:
            if self._held.startswith(self._before[0]):
                self._held = self._held.removeprefix(self._before[0]).lstrip()
                self._after = self._current.after
            elif self._before[0].startswith(self._held):
                return
            del self._before[0]
        if self._held:
            self._stage = self._answer

    def _answer(self) -> str:
        text = self._held
        if self._after:
            text = text.rstrip().removesuffix(self._after)
            if len(text) == len(self._held.rstrip()):
                text = self._held[: len(self._held) - _undecided(self._held, (self._after,))]
            text = text.rstrip()
        self._held = self._held.removeprefix(text)
        return text


class _HarmonySplitter:
    """Messages of the harmony format: `<|channel|>NAME<|message|>TEXT<|end|><|start|>assistant...`.

    What the channel `analysis` has is reasoning. A message to a recipient, which is a call of a
    tool, stays in the answer as it is, with its header.
    """

    def __init__(self):
        self._held = ""
        self._stage = self._begin
        self._reasons = False  # the current message is reasoning
        self._out = ["", ""]  # reasoning and answer of this push
        self._begun = [False, False]
        self._gap = [False, False]  # a new message begins

    def push(self, text: str) -> Parts:
        self._held += text
        while self._stage():
            pass
        parts, self._out = Parts(*self._out), ["", ""]
        return parts

    def flush(self) -> Parts:
        if self._stage != self._header:  # what there is of a header says nothing
            self._emit(self._held)
        self._held = ""
        parts, self._out = Parts(*self._out), ["", ""]
        return parts

    def _begin(self) -> bool:
        """Looks for a header before a message; what has none is answer.

        Returns, as every stage does, whether another stage goes on.
        """
        text = self._held.lstrip()
        openings = ("<|channel|>", "<|message|>", "<|start|>", "to=")
        if text.startswith(openings):
            self._stage = self._header
        elif any(opening.startswith(text) for opening in openings):
            return False
        else:
            self._reasons, self._gap[1] = False, True
            self._stage = self._body
        return True

    def _header(self) -> bool:
        header, message, rest = self._held.partition("<|message|>")
        if not message:
            return False
        self._held = rest
        called = re.search(r"\bto=", header) is not None
        self._reasons = not called and "<|channel|>analysis" in header
        self._gap[not self._reasons] = True
        if called:
            self._emit(header + message)
        self._stage = self._body
        return True

    def _body(self) -> bool:
        found = _BODY_END.search(self._held)
        if found is None:
            certain = len(self._held) - _undecided(self._held, _BODY_ENDS)
            text, self._held = self._held[:certain], self._held[certain:]
            self._emit(text)
            return False
        self._emit(self._held[: found.start()])
        ended = found.group() == "<|end|>"  # the other two begin the next header
        self._held = self._held[found.end() if ended else found.start() :]
        self._stage = self._begin
        return True

    def _emit(self, text: str) -> None:
        if not text:
            return
        place = int(not self._reasons)
        if self._gap[place] and self._begun[place]:
            text = "\n\n" + text
        self._gap[place], self._begun[place] = False, True
        self._out[place] += text


_BODY_ENDS = ("<|end|>", "<|start|>", "<|channel|>")
_BODY_END = re.compile("|".join(map(re.escape, _BODY_ENDS)))


def _undecided(text: str, delimiters: tuple[str, ...]) -> int:
    """How many of the last characters may be the beginning of a delimiter."""
    longest = max(map(len, delimiters)) - 1
    for n in range(min(longest, len(text)), 0, -1):
        if any(delimiter.startswith(text[-n:]) for delimiter in delimiters):
            return n
    return 0
