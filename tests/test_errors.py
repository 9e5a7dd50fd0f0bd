"""The exception hierarchy: one base, builtins that callers may catch, no other classes."""

import ast
import builtins
import inspect
import pathlib

import pytest

from rfjax import errors

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "rfjax"

BUILTINS = {
    "ConfigError": ValueError,
    "ModelFormatError": ValueError,
    "UnsupportedError": NotImplementedError,
    "RequestError": ValueError,
    "CapacityError": RuntimeError,
}
CONTROL_FLOW = {("tokenizer/sandbox.py", "Refusal")}
"""Exceptions that are caught in the package itself and never leave it."""


def public_errors() -> dict[str, type]:
    return {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind)}


def exception_classes(source: str) -> set[str]:
    """Names of the classes in a module's text that derive from an exception, by their bases' names.

    Bases outside the text count by how they are called, and classes of the text by what they are.
    """
    known = set(public_errors())
    known |= {name for name, kind in vars(builtins).items() if is_exception(kind)}
    found: set[str] = set()
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    for _ in classes:  # a base may be defined anywhere, so once a class is enough for all
        for node in classes:
            bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
            if any(
                base in known | found or base.endswith(("Error", "Exception")) for base in bases
            ):
                found.add(node.name)
    return found


def is_exception(kind: object) -> bool:
    return inspect.isclass(kind) and issubclass(kind, BaseException)


def test_every_public_error_has_its_bases():
    found = public_errors()
    assert found.keys() == {"RfjaxError", *BUILTINS}
    assert errors.RfjaxError.__bases__ == (Exception,)
    for name, builtin in BUILTINS.items():
        assert found[name].__bases__ == (errors.RfjaxError, builtin), name
        assert found[name].__doc__, name


def test_no_other_exceptions_are_defined():
    found = set()
    for path in PACKAGE.rglob("*.py"):
        where = path.relative_to(PACKAGE).as_posix()
        names = exception_classes(path.read_text(encoding="utf-8"))
        found |= {(where, name) for name in names if where != "errors.py"}
    assert found == CONTROL_FLOW


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("class A(ValueError): pass", {"A"}),
        ("class B(A): pass\nclass A(errors.RequestError): pass", {"A", "B"}),
        ("def f():\n    class A(KeyboardInterrupt): pass", {"A"}),
        ("class A(jinja2.TemplateError): pass", {"A"}),
        ("class A: pass\nclass B(A, dict): pass", set()),
    ],
)
def test_the_check_can_fail(source, names):
    assert exception_classes(source) == names
