"""Lower any function for an AMD GPU on a machine without one, and take its kernels out.

An abstract device stands in for the GPU. Every Pallas-Triton kernel is one custom call of the
lowered program and carries its Triton IR; `support.amdgcn` compiles that to machine code.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterator

import jax
from jax.export import DisabledSafetyCheck, Exported, export
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

TARGETS = ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201")
"""MI200, MI300, MI350, and the RX 7900 and RX 9070 cards."""

_KERNEL_CALL = "__gpu$xla.gpu.triton"


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel as JAX hands it to Triton.

    Attributes:
        name: the kernel function's.
        ir: Triton IR as text, without debug locations: equal for equal kernels.
        num_warps: warps of a program.
        num_stages: stages of its software pipelines.
    """

    name: str
    ir: str
    num_warps: int
    num_stages: int


def export_for(function: Callable, *args, arch: str) -> Exported:
    """`jax.jit(function)` exported for platform `rocm`, as it would be traced on a GPU.

    Args:
        function: what to export.
        args: its arguments, arrays or `jax.ShapeDtypeStruct`s or pytrees of them.
        arch: the GPU's name for compilers, for example "gfx942".
    """
    device = AbstractDevice(device_kind=arch, platform="gpu", num_cores=None)
    mesh = AbstractMesh((), (), abstract_device=device)
    with use_abstract_mesh(mesh), warnings.catch_warnings():
        # Known, and the reason why the versions of JAX are bounded (docs/kernels.md).
        warnings.filterwarnings("ignore", "The Pallas Triton backend is", DeprecationWarning)
        checks = [DisabledSafetyCheck.custom_call(_KERNEL_CALL)]
        return export(jax.jit(function), platforms=["rocm"], disabled_checks=checks)(*args)


def kernels_in(exported: Exported) -> list[Kernel]:
    """The kernel calls of an exported program in its order; equal kernels repeat.

    What a loop repeats counts once; what functions of the program share counts at every call.
    """
    from jax._src.interpreters.mlir import make_ir_context
    from jax._src.lib import triton
    from jaxlib.mlir import ir

    with make_ir_context() as context:
        triton.dialect.register_dialect(context)
        module = ir.Module.parse(exported.mlir_module())
        functions = {
            ir.StringAttr(function.attributes["sym_name"]).value: function.operation
            for function in module.body.operations
        }
        return [_kernel(call) for call in _kernel_calls(functions["main"], functions)]


def _kernel_calls(operation, functions: dict) -> Iterator:
    """The kernel calls nested in an MLIR operation, and in the functions that it calls."""
    from jaxlib.mlir import ir

    for region in operation.regions:
        for block in region.blocks:
            for inner in block.operations:
                attributes = inner.operation.attributes
                if inner.operation.name == "func.call":
                    callee = ir.FlatSymbolRefAttr(attributes["callee"]).value
                    yield from _kernel_calls(functions[callee], functions)
                elif inner.operation.name == "stablehlo.custom_call":
                    if ir.StringAttr(attributes["call_target_name"]).value == _KERNEL_CALL:
                        yield inner.operation
                else:
                    yield from _kernel_calls(inner.operation, functions)


def _kernel(call) -> Kernel:
    """The kernel that a custom call carries."""
    from jaxlib.mlir import ir

    config = ir.DictAttr(call.attributes["mhlo.backend_config"])
    module = ir.Module.parse(ir.StringAttr(config["ir"]).value_bytes)
    return Kernel(
        name=ir.StringAttr(config["name"]).value,
        ir=module.operation.get_asm(enable_debug_info=False),
        num_warps=ir.IntegerAttr(config["num_warps"]).value,
        num_stages=ir.IntegerAttr(config["num_stages"]).value,
    )
