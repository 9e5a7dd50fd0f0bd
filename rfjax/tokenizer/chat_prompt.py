"""A conversation as a model is asked to go on with it."""

from __future__ import annotations

import dataclasses
import datetime
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any

from rfjax.errors import RequestError
from rfjax.tokenizer.reasoning import Reasoning, ThinkingTags

# Where templates look for the reasoning of earlier replies, in the order of preference.
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


@dataclasses.dataclass(frozen=True)
class ChatPrompt:
    """A rendered conversation.

    Attributes:
      text: What the template made of it.
      token_ids: The same in tokens, with the token that begins a sequence where the file asks
        for it, once.
      stop_token_ids: Tokens that end the answer besides the model's own.
      stop: Texts that end the answer: the end of a turn in a template that the model has no
        token for.
      reasoning: How the reply is parted into reasoning and answer.
      opened: The delimiters whose reasoning the text ends in; None where the reply begins outside.
    """

    text: str
    token_ids: list[int]
    stop_token_ids: tuple[int, ...]
    stop: tuple[str, ...]
    reasoning: Reasoning
    opened: ThinkingTags | None

    @property
    def opened_text(self) -> str:
        """The end of `text` that belongs to the reply: an opening delimiter, or nothing."""
        return "" if self.opened is None else self.text[self.text.rindex(self.opened.opening) :]


def check_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for `Tokenizer.apply_chat_template` that may come from outside.

    Raises:
      RequestError: A name is no text or is taken, or a value cannot be what its name says.
    """
    if not isinstance(arguments, Mapping):
        raise RequestError(
            f"template_kwargs: got {arguments!r}, expected a mapping of names to values"
        )
    for name, value in arguments.items():
        if not isinstance(name, str) or name in ("messages", "chat_template", "self"):
            raise RequestError(
                f"template_kwargs: {name!r} cannot be passed to a template there; expected names "
                "such as 'enable_thinking'"
            )
        if name in ("tools", "documents") and not isinstance(value, list | tuple | types.NoneType):
            raise RequestError(f"template_kwargs: {name} is {value!r}; expected a list")
        if name == "now" and not isinstance(value, datetime.datetime | types.NoneType):
            raise RequestError(f"template_kwargs: now is {value!r}; expected a datetime")
    return dict(arguments)


def part_history(
    messages: Sequence[Mapping[str, Any]], reasoning: Reasoning, template: str
) -> list[Mapping[str, Any]]:
    """Takes the reasoning out of the replies of a conversation.

    It goes where the template looks for it (`reasoning_content`, in most), which then shows or
    drops it as the family was trained. A template that looks nowhere never sees it.

    Args:
      messages: The conversation, with the replies as they were generated, or with their reasoning
        in `reasoning_content` already.
      reasoning: The delimiters of the replies.
      template: Jinja source.

    Returns:
      The messages. Those that call tools are as they were.
    """
    keys = [key for key in _REASONING_KEYS if re.search(rf"\.{key}\b|['\"]{key}['\"]", template)]

    def parted(message: Mapping[str, Any]) -> Mapping[str, Any]:
        if not isinstance(message, Mapping) or message.get("role") != "assistant":
            return message
        content = message.get("content")
        if not isinstance(content, str) or message.get("tool_calls"):
            return message
        parts = reasoning.split(content)
        changed = {**message, "content": parts.answer} if parts.answer != content else {**message}
        thought = message.get("reasoning_content") or parts.reasoning
        if thought and keys and not any(changed.get(key) for key in keys):
            changed[keys[0]] = thought
        return changed

    return [parted(message) for message in messages]
