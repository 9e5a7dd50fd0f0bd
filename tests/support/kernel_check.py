"""One kernel case on one AMD target: its kernels with their machine code, and what is wrong."""

from support.amdgcn import Code, compile_for, faults
from support.kernel_cases import KernelCase
from support.rocm import Kernel, export_for, kernels_in


def compiled(case: KernelCase, arch: str) -> dict[Kernel, Code]:
    """The distinct kernels that a case launches, in order, each compiled."""
    kernels = kernels_in(export_for(case.function, *case.args, arch=arch))
    return {kernel: compile_for(arch, kernel) for kernel in kernels}


def faults_of(case: KernelCase, codes: dict[Kernel, Code]) -> list[str]:
    """What keeps a case's kernels from being fit for users, in words."""
    if not codes:
        return ["no kernel is launched"]
    found = [f"{kernel.name}: {fault}" for kernel, code in codes.items() for fault in faults(code)]
    if case.kind == "prefill" and not any(code.matrix for code in codes.values()):
        found.append("no matrix instruction")
    return found
