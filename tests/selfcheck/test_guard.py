"""A kernel that fails is found, reported and not used."""

import dataclasses
import logging
import subprocess
import sys

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
from rfjax.pallas.plain_matvec import MAX_ROWS as MAX_PLAIN
from rfjax.quant.layout import LAYOUTS
from rfjax.quant.types import GGMLType
from rfjax.selfcheck import checker, guard
from rfjax.selfcheck.checker import CheckResult, run_checks
from rfjax.selfcheck.choose import all_cases, model_cases
from rfjax.selfcheck.guard import check_wanted, checked, failing, guarded
from rfjax.selfcheck.matvec import matvec_cases
from rfjax.selfcheck.record import Identity, Record

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
    monkeypatch.setattr(guard, "run_checks", lambda cases, watch: calls.extend(cases) or iter(()))
    assert guarded(INTERPRETED, small_case(), record) == INTERPRETED
    assert not calls


DIES = """
import os, pathlib, sys
from rfjax.selfcheck.case import CheckCase
from rfjax.selfcheck.record import Identity, Record
import contextlib
record = Record(pathlib.Path(sys.argv[1]), Identity("d", "r", "v", "j", "l", "k"))
with contextlib.ExitStack() as stack:
    for label in sys.argv[2:]:
        case = CheckCase("quantized_matvec:Q8_0", label, 1.0, None)
        stack.enter_context(record.under_way(case))
    os.abort()
"""
IDENTITY = Identity("d", "r", "v", "j", "l", "k")


def die(folder, *labels):
    """A process that is aborted while it tries cases of these labels."""
    done = subprocess.run([sys.executable, "-c", DIES, str(folder), *labels], check=False)
    assert done.returncode < 0


def renamed(case, label):
    return dataclasses.replace(case, label=label)


def test_the_case_that_a_process_died_of_is_not_tried_again(tmp_path, caplog):
    record = Record(tmp_path, IDENTITY)
    first, second = (renamed(*small_case(), label) for label in ("a", "b"))
    other = next(matvec_cases([GGMLType.Q4_0], "float32", odd=(7, 160), width=64))
    die(tmp_path, "a")
    policy = guarded(INTERPRETED, [second, first, other], record)
    assert [name for name, _ in policy.disabled[1:]] == [KERNEL]
    assert "the process ended while it was tried" in policy.disabled[1][1]
    assert f"KERNEL DISABLED: {KERNEL}" in caplog.text
    verdicts = {result.label: result.verdict for result in record.read().values()}
    assert verdicts == {"a": "died", other.label: "ok"}
    assert not list(tmp_path.glob("*.running"))
    # Asked for by hand, everything is tried.
    results = checked([first, second], record, again=True)
    assert all(result.usable for result in results)


def test_of_several_that_were_compiled_together_none_is_condemned(tmp_path, monkeypatch, caplog):
    record = Record(tmp_path, IDENTITY)
    cases = [renamed(*small_case(), label) for label in ("a", "b", "c")]
    batches = []

    def run(cases, watch):
        batches.append([case.label for case in cases])
        return run_checks(cases, watch=watch)

    monkeypatch.setattr(guard, "run_checks", run)
    die(tmp_path, "a", "b")
    assert guarded(INTERPRETED, cases, record) == INTERPRETED
    assert batches == [["c"], ["a"], ["b"]]  # alone, so that a second death tells which
    assert "died compiling one of these" in caplog.text


def test_what_is_being_tried_elsewhere_is_left_alone(record):
    (case,) = small_case()
    with record.under_way(case):
        assert record.unfinished() == ()
        assert len(list(record.path.parent.glob("*.running"))) == 1
    assert not list(record.path.parent.glob("*.running"))


def test_results_are_kept_as_they_come(record, monkeypatch):
    """So that those before a death are not lost."""
    cases = [renamed(*small_case(), label) for label in ("a", "b")]

    def dies(cases, watch):
        yield next(run_checks(cases[:1], watch=watch))
        raise KeyboardInterrupt

    monkeypatch.setattr(guard, "run_checks", dies)
    with pytest.raises(KeyboardInterrupt):
        checked(cases, record)
    assert [result.label for result in record.read().values()] == ["a"]


def result(kernel, verdict="failed"):
    return CheckResult(kernel, "case", 1e-4, verdict, None, "why")


def test_a_launch_of_several_types_speaks_against_those_alone():
    mixed = result("quantized_matvec:Q4_K+Q6_K")
    assert failing([mixed]).keys() == {"quantized_matvec:Q4_K", "quantized_matvec:Q6_K"}
    # Without the one that fails by itself there is no such launch.
    culprit = result("quantized_matvec:Q6_K", "wrong")
    assert failing([mixed, culprit]).keys() == {"quantized_matvec:Q6_K"}
    assert failing([mixed, result("quantized_matvec:Q5_K")]).keys() == {
        *(f"quantized_matvec:{name}" for name in ("Q4_K", "Q5_K", "Q6_K"))
    }


def test_a_kernel_that_takes_the_device_with_it_is_the_last_one(record, monkeypatch):
    monkeypatch.setattr(kernel_product, "quantized_matvec", not_compiled)
    monkeypatch.setattr(checker, "_device_answers", lambda: False)
    cases = [*small_case(), *matvec_cases([GGMLType.Q4_0], "float32", odd=(7, 160), width=64)]
    with pytest.raises(UnsupportedError, match=f"stopped working in the self-check of {KERNEL}"):
        guarded(INTERPRETED, cases, record)
    assert failing(record.read().values()).keys() == {KERNEL}
    # The next process leaves it alone.
    monkeypatch.undo()
    policy = guarded(INTERPRETED, [*cases[:2], *matvec_cases([GGMLType.Q8_0], "float16")], record)
    assert [name for name, _ in policy.disabled] == ["prefill_attention", KERNEL]
    assert len(record.read()) == 2


def test_a_full_device_says_nothing_about_a_kernel(record, monkeypatch):
    def full(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes")

    monkeypatch.setattr(kernel_product, "quantized_matvec", full)
    with pytest.raises(CapacityError, match="memory is used up"):
        guarded(INTERPRETED, small_case(), record)
    assert record.read() == {}
    assert not list(record.path.parent.glob("*.running"))


def test_nothing_is_tried_where_no_kernel_runs(record, monkeypatch):
    monkeypatch.setattr(guard, "run_checks", lambda cases, watch: pytest.fail("tried"))
    for policy in (KernelPolicy(), KernelPolicy("xla"), KernelPolicy("xla", interpret=True)):
        assert guarded(policy, small_case(), record) == policy


def test_on_the_cpu_kernels_are_tried_only_where_somebody_asks(caplog):
    caplog.set_level(logging.INFO, "rfjax")
    for policy in (KernelPolicy("pallas"), KernelPolicy(interpret=True)):
        caplog.clear()
        assert not check_wanted(policy, None)
        assert "kernels are interpreted here" in caplog.text
        assert check_wanted(policy, True) and not check_wanted(policy, False)
    for policy in (KernelPolicy(), KernelPolicy("xla")):
        assert not check_wanted(policy, True)


Q4_K, Q6_K, Q2_K = GGMLType.Q4_K, GGMLType.Q6_K, GGMLType.Q2_K


def test_the_cases_of_a_model_are_its_launches_and_heads(model):
    width = 512
    matrices = {f"blk.1.{stem}.weight": (Q4_K, (width, width)) for stem in ("attn_q", "attn_k")}
    matrices |= {
        "blk.1.attn_v.weight": (Q6_K, (width, width)),
        "blk.1.ffn_gate.weight": (Q4_K, (768, width)),
        "blk.1.ffn_up.weight": (Q4_K, (768, width)),
        "blk.1.ffn_down.weight": (Q6_K, (width, 768)),
        "blk.0.ffn_up_exps.weight": (Q2_K, (4, width, width)),  # without gate and down
        "token_embd.weight": (GGMLType.BF16, (1000, width)),
    }
    products = ("matvec", "matmul")
    cases = [
        case
        for case in model_cases(matrices, model.config)
        if any(name in case.kernel for name in products)
    ]
    found = [f"{case.kernel} {case.label}" for case in cases]
    first = [text for text in found if ", rows 1," in text]
    assert [text.partition(", rows")[0] for text in first] == [
        "quantized_matvec:Q4_K+Q6_K 512 Q4_K + 512 Q4_K + 512 Q6_K x 512",
        "quantized_matvec:Q4_K 768 Q4_K + 768 Q4_K x 512, gated",
        "quantized_matvec:Q6_K 512 Q6_K x 768",
        "plain_matvec:BF16 1000 BF16 x 512",
    ]
    for rows in (4, 16):  # fewer launches, all types that a kernel takes
        more = [text for text in found if f", rows {rows}," in text]
        assert 0 < len(more) < 4
        assert {name for text in more for name in ("Q4_K", "Q6_K") if name in text} == {
            "Q4_K",
            "Q6_K",
        }
        assert any("BF16" in text for text in more) == (rows <= MAX_PLAIN)
    # A config of the tuned ones, or of the heuristic, is found by sizes: they are the model's.
    apart = model_cases(matrices, model.config, apart=True)
    assert not any(" + " in case.label for case in apart if "matvec" in case.kernel)


def test_experts_are_as_large_as_the_models(model):
    stems = {"gate": (4, 96, 64), "up": (4, 96, 64), "down": (4, 64, 96)}
    matrices = {
        f"blk.0.ffn_{stem}_exps.weight": (GGMLType.Q8_0, shape) for stem, shape in stems.items()
    }
    cases = model_cases(matrices, model.config)
    (case,) = (case for case in cases if case.kernel == "grouped_matvec:Q8_0")
    assert case.label.startswith("experts 96x64")


def test_every_case_has_a_key_of_its_own():
    cases = all_cases("bfloat16")
    assert len({case.key for case in cases}) == len(cases)
    assert {f"quantized_matvec:{type.name}" for type in LAYOUTS} <= {case.kernel for case in cases}


_INTERRUPTED = """
import _thread, atexit, time
from rfjax.selfcheck.case import CheckCase
from rfjax.selfcheck.checker import run_checks

begun = []
def make(rng):
    begun.append(1)
    _thread.interrupt_main()
    time.sleep(0.3)
    raise LookupError("nothing to try")
try:
    list(run_checks([CheckCase("a", str(i), 1.0, make) for i in range(400)]))
except KeyboardInterrupt:
    atexit.register(lambda: print(len(begun)))  # once all threads have ended
"""


def test_after_an_interrupt_no_case_is_begun():
    command = [sys.executable, "-c", _INTERRUPTED]
    run = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert (run.returncode, run.stderr) == (0, "")
    assert 1 <= int(run.stdout) < 400
