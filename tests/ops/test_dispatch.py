import importlib
import inspect
import typing

import pytest

from rfjax.errors import ConfigError, UnsupportedError
from rfjax.ops.dispatch import KERNELS, OPS, choose


@pytest.mark.parametrize("op", OPS)
def test_every_operation_is_a_documented_function(op):
    function = getattr(importlib.import_module(OPS[op]), op)
    assert inspect.isfunction(function)
    assert function.__doc__


@pytest.mark.parametrize("op", OPS)
def test_plain_jax_runs_and_the_kernel_says_why_it_declines(op):
    choice = choose(op)
    assert (choice.op, choice.implementation) == (op, "xla")
    why = "this version has no Pallas kernel for it"
    if op in KERNELS:
        why = "kernels run on GPUs only"
    assert choice.declined == (("pallas", why),)
    assert choose(op, "xla").implementation == "xla"


def test_a_kernel_asked_for_by_name_never_falls_back():
    with pytest.raises(UnsupportedError, match=r"'pallas' of sample declines: .* no Pallas"):
        choose("sample", "pallas")
    assert choose("attention", "pallas").implementation == "pallas"


def test_kernels_run_on_gpus():
    assert set(KERNELS) <= set(OPS)
    found = choose("linear", on_gpu=True)
    assert (found.implementation, found.declined) == ("pallas", ())
    assert "quantized_matvec" in found.reason
    assert choose("rms_norm", on_gpu=True).implementation == "xla"


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'attention'"):
        choose("atention")
    with pytest.raises(ConfigError, match="known: linear"):
        choose("zzz")
    with pytest.raises(ConfigError, match="got 'triton', expected one of xla, pallas, or None"):
        choose("linear", typing.cast(typing.Any, "triton"))
