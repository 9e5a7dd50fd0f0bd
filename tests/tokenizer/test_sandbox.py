"""The bounds on what a chat template may do."""

import pytest

from rfjax.errors import ModelFormatError, RequestError
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
