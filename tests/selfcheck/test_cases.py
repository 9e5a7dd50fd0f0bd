"""The references of the self-check are right: interpreted kernels pass."""

import pytest

from rfjax.models.launches import Launch
from rfjax.ops.dispatch import KERNELS
from rfjax.ops.mask import Mask
from rfjax.quant.types import GGMLType
from rfjax.selfcheck.attention import Heads, attention_cases
from rfjax.selfcheck.checker import run_checks
from rfjax.selfcheck.matvec import ExpertsKind, experts_case, kernel_for, launch_cases, matvec_cases
from rfjax.selfcheck.paged_attention import PagedHeads, paged_attention_cases

pytestmark = pytest.mark.quick_compile

HEADS = (
    Heads(2, 1, 32, 32, norms=True),
    Heads(1, 1, 16, 8, "half", Mask("window", 21), temperature=True),
)


def test_products():
    cases = [*matvec_cases([GGMLType.Q4_0, GGMLType.BF16], "bfloat16", odd=(7, 160), width=512)]
    many = ("rows 16", "rows 32", "rows 200")
    cases = [case for case in cases if not any(rows in case.label for rows in many)]
    assert [result.verdict for result in run_checks(cases, seed=1)] == ["ok"] * 6


def test_launches():
    """Of matrices whose rows repeat, gate and up among them."""
    together = Launch((GGMLType.Q4_0, GGMLType.Q8_0), (131, 70), 64)
    gated = Launch((GGMLType.Q8_0,) * 2, (70, 70), 64, gated=True)
    alone = Launch((GGMLType.F32,), (131,), 64)
    cases = [*launch_cases([together, gated, alone], "float32")]
    few = [case for case in cases if "rows 1," in case.label or "F32 x 64, rows 4" in case.label]
    assert {case.kernel for case in few} == {
        "quantized_matvec:Q4_0+Q8_0",
        "quantized_matvec:Q8_0",
        "plain_matvec:F32",
    }
    assert len(few) == 4
    assert {result.verdict for result in run_checks(few, seed=4)} == {"ok"}


def test_experts():
    packed = (GGMLType.Q8_0, GGMLType.Q8_0, GGMLType.Q5_0)
    cases = [experts_case(packed, "float32", (32, 96))]
    cases.append(experts_case((GGMLType.BF16,) * 3, "bfloat16", (80, 24)))
    gpt_oss = ExpertsKind("swiglu_oai", biased=True)
    cases.append(experts_case((GGMLType.MXFP4,) * 3, "float32", (32, 96), gpt_oss))
    assert "swiglu_oai, biases" in cases[-1].label
    assert [case.kernel for case in cases] == [
        *("grouped_matvec:Q8_0+Q5_0", "plain_matvec:BF16", "grouped_matvec:MXFP4")
    ]
    assert [result.verdict for result in run_checks(cases, seed=3)] == ["ok"] * 3


def test_attention():
    cases = [*attention_cases(HEADS, "float32")]
    assert len(cases) == 8
    small = [case for case in cases if "512 slots" not in case.label and "256" not in case.label]
    results = [*run_checks(small, seed=2)]
    assert [result.verdict for result in results] == ["ok"] * 4
    assert max(result.error for result in results) < 1e-6


def test_attention_over_pages():
    kinds = (
        PagedHeads(HEADS[0], packed=True, softcap=5.0),
        PagedHeads(HEADS[1], sinks=True, slopes=True),
    )
    cases = [*paged_attention_cases(kinds, "float32")]
    assert len(cases) == 6
    assert len({case.key for case in cases}) == 6
    small = [case for case in cases if "16 pages" not in case.label]
    results = [*run_checks(small, seed=2)]
    assert [result.verdict for result in results] == ["ok"] * 4
    unpacked = [result.error for result in results if "packed" not in result.label]
    assert max(unpacked) < 1e-6


def test_the_ops_layer_says_which_kernel_takes_which_rows():
    for types, m, name in (
        ((GGMLType.Q4_K,), 1, "quantized_matvec:Q4_K"),
        ((GGMLType.Q4_K, GGMLType.Q6_K, GGMLType.Q4_K), 2, "quantized_matvec:Q4_K+Q6_K"),
        ((GGMLType.Q4_K,), 40, "packed_matmul:Q4_K"),
        ((GGMLType.BF16,), 1, "plain_matvec:BF16"),
    ):
        found = kernel_for(types, 512, m, "bfloat16")
        assert found is not None
        assert found[0] == name
        # Its policy takes no other, so that a case tests what it names.
        assert found[1].why_disabled(name.partition("+")[0]) is None
        assert len(found[1].disabled) == len(KERNELS["linear"]) - 1
    for type, m, dtype in (
        (GGMLType.IQ2_XS, 1, "bfloat16"),
        (GGMLType.BF16, 4096, "bfloat16"),
        (GGMLType.Q4_K, 4096, "bfloat16"),
        (GGMLType.Q4_K, 40, "float32"),
    ):
        assert kernel_for((type,), 512, m, dtype) is None
