"""A kernel that fails is found, reported and not used."""

import dataclasses
import logging

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from support.tiny_model import tiny_llama

import rfjax.ops.kernel_product as kernel_product
from rfjax.errors import CapacityError, UnsupportedError
from rfjax.io.load import load
from rfjax.models.decoder import forward
from rfjax.ops.dispatch import KernelPolicy
from rfjax.quant.types import GGMLType
from rfjax.selfcheck import checker, guard
from rfjax.selfcheck.choose import all_cases, matrix_types, model_cases
from rfjax.selfcheck.guard import checked, failing, guarded
from rfjax.selfcheck.matvec import matvec_cases
from rfjax.selfcheck.record import Record

pytestmark = pytest.mark.quick_compile

KERNEL = "quantized_matvec:Q8_0"
INTERPRETED = KernelPolicy(interpret=True, disabled=(("prefill_attention", "not this test's"),))

run = jax.jit(forward, static_argnames="config")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tiny_llama(tmp_path_factory.mktemp("models") / "tiny.gguf", quantized=True)
    return load(path, weights="packed")


@pytest.fixture
def record(tmp_path):
    return Record(tmp_path)


def small_case():
    """The smallest of a type's cases."""
    return [next(matvec_cases([GGMLType.Q8_0], "float32", odd=(7, 160)))]


def logits(model, policy):
    config = dataclasses.replace(model.config, kernels=policy)
    return run(model.params, np.arange(5, dtype=np.int32), config=config)


def test_a_kernel_that_works_stays(record):
    assert guarded(INTERPRETED, small_case(), record) == INTERPRETED
    (result,) = record.read().values()
    assert (result.kernel, result.verdict) == (KERNEL, "ok")
    assert 0 < result.error < result.limit


def wrong(*args, **kwargs):
    """One result of all is off by a little."""
    first, *others = ORIGINAL(*args, **kwargs)
    return [first.at[-1, -1].add(0.1), *others]


def not_a_number(*args, **kwargs):
    return [out.at[0, 0].set(np.nan) for out in ORIGINAL(*args, **kwargs)]


def not_compiled(*args, **kwargs):
    raise jax.errors.JaxRuntimeError("INTERNAL: no such instruction")


def not_lowered(*args, **kwargs):
    raise NotImplementedError("no rule")


ORIGINAL = kernel_product.quantized_matvec


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (wrong, "exceeds 0.0001"),
        (not_a_number, "results are NaN"),
        (not_compiled, "no such instruction"),
        (not_lowered, "no rule"),
    ],
)
def test_a_broken_kernel_is_disabled_and_the_model_is_right(
    model, record, monkeypatch, caplog, broken, reason
):
    monkeypatch.setattr(kernel_product, "quantized_matvec", broken)
    policy = guarded(INTERPRETED, small_case(), record)
    (_, (name, why)) = policy.disabled
    assert name == KERNEL
    assert reason in why
    (warning,) = (r for r in caplog.records if r.levelno == logging.WARNING)
    assert f"KERNEL DISABLED: {KERNEL}" in warning.message
    assert reason in warning.message
    assert_array_equal(logits(model, policy), logits(model, KernelPolicy("xla")))


def test_what_is_remembered_is_not_tried_again(record, monkeypatch):
    guarded(INTERPRETED, small_case(), record)
    calls = []
    monkeypatch.setattr(guard, "run_checks", lambda cases: calls.append(cases) or ())
    assert guarded(INTERPRETED, small_case(), record) == INTERPRETED
    assert not calls


def test_a_check_that_killed_its_process_counts_as_failed(record):
    cases = small_case()
    note = record.under_way(cases)
    note.__enter__()
    (path,) = record.path.parent.glob("*.running")
    gone = path.name.split(".")
    gone[-2] = str(2**22 + 1)  # beyond the largest process id
    path.rename(path.with_name(".".join(gone)))
    (result,) = checked(cases, record)
    assert (result.verdict, result.key) == ("failed", cases[0].key)
    assert "did not come to an end" in failing([result])[KERNEL]
    assert not list(record.path.parent.glob("*.running"))
    (result,) = checked(cases, record, again=True)
    assert result.usable


def test_a_kernel_that_takes_the_device_with_it_is_the_last_one(record, monkeypatch):
    monkeypatch.setattr(kernel_product, "quantized_matvec", not_compiled)
    monkeypatch.setattr(checker, "_device_answers", lambda: False)
    cases = [*small_case(), *matvec_cases([GGMLType.Q4_0], "float32", odd=(7, 160), width=64)]
    with pytest.raises(UnsupportedError, match=f"stopped working in the self-check of {KERNEL}"):
        guarded(INTERPRETED, cases, record)
    assert failing(record.read().values()).keys() == {KERNEL}
    # The next process leaves it alone.
    monkeypatch.undo()
    policy = guarded(INTERPRETED, [*cases, *matvec_cases([GGMLType.Q8_0], "float16")], record)
    assert [name for name, _ in policy.disabled] == ["prefill_attention", KERNEL]
    assert len(record.read()) == 4


def test_a_full_device_says_nothing_about_a_kernel(record, monkeypatch):
    def full(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes")

    monkeypatch.setattr(kernel_product, "quantized_matvec", full)
    with pytest.raises(CapacityError, match="memory is used up"):
        guarded(INTERPRETED, small_case(), record)
    assert record.read() == {}
    assert not list(record.path.parent.glob("*.running"))


def test_nothing_is_tried_where_no_kernel_runs(record, monkeypatch):
    monkeypatch.setattr(guard, "run_checks", lambda cases: pytest.fail("tried"))
    for policy in (KernelPolicy(), KernelPolicy("xla"), KernelPolicy("xla", interpret=True)):
        assert guarded(policy, small_case(), record) == policy


def test_the_cases_of_a_model_are_those_of_its_types_and_heads(model):
    kernels = {case.kernel for case in model_cases(matrix_types(model.params), model.config)}
    assert kernels == {KERNEL, "plain_matvec:F32", "decode_attention", "prefill_attention"}
    mixed = {f"blk.1.{stem}.weight": GGMLType.Q4_K for stem in ("attn_q", "attn_k")}
    mixed |= {"blk.1.attn_v.weight": GGMLType.Q6_K, "blk.0.ffn_up_exps.weight": GGMLType.Q2_K}
    cases = model_cases(mixed, model.config)
    assert any(case.label.startswith("Q4_K + Q4_K + Q6_K") for case in cases)
    assert not any("Q2_K" in case.kernel for case in cases)


def test_every_case_has_a_key_of_its_own():
    cases = all_cases("bfloat16")
    assert len({case.key for case in cases}) == len(cases)
    assert sum(case.kernel.startswith("quantized_matvec:") for case in cases) == 3 * 13
