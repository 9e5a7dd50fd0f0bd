"""Measuring single products: cases, what is recorded, and the error against f64."""

import pytest

from rfjax.bench.op_case import ROWS, SHAPES, TYPES, linear_cases
from rfjax.bench.op_linear import OpConfig, bench_linear
from rfjax.bench.roof import Roof
from rfjax.errors import ConfigError
from rfjax.quant.types import GGMLType

pytestmark = pytest.mark.quick_compile

SMALL = OpConfig(working_set=1 << 16, max_products=4, repeats=1)


def test_cases():
    assert len(linear_cases()) == len(SHAPES) * len(TYPES) * len(ROWS)
    (case,) = linear_cases(("96x256",), ("Q6_K",), (3,))
    assert (case.shape, case.n, case.k, case.type, case.m) == ("96x256", 96, 256, GGMLType.Q6_K, 3)
    assert case.flops == 2 * 3 * 96 * 256
    assert case.weight_bytes == 96 * 210


@pytest.mark.parametrize(
    ("shape", "type", "rows", "message"),
    [
        ("ffn", "q4_0", 1, "expected rows x columns"),
        ("4x32x2", "q4_0", 1, "expected rows x columns"),
        ("64x64", "q4_9", 1, "type: got 'q4_9'"),
        ("64x64", "q8_k", 1, "type: got 'q8_k'"),
        ("64x96", "q4_k", 1, "not whole blocks of 256"),
        ("64x64", "q4_0", 0, "m: got 0"),
    ],
)
def test_cases_that_make_no_sense(shape, type, rows, message):
    with pytest.raises(ConfigError, match=message):
        linear_cases((shape,), (type,), (rows,))


def test_products_are_measured_and_right():
    chosen = linear_cases(("48x256",), ("q4_k", "iq2_xs", "bf16"), (1, 3, 32))
    results = list(bench_linear(chosen, dtype="float32", config=SMALL, roof=Roof(1e9, 1e9, "x")))
    assert [result.case for result in results] == list(chosen)
    for result in results:
        assert result.seconds > 0
        assert result.error < 1e-6
        assert result.copy_share == pytest.approx(result.gb_per_s)
        assert result.matmul_share == pytest.approx(result.tflop_per_s * 1e3)
        assert result.packed_bytes == pytest.approx(result.case.weight_bytes, rel=0.05)
    assert [result.n_products for result in results[:3]] == [4, 4, 2]


def test_bfloat16_shows_in_the_error():
    (result,) = bench_linear(
        linear_cases(("64x256",), ("q8_0",), (2,)), dtype="bfloat16", config=SMALL
    )
    assert 1e-4 < result.error < 1e-2
    assert (result.copy_share, result.matmul_share) == (None, None)
