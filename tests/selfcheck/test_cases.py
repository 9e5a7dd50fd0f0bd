"""The references of the self-check are right: interpreted kernels pass."""

import pytest

from rfjax.ops.mask import Mask
from rfjax.quant.types import GGMLType
from rfjax.selfcheck.attention import Heads, attention_cases
from rfjax.selfcheck.checker import run_checks
from rfjax.selfcheck.matvec import experts_case, matvec_cases, together_case

pytestmark = pytest.mark.quick_compile

HEADS = (
    Heads(2, 1, 32, 32, norms=True),
    Heads(1, 1, 16, 8, "half", Mask("window", 21), temperature=True),
)


def test_products():
    cases = [*matvec_cases([GGMLType.Q4_0, GGMLType.BF16], "bfloat16", odd=(7, 160), width=512)]
    cases.append(together_case((GGMLType.Q4_0, GGMLType.Q8_0), "float32", width=64))
    assert [result.verdict for result in run_checks(cases, seed=1)] == ["ok"] * 7


def test_experts():
    packed = (GGMLType.Q8_0, GGMLType.Q8_0, GGMLType.Q5_0)
    cases = [experts_case(packed, "float32", sizes=(32, 64))]
    cases.append(experts_case((GGMLType.BF16,) * 3, "bfloat16", sizes=(40, 24)))
    assert [case.kernel for case in cases] == ["grouped_matvec", "plain_matvec:BF16"]
    assert [result.verdict for result in run_checks(cases, seed=3)] == ["ok"] * 2


def test_attention():
    cases = [*attention_cases(HEADS, "float32")]
    assert len(cases) == 8
    small = [case for case in cases if "512 slots" not in case.label and "256" not in case.label]
    results = run_checks(small, seed=2)
    assert [result.verdict for result in results] == ["ok"] * 4
    assert max(result.error for result in results) < 1e-6
