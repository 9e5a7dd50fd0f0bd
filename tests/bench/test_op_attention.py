"""Measuring attention: cases, what is recorded, and the error against f64."""

import json

import pytest

from rfjax.bench.attention_case import SHAPES, AttentionCase, attention_cases
from rfjax.bench.op_attention import AttentionConfig, bench_attention
from rfjax.bench.op_report import attention_report
from rfjax.bench.roof import Roof
from rfjax.errors import ConfigError
from rfjax.ops.dispatch import KernelPolicy

pytestmark = pytest.mark.quick_compile

SMALL = AttentionConfig(working_set=1, repeats=1)
CASES = (
    AttentionCase("decode", 2, 40, n_heads=4, n_kv_heads=2, head_dim=16),
    AttentionCase("prefill", 2, 24, n_heads=4, n_kv_heads=2, head_dim=16),
)
PAGED = (
    AttentionCase("paged-decode", 2, 40, n_heads=4, n_kv_heads=2, head_dim=16, page_size=16),
    AttentionCase("paged-prefill", 2, 150, n_heads=4, n_kv_heads=2, head_dim=16),
    AttentionCase("paged-prefill", 1, 40, n_heads=4, n_kv_heads=2, head_dim=16, packed=True),
)


def test_cases():
    assert [case.name for case in attention_cases()] == list(SHAPES)
    decode, prefill = CASES
    assert decode.kv_bytes(2) == 2 * 2 * 2 * 40 * 16 * 2
    assert decode.flops == 4 * 2 * 4 * 16 * 40
    assert prefill.flops == 4 * 2 * 4 * 16 * (24 * 25 // 2)
    assert PAGED[2].kv_bytes(2) == 2 * 2 * 40 * (16 + 4)
    assert PAGED[1].flops == 4 * 2 * 4 * 16 * (150 * 151 // 2)
    named = ("paged-decode:1x32768", "paged-decode:2x64@16", "paged-prefill:8x2048@64/int8")
    assert [case.name for case in attention_cases(named)] == list(named)
    (packed,) = attention_cases(named[2:])
    assert (packed.page_size, packed.packed) == (64, True)
    wrong = ("decode:1x2@16", "decode:1x2/int8", "paged-decode:1x2@24", "paged-decode:1x2@8")
    for text in ("decode", "decode:4096", "score:1x2", "decode:0x5", *wrong):
        with pytest.raises(ConfigError):
            attention_cases((text,))


def test_attention_is_measured_and_right():
    results = list(
        bench_attention(CASES, dtype="float32", config=SMALL, roof=Roof(1e9, 1e9, "float32"))
    )
    assert [result.case for result in results] == list(CASES)
    decode, prefill = results
    for result in results:
        assert result.seconds > 0
        assert result.error < 1e-6
    assert decode.copy_share == pytest.approx(decode.gb_per_s)
    assert prefill.matmul_share == pytest.approx(prefill.tflop_per_s * 1e3)
    assert (decode.matmul_share, prefill.copy_share) == (None, None)
    lines = "".join(attention_report(results, "md")).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| decode:2x40")
    found = json.loads("".join(attention_report(results, "json")))
    assert [row["kind"] for row in found] == ["decode", "prefill"]


def test_attention_over_pages_is_measured_and_right():
    results = list(
        bench_attention(PAGED, dtype="float32", config=SMALL, roof=Roof(1e9, 1e9, "float32"))
    )
    assert [result.case for result in results] == list(PAGED)
    assert all(result.error < 1e-6 for result in results)
    decode, prefill, _ = results
    assert decode.copy_share == pytest.approx(decode.gb_per_s)
    assert prefill.matmul_share == pytest.approx(prefill.tflop_per_s * 1e3)
    lines = "".join(attention_report(results, "md")).splitlines()
    assert lines[2].startswith("| paged-decode:2x40@16")


def test_a_kernel_that_declines_is_told_of():
    told = []
    results = bench_attention(
        CASES[1:],
        dtype="float32",
        config=SMALL,
        policy=KernelPolicy("pallas", (("prefill_attention", "it failed a check"),)),
        on_declined=lambda case, why: told.append((case, why)),
    )
    assert not list(results)
    assert told[0][0] == CASES[1]
    assert "it failed a check" in told[0][1]
