"""The kernels that are compiled for AMD GPUs: one `KernelCase` a kernel, type and regime.

A new kernel adds its cases here; `tests/pallas/test_rocm_compile.py` compiles them and
`python -m support.kernel_table` (in `tests/`) writes what came out into docs/kernels.md.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal


@dataclasses.dataclass(frozen=True)
class KernelCase:
    """A function that launches kernels, at sizes that a real model has.

    Attributes:
        name: of its row in docs/kernels.md; unique.
        function: called with `args`; it must take its kernel and not another path.
        args: `jax.ShapeDtypeStruct`s, or pytrees of them.
        kind: "prefill" kernels must use the matrix units.
    """

    name: str
    function: Callable
    args: tuple
    kind: Literal["decode", "prefill", "other"]


def kernel_cases() -> tuple[KernelCase, ...]:
    """Every case, in the order of the table."""
    return ()
