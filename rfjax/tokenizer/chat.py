"""Chat templates: a conversation to the text of a prompt.

A template sees what Hugging Face's `apply_chat_template` gives it, which is what templates are
written for, and runs in the sandbox of `rfjax.tokenizer.sandbox`.
"""

from __future__ import annotations

import datetime
import difflib
import functools
import types
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rfjax.errors import ModelFormatError, RequestError, RfjaxError
from rfjax.tokenizer.budget import Budget
from rfjax.tokenizer.families import FAMILIES
from rfjax.tokenizer.sandbox import BUDGET, Refusal, compile_template

if TYPE_CHECKING:
    import jinja2

MAX_OUTPUT_CHARS = 16 * 2**20

_KEPT_TEMPLATES = 8
_EXAMPLES = ", such as chatml, llama3 or gemma"
# These end turns in so many families that they say nothing of which one it is.
_COMMON_ENDS = ("</s>", "<|endoftext|>", "<|user|>", "\n\n")
_KEY = "tokenizer.chat_template"
# What a template may raise by itself: wrong types and missing keys in what it was given, and names
# that Jinja's compiler makes of numbers like 1e999.
_TEMPLATE_FAULTS = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    NameError,
    RuntimeError,
)


def read_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates of a GGUF file by name; the main one is `default`.

    Raises:
      ModelFormatError: A template is not a string.
    """
    templates = {}
    for key, value in metadata.items():
        name = "default" if key == _KEY else key.removeprefix(f"{_KEY}.")
        if name == key:
            continue
        if not isinstance(value, str):
            raise ModelFormatError(
                f"{key} is {type(value).__name__}; expected a string with a Jinja template"
            )
        templates[name] = value
    return templates


class ChatTemplates:
    """The chat templates of one model, compiled when first used."""

    def __init__(
        self,
        sources: Mapping[str, str],
        special_texts: Mapping[str, str],
        vocabulary: Container[str] = (),
    ):
        """Templates of a model.

        Args:
          sources: Jinja source by name.
          special_texts: Variables of templates such as `bos_token`.
          vocabulary: Texts of the model's tokens, which tell what a model without a template
            may have been trained with.
        """
        self.sources = types.MappingProxyType(dict(sources))
        self._special_texts = special_texts
        self._vocabulary = vocabulary
        # Sources may come with requests, and all of them must not be kept.
        self._compile = functools.lru_cache(maxsize=_KEPT_TEMPLATES)(compile_template)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        chat_template: str | None,
        now: datetime.datetime | None,
        variables: Mapping[str, Any],
    ) -> str:
        """Renders messages; see `Tokenizer.apply_chat_template`."""
        messages = _checked(messages)
        tools = bool(variables.get("tools"))
        template = self._compile(self.source(chat_template, tools=tools))
        moment = now or datetime.datetime.now()

        def attempt(messages: Sequence[Mapping[str, Any]]) -> str:
            return self._run(template, messages, moment, variables)

        try:
            try:
                return attempt(messages)
            except Refusal:
                if not _refuses_system(attempt, messages):
                    raise
                return attempt(_fold_system(messages))
        except Refusal as refusal:
            raise RequestError(f"the chat template refuses the conversation: {refusal}") from None

    def source(self, name_or_source: str | None, *, tools: bool = False) -> str:
        """Jinja source of a template.

        Args:
          name_or_source: Name of one of `sources`, else of one of `families.FAMILIES`, else Jinja
            source. None takes the file's own: `default`, or `tool_use` where there is one and
            the model gets tools.
          tools: Whether the model gets tools.

        Raises:
          RequestError: The file has no template of its own, or none has that name.
        """
        if name_or_source is None:
            name = "tool_use" if tools and "tool_use" in self.sources else "default"
            if name not in self.sources:
                raise self._none()
            return self.sources[name]
        if name_or_source in self.sources:
            return self.sources[name_or_source]
        if name_or_source in FAMILIES:
            return FAMILIES[name_or_source].source
        if "{" in name_or_source:
            return name_or_source
        known = [*self.sources, *FAMILIES]
        close = difflib.get_close_matches(name_or_source, known, n=3, cutoff=0.5)
        raise RequestError(
            f"no chat template is named {name_or_source!r}"
            + (f"; did you mean {' or '.join(close)}?" if close else "")
            + f"; the file has: {', '.join(self.sources) or 'none'}; built in: "
            + ", ".join(FAMILIES)
        )

    def end(self, name_or_source: str | None) -> str:
        """What ends an answer in the family of that name; nothing for the file's templates."""
        if name_or_source is None or name_or_source in self.sources:
            return ""
        family = FAMILIES.get(name_or_source)
        return "" if family is None else family.end

    def _none(self) -> RequestError:
        names = f" by default (it has: {', '.join(self.sources)})" if self.sources else ""
        fitting = [
            name
            for name, family in FAMILIES.items()
            if family.end not in _COMMON_ENDS and family.end in self._vocabulary
        ]
        hint = f": its tokens suggest {' or '.join(fitting)}" if fitting else _EXAMPLES
        return RequestError(
            f"the model file has no chat template{names}; name the one that the model was trained "
            f"with by template= (--template on the command line){hint}"
        )

    def _run(
        self,
        template: jinja2.Template,
        messages: Sequence[Mapping[str, Any]],
        now: datetime.datetime,
        variables: Mapping[str, Any],
    ) -> str:
        import jinja2

        context = {
            **self._special_texts,
            **variables,
            "messages": messages,
            "strftime_now": now.strftime,
            BUDGET: Budget(),
        }
        parts: list[str] = []
        size = 0
        try:
            for part in template.generate(context):
                parts.append(part)
                size += len(part)
                if size > MAX_OUTPUT_CHARS:
                    raise RequestError(
                        f"the chat template's output exceeds {MAX_OUTPUT_CHARS} characters; "
                        "shorten the conversation"
                    )
        except jinja2.TemplateError as error:
            raise RequestError(f"the chat template failed: {error}") from error
        except RfjaxError:
            raise
        except RecursionError as error:
            raise RequestError("the chat template recurses without end") from error
        except MemoryError as error:
            raise RequestError("the chat template needs more memory than there is") from error
        except _TEMPLATE_FAULTS as error:
            raise RequestError(
                f"the chat template failed on this conversation: {type(error).__name__}: {error}"
            ) from error
        return "".join(parts)


def _checked(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise RequestError(
            f"messages is a list of {{'role': ..., 'content': ...}}; got {type(messages).__name__}"
        )
    if not messages:
        raise RequestError("messages is empty; expected at least one message")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RequestError(
                f"message {i} is {str(message)[:80]!r}; expected a mapping with a 'role' that is a "
                "string, such as {'role': 'user', 'content': 'Hello'}"
            )
    return list(messages)


def _refuses_system(attempt: Any, messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the system role as such is what the template will not have."""
    roles = [message["role"] for message in messages]
    if roles[0] != "system" or "user" not in roles:
        return False
    system, user = ({"role": role, "content": "x"} for role in ("system", "user"))
    try:
        attempt([user])
    except Refusal:
        return False
    try:
        attempt([system, user])
    except Refusal:
        return True
    return False


def _fold_system(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Puts the system message before the text of the first user message."""
    system, *rest = messages
    first = next(i for i, message in enumerate(rest) if message["role"] == "user")
    content = rest[first].get("content")
    if isinstance(content, str) and isinstance(system.get("content"), str):
        joined: Any = f"{system['content']}\n\n{content}"
    else:
        joined = [*_as_parts(system.get("content")), *_as_parts(content)]
    rest[first] = {**rest[first], "content": joined}
    return rest


def _as_parts(content: Any) -> list[Any]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return list(content or ())
