"""Machine code for AMD GPUs: compile a kernel's Triton IR with no GPU, and read what came out.

`triton` from the package index compiles here; on a user's GPU the Triton inside XLA does, a
release apart. So this shows whether a kernel compiles and fits, and roughly what it costs.
"""

import collections
import dataclasses
import functools
import pathlib
import re
import tempfile

from support.rocm import Kernel

LDS_LIMIT = 65536
"""Bytes of local memory that a program may use on every target (gfx950 alone has more)."""


@dataclasses.dataclass(frozen=True)
class Code:
    """What a compiled kernel needs of the GPU.

    Attributes:
        registers: vector registers of a lane, accumulation registers included.
        spills: vector and scalar registers that had to be spilled.
        scratch: bytes of memory a lane uses for spills and local arrays.
        lds: bytes of local memory of a program.
        matrix: number of matrix instructions.
        loads: number of load instructions from global memory by their width in bytes.
    """

    registers: int
    spills: int
    scratch: int
    lds: int
    matrix: int
    loads: tuple[tuple[int, int], ...]


@functools.cache
def compile_for(arch: str, kernel: Kernel) -> Code:
    """Compile a kernel for one AMD target; remembered, so equal kernels are compiled once."""
    import triton
    from triton.backends.compiler import GPUTarget

    target = GPUTarget("hip", arch, 64 if arch.startswith("gfx9") else 32)
    options = {
        "num_warps": kernel.num_warps,
        "num_stages": kernel.num_stages,
        "enable_fp_fusion": True,
    }
    with tempfile.TemporaryDirectory() as folder, triton.knobs.cache.scope():
        # Nothing is read from an earlier run, and nothing stays behind.
        triton.knobs.cache.dir = folder
        source = pathlib.Path(folder, "kernel.ttir")
        source.write_text(_todays(kernel.ir), encoding="utf-8")
        compiled = triton.compile(str(source), target=target, options=options)
        # Local memory is sized at launch: the assembly's own figure for it is always 0.
        return read(compiled.asm["amdgcn"], lds=compiled.metadata.shared)


_POLICY = re.compile(r"(?: cacheModifier = (\w+))?(?: evictionPolicy = (\w+))?(?= :)")


def _todays(ir: str) -> str:
    """Triton IR as JAX prints it, in today's spelling of loads' and stores' cache policies."""

    def spelled(match: re.Match) -> str:
        if not match[0]:
            return ""
        modifier, eviction = match[1] or "none", match[2] or "evict_normal"
        policy = f"cache_modifier = {modifier}, eviction_policy = {eviction}"
        return f" {{cachePolicy = #tt.cache_policy<{policy}>}}"

    return _POLICY.sub(spelled, ir)


def read(assembly: str, *, lds: int) -> Code:
    """Read a kernel's needs from its assembly text."""

    def figure(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", assembly)[1])

    loads = collections.Counter(
        _width(name) for name in re.findall(r"\b(?:global|buffer|flat)_load_(\w+)", assembly)
    )
    return Code(
        registers=figure("vgpr_count"),
        spills=figure("vgpr_spill_count") + figure("sgpr_spill_count"),
        scratch=figure("private_segment_fixed_size"),
        lds=lds,
        matrix=len(re.findall(r"\bv_(?:mfma|smfmac|wmma|swmmac)_", assembly)),
        loads=tuple(sorted(loads.items(), reverse=True)),
    )


def faults(code: Code) -> list[str]:
    """What keeps a compiled kernel from being fit for users, in words; mostly nothing."""
    found = []
    if code.spills:
        found.append(f"{code.spills} registers are spilled")
    if code.scratch:
        found.append(f"{code.scratch} bytes of scratch a lane")
    if code.lds > LDS_LIMIT:
        found.append(f"{code.lds} bytes of LDS, at most {LDS_LIMIT} fit")
    return found


def _width(load: str) -> int:
    """Bytes of a load instruction, by its name from `load_` on: `dwordx4`, `d16_b16`, `u8`."""
    words = re.search(r"dword(?:x(\d+))?", load)
    if words:
        return 4 * int(words[1] or 1)
    if "byte" in load:
        return 1
    if "short" in load:
        return 2
    return int(re.search(r"[biu](\d+)", load.replace("d16", ""))[1]) // 8
