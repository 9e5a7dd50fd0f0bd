"""Chat templates: a conversation to the text of a prompt, in sandboxed Jinja.

A template is code out of a model file, so it runs in Jinja's immutable sandbox with bounds on
loops, on the size of every value it builds, and on the size of its output. It sees what Hugging
Face's `apply_chat_template` gives it, which is what templates are written for.
"""

from __future__ import annotations

import datetime
import json
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rfjax.errors import ModelFormatError, RequestError

if TYPE_CHECKING:
    import jinja2

MAX_OUTPUT_CHARS = 16 * 2**20
MAX_ITERATIONS = 1_000_000
MAX_VALUE_ITEMS = 16 * 2**20
MAX_EXPONENT = 64

_KEY = "tokenizer.chat_template"
# What a template may raise by itself: wrong types and missing keys in what it was given.
_TEMPLATE_FAULTS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


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


class _Refusal(Exception):
    """The template called `raise_exception`."""


class ChatTemplates:
    """The chat templates of one model, compiled when first used."""

    def __init__(self, sources: Mapping[str, str], special_texts: Mapping[str, str]):
        self.sources = types.MappingProxyType(dict(sources))
        self._special_texts = special_texts
        self._compiled: dict[str, jinja2.Template] = {}

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
        template = self._template(chat_template)
        moment = now or datetime.datetime.now()

        def attempt(messages: Sequence[Mapping[str, Any]]) -> str:
            return self._run(template, messages, moment, variables)

        try:
            try:
                return attempt(messages)
            except _Refusal:
                if not _refuses_system(attempt, messages):
                    raise
                return attempt(_fold_system(messages))
        except _Refusal as refusal:
            raise RequestError(f"the chat template refuses the conversation: {refusal}") from None

    def _template(self, name_or_source: str | None) -> jinja2.Template:
        if name_or_source is None and "default" not in self.sources:
            names = f" by default (it has: {', '.join(self.sources)})" if self.sources else ""
            raise RequestError(
                f"the model file has no chat template{names}; pass chat_template=, or render the "
                "prompt yourself and generate from text"
            )
        source = self.sources.get(name_or_source or "default", name_or_source)
        assert source is not None
        if source not in self._compiled:
            if source == name_or_source and "{" not in source:
                raise RequestError(
                    f"no chat template is named {source!r}; the file has: "
                    f"{', '.join(self.sources) or 'none'}"
                )
            self._compiled[source] = _compile(source)
        return self._compiled[source]

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
            _BUDGET: _Budget(),
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
        except _TEMPLATE_FAULTS as error:
            if isinstance(error, RequestError):
                raise
            raise RequestError(
                f"the chat template failed on this conversation: {type(error).__name__}: {error}"
            ) from error
        except RecursionError as error:
            raise RequestError("the chat template recurses without end") from error
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
    except _Refusal:
        return False
    try:
        attempt([system, user])
    except _Refusal:
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


# Sandbox ------------------------------------------------------------------------------------------

_BUDGET = "_rfjax_budget"
_BOUNDED = "_rfjax_bounded"


class _Budget:
    """Loop iterations that one rendering has left."""

    def __init__(self) -> None:
        self._left = MAX_ITERATIONS

    def count(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._left -= 1
            if self._left < 0:
                raise RequestError(
                    f"the chat template runs more than {MAX_ITERATIONS} loop iterations"
                )
            yield item


def _compile(source: str) -> jinja2.Template:
    import jinja2
    from jinja2 import nodes

    environment = _environment()
    try:
        tree = environment.parse(source)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, _BOUNDED, [], [], None, None, lineno=loop.lineno)
        return environment.from_string(tree)
    except jinja2.TemplateSyntaxError as error:
        raise ModelFormatError(
            f"the chat template is not valid Jinja: line {error.lineno}: {error.message}"
        ) from error
    except RecursionError as error:
        raise ModelFormatError("the chat template is nested too deeply") from error


def _environment() -> jinja2.Environment:
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
        """Jinja's sandbox, which bounds `range`, with bounds on the values that operators build."""

        intercepted_binops = frozenset(("*", "**", "+", "%"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_operands(operator, left, right)
            return super().call_binop(context, operator, left, right)

    class Generation(jinja2.ext.Extension):
        """`{% generation %}`: marks the assistant's text for training; nothing to do here."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's own protocol

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    @jinja2.pass_context
    def bounded(context: jinja2.runtime.Context, items: Iterable[Any]) -> Any:
        if isinstance(items, jinja2.Undefined):
            return items
        return _Counted(items, context[_BUDGET])

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.filters[_BOUNDED] = bounded
    environment.globals["raise_exception"] = _refuse
    return environment


class _Counted:
    """An iterable that counts; it keeps the length, so that `loop.last` needs no look-ahead."""

    def __init__(self, items: Any, budget: _Budget):
        self._items = items
        self._budget = budget

    def __iter__(self) -> Iterator[Any]:
        return self._budget.count(self._items)

    def __len__(self) -> int:
        return len(self._items)


def _check_operands(operator: str, left: Any, right: Any) -> None:
    if operator == "**":
        size = right if isinstance(right, int) else 0
        limit = MAX_EXPONENT
    elif operator == "*":
        size = max(_product(left, right), _product(right, left))
        limit = MAX_VALUE_ITEMS
    elif operator == "%" and isinstance(left, str):
        size, limit = 1, 0  # widths such as %1000000000d
    else:
        size = sum(len(value) for value in (left, right) if isinstance(value, str | list | tuple))
        limit = MAX_VALUE_ITEMS
    if size > limit:
        raise RequestError(
            f"the chat template's {operator!r} would build a value beyond the sandbox's limits"
        )


def _product(items: Any, times: Any) -> int:
    sized = isinstance(items, str | list | tuple) and isinstance(times, int)
    return len(items) * times if sized else 0


def _refuse(message: str) -> None:
    raise _Refusal(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, where Jinja's own filter would escape it for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
