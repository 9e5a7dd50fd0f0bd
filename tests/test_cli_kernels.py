"""What the commands say of kernels; checks themselves are in tests/selfcheck."""

import json
import pathlib

import pytest
from support.tiny_model import tiny_llama
from typer.testing import CliRunner

import rfjax.doctor
import rfjax.pallas.target
import rfjax.placement
from rfjax.cli.app import app
from rfjax.ops.dispatch import KernelPolicy
from rfjax.selfcheck import guard
from rfjax.selfcheck.checker import CheckResult
from rfjax.selfcheck.record import Record


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A user without files."""
    monkeypatch.setattr(pathlib.Path, "home", lambda: tmp_path)
    return tmp_path


def run(*args):
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


@pytest.fixture
def checked(monkeypatch):
    """Instead of running anything, all cases pass, but those of one kernel."""
    asked = []

    def fake(cases, watch):
        asked.extend(cases)
        return (
            CheckResult(case.kernel, case.label, case.limit, "wrong", 0.5, "its error is large")
            if case.kernel == "quantized_matvec:Q3_K"
            else CheckResult(case.kernel, case.label, case.limit, "ok", 1e-5)
            for case in cases
        )

    monkeypatch.setattr(guard, "run_checks", fake)
    return asked


def test_selfcheck_without_a_gpu(checked):
    code, out = run("selfcheck")
    assert code == 0
    assert "No kernels run on the CPU" in out
    assert json.loads(run("selfcheck", "--json")[1])["results"] == []
    assert not checked


def test_selfcheck_shows_a_table_and_remembers(checked):
    code, out = run("selfcheck", "--interpret", "--types", "q4_0,bf16", "--dtype", "bfloat16")
    assert code == 0
    for text in (
        "kernel",
        "error",
        "limit",
        "quantized_matvec:Q4_0",
        "plain_matvec:BF16",
        "1.0e-05",
    ):
        assert text in out
    assert f"{len(checked)} of {len(checked)} cases pass" in out
    assert Record().read().keys() == {case.key for case in checked}


@pytest.mark.usefixtures("checked")
def test_selfcheck_fails_where_a_kernel_does():
    code, out = run("selfcheck", "--interpret", "--types", "q4_0,q3_k")
    assert code == 1
    assert "WRONG: its error is large" in out
    assert "models will not use: quantized_matvec:Q3_K" in out
    code, out = run("selfcheck", "--interpret", "--types", "q3_k", "--json")
    assert (code, json.loads(out)["ok"]) == (1, False)


def test_selfcheck_of_a_model_takes_its_types(checked, tmp_path):
    path = tiny_llama(tmp_path / "tiny.gguf", quantized=True)
    assert run("selfcheck", path, "--interpret")[0] == 0
    kernels = {case.kernel for case in checked}
    assert {name for name in kernels if "matvec" in name} == {
        "quantized_matvec:Q8_0",
        "plain_matvec:F32",
    }
    assert run("selfcheck", path, "--interpret", "--types", "q4_0")[0] == 2
    assert run("selfcheck", "--interpret", "--types", "q9_9")[0] == 2


def test_inspect_says_what_runs_each_tensor_and_what_it_takes(tmp_path, monkeypatch):
    path = tiny_llama(tmp_path / "tiny.gguf", quantized=True)
    code, out = run("inspect", path, "--weights", "packed", "--tensors")
    assert code == 0
    assert "in float32 it takes" in out
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("blk.")}
    assert lines["blk.0.attn_q.weight"].endswith("XLA from packed blocks")
    assert lines["blk.0.ffn_up.weight"].endswith("plain")
    monkeypatch.setattr(rfjax.placement, "current_target", lambda: "gfx9")
    monkeypatch.setattr(rfjax.placement, "remembered_policy", KernelPolicy)
    out = run("inspect", path, "--weights", "packed", "--json")[1]
    placement = json.loads(out)["placement"]
    assert placement["plan"]["context"] == 256  # the model's: no more is planned for
    less = json.loads(run("inspect", path, "--context", "100", "--json")[1])["placement"]
    assert less["plan"]["context"] == 100
    assert less["plan"]["cache"] < placement["plan"]["cache"]
    assert run("inspect", path, "--context", "257")[0] == 2
    assert placement["paths"]["blk.0.attn_q.weight"] == "kernel quantized_matvec"
    assert placement["plan"]["weights"] > 0


def test_doctor_shows_what_is_remembered(monkeypatch):
    monkeypatch.setattr(rfjax.pallas.target, "current_target", lambda: "cuda")
    monkeypatch.setattr(rfjax.pallas.target, "current_device_kind", lambda: "NVIDIA H200")
    code, out = run("doctor")
    assert code == 0
    assert "not done yet" in out
    assert "quantized_matvec, packed_matmul and plain_matvec" in out
    results = [
        CheckResult("quantized_matvec:Q4_0", f"case {i}", 1e-4, "ok", 1e-5) for i in range(3)
    ]
    results.append(CheckResult("decode_attention", "4 x 128", 1e-2, "failed", None, "no such wave"))
    Record().add(results)
    code, out = run("doctor")
    assert code == 0  # models run all the same
    assert "passes: 3 of 3 cases" in out
    assert "FAILS, not used: 0 of 1 cases" in out
    assert "warning: the kernel decode_attention is not used: 4 x 128: no such wave" in out
    found = json.loads(run("doctor", "--json")[1])
    assert found["kernels"] and found["n_tuned"][0] >= 4 and len(found["selfcheck"]) == 4
