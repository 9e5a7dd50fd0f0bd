"""Tuning, interpreted: times mean nothing here, everything else does."""

import json
import pathlib
import types

import jax.numpy as jnp
import pytest
from typer.testing import CliRunner

import rfjax.bench.tune as module
from rfjax.bench.device_time import device_seconds, durations
from rfjax.bench.tune import TuneConfig, TuneResult, tune
from rfjax.bench.tune_case import TuneCase, given_cases, model_cases
from rfjax.cli.app import app
from rfjax.errors import ConfigError, UnsupportedError
from rfjax.pallas.quantized_matvec import Config
from rfjax.pallas.tuned_config import parse
from rfjax.quant.types import GGMLType

pytestmark = pytest.mark.quick_compile

QUICK = TuneConfig(working_set=1, repeats=2, interpret=True)
Q4_K, Q6_K, BF16 = GGMLType.Q4_K, GGMLType.Q6_K, GGMLType.BF16


def test_the_fastest_setting_that_is_right_wins(monkeypatch):
    (case,) = given_cases(["4x1024"], ["q4_0"], [1])
    space = [Config(1, 8, 4, 1), Config(2, 8, 4, 1), Config(4, 8, 4, 1)]
    monkeypatch.setattr(module, "quantized_space", lambda n, k, m, target: space)
    kernel = module.quantized.quantized_matvec

    def broken(*args, config, **options):
        if config == space[2]:
            raise NotImplementedError("no such tile")
        found = kernel(*args, config=config, **options)
        return [out * 1.01 for out in found] if config == space[1] else found

    monkeypatch.setattr(module.quantized, "quantized_matvec", broken)
    (result,) = tune([case], QUICK)
    assert (result.config, result.tried, result.failed) == (space[0], 1, 2)
    assert (result.clock, result.seconds) == ("host", result.heuristic_seconds)
    monkeypatch.setattr(module, "quantized_space", lambda n, k, m, target: space[1:])
    with pytest.raises(UnsupportedError, match="none of 2 settings works"):
        next(tune([case], QUICK))


def test_launches_of_several_weights_and_plain_ones():
    cases = [TuneCase((Q4_K, Q6_K), (6, 2), 256, 1), TuneCase((BF16,), (3,), 200, 2)]
    results = list(tune(cases, QUICK))
    entries = [result.entry() for result in results]
    assert [(e.kernel, e.type, e.n, e.k, e.m) for e in entries] == [
        ("quantized_matvec", "Q4_K", 2, 256, 1),
        ("plain_matvec", "BF16", 3, 200, 2),
    ]
    assert all("GB/s of packed bytes" in e.comment and "host time" in e.comment for e in entries)


def test_times_of_the_device_count_where_the_profiler_sees_it(monkeypatch):
    case = given_cases(["4x1024"], ["q8_0"], [1])[0]
    space = [Config(1, 8, 4, 1), Config(2, 8, 4, 1)]
    monkeypatch.setattr(module, "quantized_space", lambda n, k, m, target: space)
    seen = [4e-6, 5e-6, 1e-6, 2e-6]
    monkeypatch.setattr(module, "device_seconds", lambda run, name: (run(), seen)[1])
    (result,) = tune([case], QUICK)
    assert (result.clock, result.config) == ("device", space[1])
    assert result.seconds == pytest.approx(1.5e-6)
    assert result.heuristic_seconds == pytest.approx(4.5e-6)


def test_there_is_nothing_to_tune_on_the_cpu():
    with pytest.raises(UnsupportedError, match="nothing to tune"):
        next(tune(given_cases(["4x1024"], ["q4_0"], [1])))


def test_the_launches_of_a_model():
    matrices = {"token_embd.weight": (Q6_K, (1000, 512)), "blk.0.ffn_norm.weight": (BF16, (5, 5))}
    for i in range(2):
        shapes = {"attn_q": (512, 512), "attn_k": (128, 512), "attn_v": (128, 512)}
        shapes |= {"attn_output": (512, 512), "ffn_gate": (768, 512), "ffn_up": (768, 512)}
        matrices |= {f"blk.{i}.{stem}.weight": (Q4_K, shape) for stem, shape in shapes.items()}
        matrices[f"blk.{i}.attn_v.weight"] = (Q6_K if i else BF16, (128, 512))
    cases = model_cases(matrices, (1, 4, 8))
    assert [(c.types, c.sizes, c.m) for c in cases] == [
        ((Q4_K, Q4_K), (512, 128), 1),
        ((Q4_K, Q4_K), (512, 128), 4),  # more rows are taken by fours
        ((BF16,), (128,), 1),
        ((BF16,), (128,), 4),
        ((Q4_K,), (512,), 1),
        ((Q4_K,), (512,), 4),
        ((Q4_K, Q4_K), (768, 768), 1),
        ((Q4_K, Q4_K), (768, 768), 4),
        ((Q4_K, Q4_K, Q6_K), (512, 128, 128), 1),
        ((Q4_K, Q4_K, Q6_K), (512, 128, 128), 4),
        ((Q6_K,), (1000,), 1),
        ((Q6_K,), (1000,), 4),
    ]
    with pytest.raises(ConfigError, match="no kernel takes IQ2_XS"):
        given_cases(["4x1024"], ["iq2_xs"], [1])


def test_kernels_are_found_in_a_profile():
    event = lambda name, start: types.SimpleNamespace(  # noqa: E731
        name=name, start_ns=start, duration_ns=1000 + start
    )
    line = lambda name, *events: types.SimpleNamespace(name=name, events=events)  # noqa: E731
    streams = [
        line("Stream #14(Compute)", event("plain_matvec_bf16", 7), event("copy", 8)),
        line("Stream #15", event("plain_matvec_bf16", 3)),
        line("XLA Ops", event("plain_matvec_bf16", 7)),
    ]
    gpu = types.SimpleNamespace(name="/device:GPU:0", lines=streams)
    host = types.SimpleNamespace(name="/host:CPU", lines=streams)
    profile = types.SimpleNamespace(planes=[host, gpu])
    assert durations([profile], "plain_matvec") == pytest.approx([1003e-9, 1007e-9])
    assert device_seconds(lambda: jnp.ones(3) + 1, "add") == []


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A command line, with a device on which everything takes the same time."""

    def fake(cases):
        for case in cases:
            yield TuneResult(case, Config(2, 2, 16, 1), 1e-5, 2e-5, 9, 1, "device", 10**7)

    monkeypatch.setattr(module, "tune", fake)
    monkeypatch.setattr(pathlib.Path, "home", lambda: tmp_path)
    return lambda *args: CliRunner().invoke(app, ["tune", *map(str, args)])


def test_the_command_adds_to_a_file(run, tmp_path):
    path = tmp_path / "out.json"
    asked = ("--shapes", "64x256,attn_output", "--types", "q4_k", "--output", path)
    for rows in ("1,2", "2,4"):
        result = run(*asked, "--rows", rows)
        assert result.exit_code == 0
        assert "64 Q4_K x 256, rows 2" in result.stdout
        assert "100.0 %" in result.stdout
    entries = parse(json.loads(path.read_text()), "it").entries
    assert [(e.n, e.m) for e in entries] == [
        (64, 1),
        (4096, 1),
        (64, 2),
        (64, 4),
        (4096, 2),
        (4096, 4),
    ]
    path.write_text("something else")
    result = run(*asked)
    assert result.exit_code == 2
    assert "no file of tuned settings" in result.stderr
    assert path.read_text() == "something else"


def test_the_command_takes_a_models_launches(run, tmp_path, tiny_llama_path):
    for what in (["-s", "llama-1b:q4_k_m"], [tiny_llama_path]):
        assert run(*what, "--rows", "1").exit_code == 0
    (path,) = (tmp_path / ".cache" / "rfjax" / "tuned").iterdir()
    assert path.name == "cpu.json"
    kernels = {entry.kernel for entry in parse(json.loads(path.read_text()), "it").entries}
    assert kernels == {"quantized_matvec", "plain_matvec"}
    assert run().exit_code == 2
    assert run("--shapes", "64x256").exit_code == 2


def test_without_a_gpu_the_command_says_so(tmp_path):
    asked = ["tune", "--shapes", "64x256", "--types", "q4_0", "--output", str(tmp_path / "x")]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 2
    assert "nothing to tune" in result.stderr
