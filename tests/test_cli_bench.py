"""`rfjax bench`: the flags reach what they are for, and every format comes out."""

import json

import pytest
from typer.testing import CliRunner

import rfjax.bench.op_attention
import rfjax.bench.op_linear
import rfjax.bench.roof
import rfjax.engine.compilation_cache
from rfjax.cli.app import app

pytestmark = pytest.mark.quick_compile


@pytest.fixture
def run(monkeypatch):
    """Runs a command line with little to measure; gives exit code, stdout and stderr."""
    monkeypatch.setattr(rfjax.bench.op_attention, "_MAX_LAYERS", 2)
    monkeypatch.setattr(rfjax.bench.op_linear, "_n_products", lambda case, config: 2)
    monkeypatch.setattr(rfjax.bench.roof, "_COPY_BYTES", {"cpu": 1 << 20})
    monkeypatch.setattr(rfjax.bench.roof, "_MATMUL_SIZE", {"cpu": 64})
    monkeypatch.setattr(
        rfjax.engine.compilation_cache, "enable_compilation_cache", lambda *_, **__: None
    )

    def run(*args):
        result = CliRunner().invoke(app, ["bench", *map(str, args)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return run


def test_a_synthetic_model_in_every_kind_of_row(run):
    flags = ("-p", "8", "-n", "2", "-pg", "4,2", "-d", "4", "-b", "1,2", "--score", "16", "-r", "1")
    code, out, _ = run("-s", "tiny:q8_0", *flags)
    assert code == 0
    names = [line.split("|")[5].strip() for line in out.splitlines() if line.startswith("|")]
    one, two = ("pp8 @ d4", "tg2 @ d4", "pp4+tg2 @ d4"), ("pp8 x2", "tg2 x2", "pp4+tg2 x2")
    assert names[2:] == [*one, *(f"{name} @ d4" for name in two), "score16 x128"]
    assert "measured: copy" in out


def test_a_file_as_json(run, tiny_llama_path):
    code, out, err = run(
        tiny_llama_path, "-p", "20", "-n", "0", "-r", "2", "-ub", "16", "-o", "json"
    )
    (found,) = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["test"], found["n_ubatch"]) == ("pp20", 16)
    assert found["model_filename"] == str(tiny_llama_path)
    assert len(found["samples_ns"]) == 2
    assert found["copy_bytes_per_s"] > 0


def test_settings_that_are_not_the_defaults_show(run):
    flags = ("-p", "0", "-n", "1", "-r", "1", "--no-roof", "--dtype", "bfloat16", "-ub", "32")
    flags += ("--weights", "packed", "--implementation", "xla")
    code, out, _ = run("--synthetic", "tiny:q8_0", *flags)
    head, _, row = (line.split("|") for line in out.splitlines()[:3])
    assert code == 0
    names = ["dtype", "weights", "implementation", "n_ubatch"]
    assert [name.strip() for name in head[5:9]] == names
    assert [cell.strip() for cell in row[5:9]] == ["bfloat16", "packed", "xla", "32"]
    assert "measured" not in out


def test_single_operations(run):
    flags = ("--shapes", "32x64", "--types", "q4_0", "-m", "1-2", "-o", "jsonl", "--no-roof")
    code, out, _ = run("--op", "linear", *flags)
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(row["n"], row["k"], row["type"], row["m"]) for row in found] == [
        (32, 64, "Q4_0", 1),
        (32, 64, "Q4_0", 2),
    ]


def test_a_chain_of_layers(run):
    flags = ("-s", "tiny:q8_0", "-m", "1,3", "--no-roof")
    code, out, _ = run("--op", "chain", *flags, "-o", "jsonl")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(row["model"], row["n_layers"], row["m"]) for row in found] == [
        ("tiny:q8_0", 3, 1),
        ("tiny:q8_0", 3, 3),
    ]


def test_attention(run):
    shapes = ("--shapes", "decode:2x24,prefill:1x24")
    code, out, _ = run("--op", "attention", *shapes, "-o", "json")
    first, second = json.loads(out)
    assert code == 0
    assert (first["shape"], second["shape"]) == ("decode:2x24", "prefill:1x24")
    assert first["copy_share"] > 0
    assert second["matmul_share"] > 0


def test_scheduling(run):
    code, out, _ = run("--op", "schedule", "--shapes", "3x4@16/window,2x4@16/plain/churn")
    rows = [line.split("|")[1:3] for line in out.splitlines()[2:]]
    assert code == 0
    assert [row[0].strip() for row in rows] == ["3x4@16/window", "2x4@16/plain/churn"]
    assert rows[0][1].strip() == "12"


def test_a_kernel_that_declines_leaves_its_row_out(run):
    flags = ("--shapes", "32x256", "--types", "iq2_s", "--implementation", "pallas")
    code, out, err = run("--op", "linear", *flags, "-m", "1", "-o", "json", "--no-roof")
    assert (code, json.loads(out)) == (0, [])
    assert "32x256 IQ2_S x1: " in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "got nothing"),
        (("-s", "tiny", "--op", "linear"), "--synthetic and --op"),
        (("-s", "tiny", "--rows", "1"), "--rows goes with --op linear or chain"),
        (("--op", "chain", "--types", "q4_0"), "--types goes with --op linear"),
        (("--op", "attention", "--shapes", "1x2"), "decode:BATCHxTOKENS"),
        (("--op", "schedule", "--shapes", "2x4"), "SEQUENCESxBURST@PAGE"),
        (("--op", "chain", "-s", "tiny-moe:q8_0", "--no-roof"), "a chain needs dense layers"),
        (("-s", "tiny", "-p", "many"), "'many', expected numbers"),
        (("-s", "tiny", "-pg", "1"), "two numbers such as 512,128"),
        (("-s", "tiny", "-p", "0", "-n", "0"), "nothing to measure"),
        (("-s", "tiny", "-r", "0"), "repetitions: got 0"),
        (("-s", "tiny:q8_0", "-n", "2000", "-p", "0", "--no-roof"), "takes a context of 2000"),
        (("-s", "none"), "no shape is named 'none'"),
        (("-s", "tiny", "-o", "sql"), "sql"),
        (("--op", "linear", "--types", "q9"), "got 'q9'"),
    ],
)
def test_what_makes_no_sense(run, args, message):
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert message in " ".join(err.replace("│", " ").split())
