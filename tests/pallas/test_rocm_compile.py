"""Every kernel compiles for AMD GPUs and fits: no spills, no scratch, local memory within bounds.

No AMD GPU takes part; `support.rocm` says how. Products are in a file of their own, so that two
workers share the work. `make kernels` compiles every case for every target, which takes minutes.
"""

import collections
import functools

import jax
import jax.numpy as jnp
import pytest
from support.amdgcn import Code, read
from support.kernel_cases import ONE_OF_EACH, KernelCase, kernel_cases
from support.kernel_check import compiled, faults_of
from support.kernel_table import DOCUMENT, TARGETS, named_cases
from support.sample_kernel import product

from rfjax.quant.layout import LAYOUTS

pytest.importorskip("triton", reason="triton compiles for AMD GPUs; it exists for Linux only")

CASES = [
    pytest.param(case, arch, id=f"{case.name}-{arch}")
    for case in kernel_cases()
    if not case.name.startswith("quantized_matvec")
    for arch in case.tested_on
]


@pytest.mark.parametrize(("case", "arch"), CASES)
def test_a_kernel_compiles_and_fits(case, arch):
    assert not faults_of(case, compiled(case, arch))


def test_every_target_and_every_type_are_among_what_is_compiled():
    by_kernel = collections.defaultdict(set)
    for case in kernel_cases():
        by_kernel[case.name.split()[0].rstrip(",")].update(case.tested_on)
    grouped = by_kernel.pop("grouped_matvec")  # the tiles of the two products, with an index
    assert grouped == set(ONE_OF_EACH)
    assert all(targets == set(TARGETS) for targets in by_kernel.values())
    compiled_types = {case.name.split()[-1] for case in kernel_cases() if case.tested_on}
    assert {type.name for type in LAYOUTS} <= compiled_types


def test_the_documented_kernels_are_those_of_the_registry():
    names = [case.name for case in kernel_cases()]
    assert len(set(names)) == len(names)
    document = DOCUMENT.read_text(encoding="utf-8")
    assert named_cases(document) == set(names), "run `make kernels` to write docs/kernels.md anew"


def sample(tile: int, step: int = 32, dtype=jnp.bfloat16, warps: int = 4) -> KernelCase:
    """A matrix product by tiles of a size."""
    function = functools.partial(product, tile=tile, step=step, warps=warps)
    operand = jax.ShapeDtypeStruct((512, 512), dtype)
    return KernelCase("sample", function, (operand, operand), "prefill")


@pytest.mark.parametrize("arch", TARGETS)
def test_a_small_tile_fits(arch):
    case = sample(tile=32)
    codes = compiled(case, arch)
    assert not faults_of(case, codes)
    (code,) = codes.values()
    assert 0 < code.registers <= 256
    assert code.lds > 0
    assert code.loads


@pytest.mark.parametrize(
    ("case", "arch", "words"),
    [
        (sample(tile=128), "gfx1201", "registers are spilled"),
        (sample(tile=128), "gfx1201", "bytes of scratch"),
        (sample(tile=128, step=512), "gfx950", "bytes of LDS"),
        (sample(tile=32, dtype=jnp.float32), "gfx1100", "no matrix instruction"),
        (KernelCase("none", jnp.sin, sample(tile=32).args[:1], "other"), "gfx942", "no kernel"),
    ],
)
def test_the_check_can_fail(case, arch, words):
    assert any(words in fault for fault in faults_of(case, compiled(case, arch)))


def test_what_is_read_from_assembly():
    assembly = """
        global_load_dwordx4 v[0:3], v[4:5], off
        buffer_load_dword v0, off, s[0:3], 0
        global_load_ubyte_d16 v0, v[1:2], off
        global_load_b128 v[0:3], v[4:5], off
        global_load_d16_b16 v0, v[1:2], off
        global_load_d16_hi_u8 v0, v[1:2], off
        global_load_ushort v0, v[1:2], off
        s_load_b64 s[0:1], s[2:3], 0x0
        v_mfma_f32_32x32x8_bf16_1k a[0:15], v[0:1], v[2:3], a[0:15]
        v_wmma_f32_16x16x16_bf16 v[0:7], v[8:15], v[16:23], v[0:7]
        .private_segment_fixed_size: 24
        .sgpr_spill_count: 1
        .vgpr_count:     51
        .vgpr_spill_count: 2
    """
    loads = ((16, 2), (4, 1), (2, 2), (1, 2))
    assert read(assembly, lds=96) == Code(51, 3, 24, 96, 2, loads)
