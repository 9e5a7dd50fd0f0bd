import importlib
import inspect
import typing

import pytest

from rfjax.errors import ConfigError, UnsupportedError
from rfjax.ops.dispatch import OPS, choose


@pytest.mark.parametrize("op", OPS)
def test_every_operation_is_a_documented_function(op):
    function = getattr(importlib.import_module(OPS[op]), op)
    assert inspect.isfunction(function)
    assert function.__doc__


@pytest.mark.parametrize("op", OPS)
def test_plain_jax_runs_and_the_kernel_says_why_it_declines(op):
    choice = choose(op)
    assert (choice.op, choice.implementation) == (op, "xla")
    assert choice.declined == (("pallas", "this version has no Pallas kernel for it"),)
    assert choose(op, "xla").implementation == "xla"


def test_a_kernel_asked_for_by_name_never_falls_back():
    with pytest.raises(UnsupportedError, match=r"'pallas' of attention declines: .* no Pallas"):
        choose("attention", "pallas")


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'attention'"):
        choose("atention")
    with pytest.raises(ConfigError, match="known: linear"):
        choose("zzz")
    with pytest.raises(ConfigError, match="got 'triton', expected one of xla, pallas, or None"):
        choose("linear", typing.cast(typing.Any, "triton"))
