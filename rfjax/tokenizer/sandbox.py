"""The sandbox that chat templates run in.

A template is code out of a model file, so it runs in Jinja's immutable sandbox, which keeps it
from Python's internals, with bounds on loop iterations and on the size of the values it builds.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rfjax.errors import ModelFormatError, RequestError

if TYPE_CHECKING:
    import jinja2

MAX_ITERATIONS = 1_000_000
MAX_VALUE_ITEMS = 16 * 2**20  # characters of a string, elements of a list
MAX_WIDTH = 4096  # columns that a filter may pad to
MAX_INTEGER_BITS = 4096

BUDGET = "_rfjax_budget"  # name under which a rendering's context holds its Budget
_BOUNDED = "_rfjax_bounded"  # name of the filter that every loop's iterable passes through
_WIDE_FIELD = re.compile(r"[0-9]{5}|%[^%a-zA-Z]*\*")


class Refusal(Exception):
    """The template called `raise_exception`."""


class Budget:
    """Loop iterations that one rendering has left."""

    def __init__(self) -> None:
        self._left = MAX_ITERATIONS

    def count(self, items: Iterable[Any]) -> Iterator[Any]:
        """Passes items on while iterations are left, and raises `RequestError` after."""
        for item in items:
            self._left -= 1
            if self._left < 0:
                raise RequestError(
                    f"the chat template runs more than {MAX_ITERATIONS} loop iterations"
                )
            yield item


def compile_template(source: str) -> jinja2.Template:
    """Compiles a template whose loops count against the `Budget` in its context.

    Raises:
      ModelFormatError: The source is not valid Jinja.
    """
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

        def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
            _check_call(obj, args, kwargs)
            return super().call(context, obj, *args, **kwargs)

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
        return _Counted(items, context[BUDGET])

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = _to_json
    for name in ("center", "indent", "tojson", "format"):
        environment.filters[name] = _checked_filter(name, environment.filters[name])
    environment.filters[_BOUNDED] = bounded
    environment.globals["raise_exception"] = _refuse
    return environment


class _Counted:
    """An iterable that counts; it keeps the length, so that `loop.last` needs no look-ahead."""

    def __init__(self, items: Any, budget: Budget):
        self._items = items
        self._budget = budget

    def __iter__(self) -> Iterator[Any]:
        return self._budget.count(self._items)

    def __len__(self) -> int:
        return len(self._items)


def _check_operands(operator: str, left: Any, right: Any) -> None:
    size, limit = 0, MAX_VALUE_ITEMS
    if isinstance(left, int) and isinstance(right, int):
        limit = MAX_INTEGER_BITS
        if operator == "**":
            size = left.bit_length() * right
        elif operator == "*":
            size = left.bit_length() + right.bit_length()
    elif operator == "*":
        size = max(_product(left, right), _product(right, left))
    elif operator == "%" and isinstance(left, str):
        size = _format_size(left)
    elif operator == "+":
        size = sum(len(value) for value in (left, right) if isinstance(value, str | list | tuple))
    _check_size(operator, size, limit)


def _check_call(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuses calls of a string's methods that would build a huge string."""
    function = getattr(function, "__wrapped__", function)  # the sandbox wraps `format`
    text = getattr(function, "__self__", None)
    if not isinstance(text, str):
        return
    name = function.__name__
    size = max((arg for arg in (*args, *kwargs.values()) if isinstance(arg, int)), default=0)
    if name == "replace" and len(args) >= 2 and all(isinstance(arg, str) for arg in args[:2]):
        size = len(text) + text.count(args[0]) * len(args[1])
    elif name == "join" and args and isinstance(args[0], list | tuple):
        size = sum(len(part) + len(text) for part in args[0] if isinstance(part, str))
    elif name in ("format", "format_map"):
        size = max(size, _format_size(text))
    _check_size(name, size, MAX_VALUE_ITEMS)


def _checked_filter(name: str, function: Callable[..., str]) -> Callable[..., str]:
    """A filter that pads, with bounds on its width."""

    @functools.wraps(function)
    def checked(value: Any, *args: Any, **kwargs: Any) -> str:
        widths = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, int)]
        if name == "format":
            _check_size(name, _format_size(value), MAX_VALUE_ITEMS)
        else:
            _check_size(name, max(widths, default=0), MAX_WIDTH)
        return function(value, *args, **kwargs)

    return checked


def _format_size(pattern: str) -> int:
    """A bound on the widest field of a format string."""
    return MAX_VALUE_ITEMS + 1 if _WIDE_FIELD.search(pattern) else 0


def _check_size(operation: str, size: int, limit: int) -> None:
    if size > limit:
        raise RequestError(
            f"the chat template's {operation!r} would build a value beyond the sandbox's limits"
        )


def _product(items: Any, times: Any) -> int:
    sized = isinstance(items, str | list | tuple) and isinstance(times, int)
    return len(items) * times if sized else 0


def _refuse(message: str) -> None:
    raise Refusal(message)


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
