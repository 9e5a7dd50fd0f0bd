"""The sandbox that chat templates run in.

A template is code out of a model file, so it runs in Jinja's immutable sandbox, which keeps it
from Python's internals, with a `Budget` of steps and memory. Whatever builds a value counts
against it: operators and calls through the sandbox's own hooks, filters because all are wrapped,
output because it passes through `finalize`, and literals, slices and `~` because the parsed
template is rewritten so that they pass through filters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rfjax.errors import ModelFormatError
from rfjax.tokenizer.budget import MAX_ESCAPE, MAX_VALUE_ITEMS, Budget, shown_size

if TYPE_CHECKING:
    import jinja2
    from jinja2 import nodes

MAX_WIDTH = 4096  # columns that a filter may pad to
MAX_INTEGER_BITS = 4096

BUDGET = "_rfjax_budget"  # name under which a rendering's context holds its Budget
_BOUNDED = "_rfjax_bounded"  # name of the filter that every loop's iterable passes through
_BUILT = "_rfjax_built"  # name of the filter that literals and slices pass through

_NUMBER = re.compile(r"\d+")
_NESTED_FIELD = re.compile(r"\{[^{}]*\{")
_REFUSED_FIELD = re.compile(r"%[^%a-zA-Z]*\*|\{[^{}:!]*[.\[]")  # %*d, {0.name}, {0[name]}
_ESCAPING_FIELD = re.compile(r"(%(\([^)]*\))?[^%a-zA-Z]*|!)[ra]")
_FLOAT_WIDTH = 400  # of 1e308 in full

# For web pages; their results can be far larger than their arguments.
_LEFT_OUT = ("pprint", "urlencode", "urlize", "wordwrap", "xmlattr")
_TEXT_FILTERS = (
    *("capitalize", "center", "e", "escape", "forceescape", "format", "indent", "lower"),
    *("replace", "safe", "string", "striptags", "title", "trim", "truncate", "upper", "wordcount"),
)
_PADDING_FILTERS = ("batch", "center", "indent", "round", "slice", "tojson")
_SPLITTING_FILTERS = (
    *("batch", "groupby", "list", "map", "reject", "rejectattr", "select", "selectattr", "slice"),
    *("sort", "sum", "title", "unique", "wordcount"),
)
_SORTING_FILTERS = ("dictsort", "groupby", "sort")
_REFUSED_METHODS = ("encode", "expandtabs", "from_bytes", "fromkeys", "to_bytes", "translate")
_ELEMENT_BYTES = 128  # of a new element of a container, with what it consists of


class Refusal(Exception):
    """The template called `raise_exception`."""


def compile_template(source: str) -> jinja2.Template:
    """Compiles a template that counts against the `Budget` in its context.

    Raises:
      ModelFormatError: The source is not valid Jinja.
    """
    import jinja2

    environment = _environment()
    try:
        return environment.from_string(_rewritten(environment.parse(source)))
    except jinja2.TemplateSyntaxError as error:
        raise ModelFormatError(
            f"the chat template is not valid Jinja: line {error.lineno}: {error.message}"
        ) from error
    except (SyntaxError, ValueError) as error:  # of the Python that Jinja makes of it
        raise ModelFormatError(f"the chat template is not valid Jinja: {error}") from error
    except (RecursionError, MemoryError) as error:
        raise ModelFormatError("the chat template is nested too deeply") from error


def _rewritten(tree: nodes.Template) -> nodes.Template:
    """The template with what no hook of the sandbox sees put through filters."""
    from jinja2 import nodes, visitor

    def through(name: str, node: Any) -> nodes.Filter:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    class Rewrite(visitor.NodeTransformer):
        def visit_For(self, node: nodes.For) -> nodes.Node:
            self.generic_visit(node)
            node.iter = through(_BOUNDED, node.iter)
            return node

        def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
            self.generic_visit(node)
            return through("join", nodes.List(node.nodes, lineno=node.lineno))

        def visit_literal(self, node: Any) -> nodes.Node:
            self.generic_visit(node)
            return node if getattr(node, "ctx", "load") != "load" else through(_BUILT, node)

        visit_List = visit_Dict = visit_Tuple = visit_literal

        def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
            self.generic_visit(node)
            return through(_BUILT, node) if isinstance(node.arg, nodes.Slice) else node

        def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
            return nodes.Const(node.data, lineno=node.lineno)  # these pass through finalize

    return Rewrite().visit(tree)


def _environment() -> jinja2.Environment:
    import jinja2
    import jinja2.ext
    import jinja2.runtime
    import jinja2.sandbox
    import markupsafe

    class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
        """Jinja's sandbox, which bounds `range`, with bounds on the values that are built."""

        intercepted_binops = frozenset(("*", "**", "+", "-", "%"))

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            if attr in _REFUSED_METHODS and isinstance(obj, str | int | dict):
                return False
            return super().is_safe_attribute(obj, attr, value)

        def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
            budget = context[BUDGET]
            budget.step()
            if isinstance(obj, jinja2.runtime.LoopContext) and args:  # a recursive loop
                args = (_Counted(args[0], budget), *args[1:])
            args = _checked_arguments(budget, obj, args, kwargs)
            return budget.spend(super().call(context, obj, *args, **kwargs), _ELEMENT_BYTES)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            budget = context[BUDGET]
            _check_operands(budget, operator, left, right)
            return budget.spend(super().call_binop(context, operator, left, right))

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

    @jinja2.pass_context
    def built(context: jinja2.runtime.Context, value: Any) -> Any:
        return context[BUDGET].spend(value)

    @jinja2.pass_context
    def finalize(context: jinja2.runtime.Context, value: Any) -> str:
        budget = context[BUDGET]
        text = budget.text("output", value)
        if context.eval_ctx.autoescape:
            budget.check_bytes("output", 8 * len(text))
            budget.spend(markupsafe.escape(text))
        return budget.spend(text)

    environment = Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", Generation],
        finalize=finalize,
    )
    plain = Sandbox()
    plain.filters |= {"tojson": jinja2.pass_context(_to_json), "sum": jinja2.pass_context(_sum)}
    environment.filters = {
        name: _checked_filter(plain, name) for name in plain.filters if name not in _LEFT_OUT
    }
    environment.filters |= {_BOUNDED: bounded, _BUILT: built}
    del environment.globals["lipsum"]
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


def _check_operands(budget: Budget, operator: str, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        size = 0
        if operator == "**":
            size = left.bit_length() * right
        elif operator == "*":
            size = left.bit_length() + right.bit_length()
        budget.check_size(operator, size, MAX_INTEGER_BITS)
    elif operator == "*":
        budget.check_size(operator, max(_product(left, right), _product(right, left)))
    elif operator == "%" and isinstance(left, str):
        values = right if isinstance(right, tuple) else (right,)
        budget.check_size(operator, _format_size("%", left, values))
    elif operator == "+":
        sizes = (len(value) for value in (left, right) if isinstance(value, str | list | tuple))
        budget.check_size(operator, sum(sizes))


def _checked_arguments(
    budget: Budget, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, ...]:
    """Arguments of a call, unless it is of a string's method that would build a huge value."""
    function = getattr(function, "__wrapped__", function)  # the sandbox wraps `format`
    text = getattr(function, "__self__", None)
    name = getattr(function, "__name__", "")
    if name == "strftime" and args:
        budget.check_size(name, 256 * len(args[0]))  # 256 is Python's own bound
    if not isinstance(text, str):
        return args
    if name == "replace" and len(args) >= 2 and all(isinstance(arg, str) for arg in args[:2]):
        budget.check_size(name, _replaced_size(text, args[0], args[1]))
    elif name == "join" and args:
        args = (list(budget.count(args[0])), *args[1:])
        budget.check_size(name, sum(len(text) + shown_size(part) for part in args[0]))
    elif name in ("split", "rsplit", "splitlines"):
        separator = next(iter(args), kwargs.get("sep"))
        parts = len(text) // 2 + 1
        if isinstance(separator, str) and separator:
            parts = text.count(separator) + 1
        budget.check_bytes(name, parts * _ELEMENT_BYTES // 2)
    elif name in ("format", "format_map"):
        budget.check_size(name, _format_size("{", text, (*args, *kwargs.values())))
    else:
        widths = (arg for arg in (*args, *kwargs.values()) if isinstance(arg, int))
        budget.check_size(name, max(widths, default=0))
    return args


def _checked_filter(plain: jinja2.Environment, name: str) -> Callable[..., Any]:
    """The filter of that name in `plain`, with its arguments checked and its result counted.

    Iterators become lists here, so that nothing is left to be built later, uncounted.
    """
    import jinja2

    @jinja2.pass_context
    def checked(context: jinja2.runtime.Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = context[BUDGET]
        budget.step()
        if name == "join":
            value, args, kwargs = _texts(context, value, *args, **kwargs), args[:1], {}
        elif name in _TEXT_FILTERS:
            value = budget.text(name, value)
        if name == "replace":
            args = (*(budget.text(name, arg) for arg in args[:2]), *args[2:])
        _check_filter(budget, name, value, (*args, *kwargs.values()))
        result = plain.call_filter(name, value, args, kwargs, context, context.eval_ctx)
        if isinstance(result, Iterator):
            result = list(budget.count(result))
        return budget.spend(result, _ELEMENT_BYTES)

    return checked


def _check_filter(budget: Budget, name: str, value: Any, options: tuple[Any, ...]) -> None:
    """Refuses what would make a filter's result, or what it needs for it, huge."""
    texts = [option for option in options if isinstance(option, str)]
    width = max((option for option in options if isinstance(option, int)), default=0)
    if name in _PADDING_FILTERS:
        budget.check_size(name, width, MAX_WIDTH)
        budget.spend_bytes(_ELEMENT_BYTES * width)
    if name in _SPLITTING_FILTERS and hasattr(value, "__len__"):
        budget.check_bytes(name, len(value) * _ELEMENT_BYTES)
    if name in _SORTING_FILTERS:  # by keys in lower case, all of them new
        keys = 1 + max((text.count(",") for text in texts), default=0)
        size = shown_size(value)
        budget.check_size(name, size)
        budget.check_bytes(name, 4 * keys * size)
    if name == "format":
        budget.check_size(name, _format_size("%", value, options))
    elif name == "indent":
        width = max(4, width, *map(len, texts), 0)
        budget.check_size(name, len(value) + width * (1 + len(value.splitlines())))
    elif name == "replace" and len(texts) >= 2:
        budget.check_size(name, _replaced_size(value, texts[0], texts[1]))


def _texts(
    context: jinja2.runtime.Context,
    items: Iterable[Any],
    d: str = "",
    attribute: str | int | None = None,
) -> list[str]:
    """What the `join` filter of these arguments puts together."""
    from jinja2.filters import make_attrgetter

    budget = context[BUDGET]
    if attribute is not None:
        items = map(make_attrgetter(context.environment, attribute), items)
    texts, size = [], 0
    separator = shown_size(d)
    for item in budget.count(items):
        text = budget.text("join", item)
        size += len(text) + separator
        budget.check_size("join", size)
        texts.append(text)
    return texts


def _sum(
    context: jinja2.runtime.Context,
    iterable: Iterable[Any],
    attribute: str | int | None = None,
    start: Any = 0,
) -> Any:
    """Jinja's filter, by additions that are checked."""
    from jinja2.filters import make_attrgetter

    if attribute is not None:
        iterable = map(make_attrgetter(context.environment, attribute), iterable)
    environment: Any = context.environment
    for item in context[BUDGET].count(iterable):
        start = environment.call_binop(context, "+", start, item)
    return start


def _format_size(mark: str, pattern: str, values: tuple[Any, ...]) -> int:
    """A bound on the length of a formatted string; `mark` is what begins a field."""
    if _REFUSED_FIELD.search(pattern):
        return MAX_VALUE_ITEMS + 1
    widths = [_FLOAT_WIDTH, *map(int, _NUMBER.findall(pattern))]
    if _NESTED_FIELD.search(pattern):
        widths += [value for value in values if isinstance(value, int)]
    longest = max(map(shown_size, values), default=0)
    if _ESCAPING_FIELD.search(pattern):
        longest *= MAX_ESCAPE
    return len(pattern) + pattern.count(mark) * (max(widths) + longest)


def _replaced_size(text: str, old: str, new: str) -> int:
    return len(text) + text.count(old) * len(new)


def _product(items: Any, times: Any) -> int:
    sized = isinstance(items, str | list | tuple) and isinstance(times, int)
    return len(items) * times if sized else 0


def _refuse(message: str) -> None:
    raise Refusal(message)


def _to_json(
    context: jinja2.runtime.Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, where Jinja's own filter would escape it for HTML."""
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    budget = context[BUDGET]
    budget.check_size("tojson", shown_size(value, escape=1))  # much faster than the loop
    parts, size = [], 0
    for part in encoder.iterencode(value):
        parts.append(part)
        size += len(part)
        budget.check_size("tojson", size)
    return "".join(parts)
