"""The formats of the report, beside a table that llama-bench printed."""

import csv
import dataclasses
import io
import json
import pathlib

import pytest

from rfjax.bench.op_case import linear_cases
from rfjax.bench.op_linear import LinearResult
from rfjax.bench.op_report import op_report
from rfjax.bench.report import report
from rfjax.bench.result import Environment, Result

GOLDEN = pathlib.Path(__file__).parent / "goldens" / "llama-bench.md"

# Names that llama-bench's own JSON has for the same.
SHARED_NAMES = {
    *("build_commit", "cpu_info", "gpu_info", "backends", "model_filename", "model_type"),
    *("model_size", "model_n_params", "n_ubatch", "type_k", "type_v", "n_prompt", "n_gen"),
    *("n_depth", "test_time", "avg_ns", "stddev_ns", "avg_ts", "stddev_ts"),
    *("samples_ns", "samples_ts"),
}

RESULT = Result(
    environment=Environment("0.1.0", "0.10.2", "CPU", "a processor", ""),
    model_filename="model.gguf",
    model_type="llama ?B F16",
    model_size=6824960,
    model_n_params=3410176,
    n_ubatch=512,
    type_k="f32",
    type_v="f32",
    dtype="float32",
    weights="packed",
    implementation="auto",
    n_prompt=16,
    n_gen=0,
    n_depth=0,
    n_seqs=1,
    n_score=0,
    test="pp16",
    test_time="2026-11-23T00:00:00Z",
    warmup_s=0.5,
    samples_ns=(1_000_000, 2_000_000),
    n_tokens=16,
    bytes_read=0,
    flops=3_000_000,
    copy_bytes_per_s=10e9,
    matmul_flop_per_s=4e9,
)
GENERATION = dataclasses.replace(
    RESULT, n_prompt=0, n_gen=4, test="tg4", n_tokens=4, bytes_read=6_000_000
)


def text(results, format="md", **options):
    return "".join(report(results, format, **options))


def row(line):
    return [cell.strip() for cell in line.strip("|\n").split("|")]


def test_the_table_has_the_columns_of_llama_bench_and_ours_behind():
    theirs = GOLDEN.read_text(encoding="utf-8").splitlines()
    ours = text([RESULT]).splitlines()
    head = [name for name in row(theirs[0]) if name != "threads"]
    assert row(ours[0]) == [*head, "GB/s", "% of copy", "TFLOP/s", "% of matmul"]
    # Without llama-bench's column of a setting that is not the default, the lines are the same up
    # to ours: widths, alignment, units.
    for their_line, our_line in zip(theirs[:3], ours[:3], strict=True):
        cells = their_line.split("|")
        del cells[5]
        if our_line is ours[2]:
            cells[-2] = our_line.split("|")[6]  # the rate itself
        assert our_line.startswith("|".join(cells))


def test_rates_and_shares():
    lines = text([RESULT, GENERATION]).splitlines()
    prompt, generation = row(lines[2]), row(lines[3])
    assert prompt[5:] == ["12000.00 ± 5656.85", "", "", "0.002", "50.0"]
    assert generation[4:] == ["tg4", "3000.00 ± 1414.21", "4.0", "40.0", "", ""]
    assert lines[-2:] == [
        "build: rfjax 0.1.0, JAX 0.10.2, on a processor",
        "measured: copy 10.0 GB/s (read and written), matrix product 0.004 TFLOP/s in float32",
    ]


def test_without_ceilings_and_with_extra_columns():
    bare = dataclasses.replace(GENERATION, copy_bytes_per_s=None, matmul_flop_per_s=None)
    extra = ("dtype", "weights", "implementation", "n_ubatch")
    lines = text([bare], extra=extra).splitlines()
    assert tuple(row(lines[0])[4:8]) == extra
    assert row(lines[2])[4:8] == ["float32", "packed", "auto", "512"]
    assert row(lines[2])[-4:] == ["4.0", "", "", ""]
    assert lines[-1].startswith("build:")


def test_json_and_jsonl_hold_the_same_objects():
    found = json.loads(text([RESULT, GENERATION], "json"))
    lines = text([RESULT, GENERATION], "jsonl").splitlines()
    assert found == [json.loads(line) for line in lines]
    assert found[0].keys() > SHARED_NAMES
    assert found[0]["samples_ns"] == [1_000_000, 2_000_000]
    assert found[0]["avg_ns"] == 1_500_000
    assert found[0]["avg_ts"] == pytest.approx(12000)
    assert found[0]["matmul_share"] == pytest.approx(0.5)
    assert found[0]["gb_per_s"] is None
    assert found[1]["copy_share"] == pytest.approx(0.4)
    assert json.loads(text([], "json")) == []


def test_csv_has_a_line_a_row():
    rows = list(csv.DictReader(io.StringIO(text([RESULT, GENERATION], "csv"))))
    assert [row["test"] for row in rows] == ["pp16", "tg4"]
    assert rows[0].keys() >= SHARED_NAMES - {"samples_ns", "samples_ts"}
    assert (rows[0]["gb_per_s"], float(rows[1]["gb_per_s"])) == ("", 4.0)


def test_a_single_repetition_has_no_deviation():
    single = dataclasses.replace(RESULT, samples_ns=(1_000_000,))
    assert row(text([single]).splitlines()[2])[5] == "16000.00 ± 0.00"


def test_the_table_of_operations():
    (case,) = linear_cases(("ffn_down",), ("q4_K",), (2,))
    result = LinearResult(case, "bfloat16", "auto", 1e-5, 32, case.weight_bytes, 2e-5, 0.75, None)
    lines = "".join(op_report([result], "md")).splitlines()
    assert row(lines[2])[:6] == ["ffn_down", "4096x14336", "Q4_K", "2", "10.00", "3303.0"]
    assert row(lines[2])[6:] == ["75.0", "23.49", "", "2.0e-05"]
    (found,) = json.loads("".join(op_report([result], "json")))
    assert (found["type"], found["m"], found["us"]) == ("Q4_K", 2, pytest.approx(10))
