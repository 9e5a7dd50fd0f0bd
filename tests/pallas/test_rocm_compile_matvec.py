"""The products of packed weights compile for AMD GPUs and fit, see `test_rocm_compile.py`."""

import pytest
from support.kernel_cases import kernel_cases
from support.kernel_check import compiled, faults_of

pytest.importorskip("triton", reason="triton compiles for AMD GPUs; it exists for Linux only")

CASES = [
    pytest.param(case, arch, id=f"{case.name}-{arch}")
    for case in kernel_cases()
    if case.name.startswith("quantized_matvec")
    for arch in case.tested_on
]


@pytest.mark.parametrize(("case", "arch"), CASES)
def test_a_kernel_compiles_and_fits(case, arch):
    assert not faults_of(case, compiled(case, arch))
