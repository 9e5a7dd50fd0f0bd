"""The bounds on what a chat template may do."""

import gc
import weakref

import pytest

from rfjax.errors import ModelFormatError, RequestError
from rfjax.tokenizer import budget
from rfjax.tokenizer.chat import ChatTemplates

GROWTH = (
    "{% set n = namespace(x=START) %}"
    "{% for i in range(99) %}{% set n.x = n.x OPERATOR n.x %}{% endfor %}"
)


def render(source, **variables):
    templates = ChatTemplates({"default": source}, {})
    messages = [{"role": "user", "content": "Hi"}]
    return templates.render(messages, chat_template=None, now=None, variables=variables)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ strftime_now.__self__.year }}",
        "{{ cycler.__init__.__globals__['os'] }}",
    ],
)
def test_python_is_out_of_reach(source):
    with pytest.raises(RequestError, match="the chat template failed"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10 ** 9 }}",
        "{{ 10 ** 9 * 'a' }}",
        "{{ [0] * 10 ** 9 }}",
        "{{ 9 ** 99999 }}",
        GROWTH.replace("START", "7").replace("OPERATOR", "*"),
        GROWTH.replace("START", "'ab'").replace("OPERATOR", "+"),
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ '{:>{w}}'.format(1, w=999999999) }}",
        "{{ 'a'.ljust(999999999) }}",
        "{{ 'a' | center(999999999) }}",
        "{{ 'a' | indent(999999999, true) }}",
        "{{ [1] | tojson(indent=999999999) }}",
        "{% set x = 'a' * 9999999 %}{{ x.replace('a', x) }}",
        "{% set x = 'a' * 9999999 %}{{ x.join(['a'] * 99) }}",
    ],
)
def test_values_are_bounded(source):
    with pytest.raises(RequestError, match="beyond the sandbox's limits"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{% for j in range(9999) %}{% endfor %}{% endmacro %}"
        "{% for i in range(9999) %}{{ f() }}{% endfor %}",
    ],
)
def test_loops_are_bounded(source):
    with pytest.raises(RequestError, match="loop iterations"):
        render(source)


def test_ranges_are_bounded():
    with pytest.raises(RequestError, match="Range too big"):
        render("{% for i in range(10 ** 9) %}{% endfor %}")


def test_recursion_is_bounded():
    with pytest.raises(RequestError, match="recurses without end"):
        render("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}")
    with pytest.raises(ModelFormatError, match="nested too deeply"):
        render("{{ " + "(" * 9999 + ")" * 9999 + " }}")


def test_output_is_bounded():
    source = "{% set x = 'a' * 9999999 %}{% for i in range(99) %}{{ x }}{% endfor %}"
    with pytest.raises(RequestError, match="output exceeds"):
        render(source)


def test_ordinary_templates_pass():
    source = (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{% endfor %}"
        "{{ 'a' * 3 + 'b' }}{{ '%s-%d' % ('x', 7) }}{{ '{}'.format(3) }}{{ 2 ** 10 }}{{ 3 * 4 }}"
        "{{ 'ab'.replace('a', 'c') }}{{ ', '.join(['x', 'y']) }}{{ 'q' | indent(2, true) }}"
        "{{ [1] + [2] }}{% for x in missing %}{% endfor %}{{ 7 % 4 }}"
    )
    assert render(source) == "1/1Trueaaabx-7310241" + "2cbx, y  q[1, 2]3"


def grown(step, end="", start="[1]"):
    """A template that makes `n.x` of itself, forty times over."""
    return (
        f"{{% set n = namespace(x={start}) %}}{{% for i in range(40) %}}{step}{{% endfor %}}{end}"
    )


def doubled(expression, end="", start="[1]"):
    return grown(f"{{% set n.x = {expression} %}}", end, start)


BEYOND = "beyond the sandbox's limits|MiB of values"


@pytest.mark.parametrize(
    "source",
    [
        doubled("n.x ~ n.x", start="'a'"),
        doubled("[n.x, n.x] | join", start="'a'"),
        doubled("n.x | replace('a', 'aa')", start="'a'"),
        doubled("[n.x, n.x] | sum(start=[])"),
        doubled("n.x + n.x"),
        grown("{% set z %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = z %}", start="'a'"),
        grown("{% macro m() %}{{ n.x }}{{ n.x }}{% endmacro %}{% set n.x = m() %}", start="'a'"),
        grown(
            "{% set z %}{% filter upper %}{{ n.x }}{{ n.x }}{% endfilter %}{% endset %}"
            "{% set n.x = z %}",
            start="'a'",
        ),
        "{% set z %}{% for i in range(99999) %}" + "a" * 9999 + "{% endfor %}{% endset %}",
        "{% autoescape true %}{% set z %}{% for i in range(40) %}{{ '&' * 9999999 }}"
        "{% endfor %}{% endset %}{% endautoescape %}",
    ],
)
def test_growing_values_are_bounded(source):
    with pytest.raises(RequestError, match=BEYOND):
        render(source)


@pytest.mark.parametrize(
    "shown",
    [
        *("{{ n.x }}", "{{ n.x ~ 'a' }}", "{{ n.x | string }}", "{{ n.x | tojson }}"),
        *("{{ n.x | upper }}", "{{ [n.x] | join }}", "{{ '%s' % n.x }}", "{{ '{}'.format(n.x) }}"),
        *("{{ [n.x] | sort }}", "{{ namespace(a=n.x) }}", "{{ dict(a=n.x).values() }}"),
    ],
)
def test_a_list_in_itself_many_times_over_is_not_shown(shown):
    with pytest.raises(RequestError, match=BEYOND):
        render(doubled("[n.x, n.x]", shown))


@pytest.mark.parametrize(
    "expression",
    [
        *("([x] * 999999) | sort", "([{'a': x}] * 999999) | groupby('a')", "x | join(x)"),
        *("([x] * 999999) | join", "('\n' * 999999) | indent(x)", "('\n' * 9999999) | indent(99)"),
        *("x.join({'a': 1, 'b': 2, 'c': 3})", "('%s' * 9999) % ((x,) * 9999)"),
        *("('{0}' * 9999).format(x)", "('%s' * 99) | format(x, x)", "'{:>٩٩٩٩٩٩٩٩٩}'.format(1)"),
        *("'{0.real}'.format(1)", "[1] | batch(99999, 0)", "1.5 | round(10 ** 9, 'floor')"),
        *("strftime_now(x)", "('é' * 16000000) | list", "('éa ' * 5000000).split()"),
        *("('a' * 16000000).splitlines()", "x | title", "[x[:], x[:]] * 9999999"),
    ],
)
def test_what_needs_much_memory_is_refused(expression):
    with pytest.raises(RequestError, match=BEYOND):
        render("{% set x = 'a' * 9999999 %}{{ (" + expression + ") | length }}")


@pytest.mark.parametrize(
    "body",
    [
        "{% set n.x = [n.x] + [x ~ i] %}",
        "{% set n.x = (n.x, x[1:]) %}",
        "{% set n.x = {1: n.x, 2: x | upper} %}",
        "{% set n.x = [n.x, x.upper()] %}",
        "{% set n.x = [n.x, [0] * 9999999] %}",
    ],
)
def test_what_is_kept_counts_together(body):
    source = "{% set x = 'a' * 9999999 %}{% set n = namespace(x=0) %}"
    with pytest.raises(RequestError, match="MiB of values"):
        render(source + "{% for i in range(999) %}" + body + "{% endfor %}")


@pytest.mark.parametrize(
    "source",
    [
        *("{{ 'a'.encode() }}", "{{ ('a' | attr('encode'))() }}", "{{ (1).to_bytes(9) }}"),
        *("{{ 'a'.expandtabs(9) }}", "{{ 'a'.translate({}) }}", "{{ {}.fromkeys([1]) }}"),
        *("{{ lipsum(9) }}", "{{ 1e999 }}"),
    ],
)
def test_what_templates_do_not_need_is_not_there(source):
    with pytest.raises(RequestError, match="the chat template failed"):
        render(source)


@pytest.mark.parametrize(
    "source",
    ["{{ x[1:2, 3] }}", "{{ " + "9" * 5000 + " }}", "{% if 1 %}{% for a in b %}" * 30],
)
def test_what_python_cannot_compile_is_no_template(source):
    source += "{% endfor %}{% endif %}" * source.count("{% for")
    with pytest.raises(ModelFormatError, match="not valid Jinja"):
        render(source)


def test_running_out_of_memory_is_the_requests_fault():
    def exhausted():
        raise MemoryError

    with pytest.raises(RequestError, match="needs more memory"):
        render("{{ f() }}", f=exhausted)


def test_calls_are_bounded(monkeypatch):
    monkeypatch.setattr(budget, "MAX_STEPS", 10_000)
    source = (
        "{% macro f(n) %}{% if n %}{% set a = f(n - 1) %}{% set b = f(n - 1) %}{% endif %}"
        "{% endmacro %}{{ f(60) }}"
    )
    with pytest.raises(RequestError, match="loop iterations and calls"):
        render(source)


def test_long_conversations_pass():
    content = "One line of text, and another.\n" * 30_000
    source = (
        "{% set n = namespace(all='', parts=[]) %}{% for m in messages %}"
        "{% set n.all = n.all ~ m.content | trim + '\n' %}{% set n.parts = n.parts + [m] %}"
        "{% if 'x' not in m.content.split('</think>')[-1].splitlines() %}{{ m | tojson }}"
        "{% endif %}"
        "{% endfor %}{{ n.all | length }} {{ n.parts | length }}"
    )
    messages = [{"role": "user", "content": content[:9300]} for _ in range(100)]
    templates = ChatTemplates({"default": source}, {})
    text = templates.render(messages, chat_template=None, now=None, variables={})
    assert text.endswith("930000 100")
    assert len(text) > 930_000


def test_filters_give_what_jinjas_own_give():
    source = (
        "{{ [3, 1] | sort }}{{ ['b', 'a'] | map('upper') | join('-') }}{{ [1, 2] | sum }}"
        "{{ [[1], [2]] | sum(start=[]) }}{{ [{'a': 1}] | sum(attribute='a') }}"
        "{{ [{'a': 1}] | join(attribute='a') }}{{ 'abc' | reverse }}{{ {'b': 1} | items | list }}"
        "{{ [1, 2, 3] | batch(2) | list }}{{ 1 ~ none ~ 'x' ~ missing }}{{ [1, 2, 3][1:] }}"
        "{% for a, b in [(1, 2)] %}{{ a }}{{ b }}{% endfor %}{{ {'a': (1,)} | tojson }}"
        "{% for x in [1, [2]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}"
    )
    assert render(source) == (
        "[1, 3]B-A3[1, 2]11cba[('b', 1)][[1, 2], [3]]1Nonex[2, 3]12" + '{"a": [1]}12'
    )


def test_few_compiled_templates_are_kept():
    templates = ChatTemplates({}, {})
    messages = [{"role": "user", "content": "Hi"}]
    kept = []
    for number in range(99):
        source = f"{{{{ {number} }}}}"
        text = templates.render(messages, chat_template=source, now=None, variables={})
        assert text == str(number)
        kept.append(weakref.ref(templates._compile(source)))
    gc.collect()
    assert sum(reference() is not None for reference in kept) <= 8
