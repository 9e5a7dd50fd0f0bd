"""Which implementations operations have, and the policy by which one is taken. No JAX.

Every operation has its plain-JAX reference, "xla", which always accepts. "pallas" is a kernel,
which may decline with a reason. None takes the kernel where it accepts; asking for one by name
never falls back to another. For given arguments `rfjax.ops.kernel_target` decides.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

from rfjax.errors import ConfigError, UnsupportedError

Implementation = Literal["xla", "pallas"]

OPS: Mapping[str, str] = MappingProxyType(
    {
        "linear": "rfjax.ops.linear",
        "embed": "rfjax.ops.linear",
        "attention": "rfjax.ops.attention",
        "rms_norm": "rfjax.ops.norm",
        "apply_rope": "rfjax.ops.rope",
        "gated": "rfjax.ops.activation",
        "expert_ffn": "rfjax.ops.moe",
        "sample": "rfjax.ops.sampling",
        "token_nll": "rfjax.ops.likelihood",
    }
)
"""Name of every operation with a choice, and the module of its public function."""

KERNELS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "linear": ("quantized_matvec", "packed_matmul", "plain_matvec"),
        "attention": (
            "prefill_attention",
            "decode_attention",
            "paged_prefill_attention",
            "paged_decode_attention",
        ),
        "expert_ffn": ("grouped_matvec", "plain_matvec"),
    }
)
"""Names of the kernels of operations that have any."""

_NO_KERNEL = "this version has no Pallas kernel for it"
_CPU = "kernels run on GPUs only"


@dataclasses.dataclass(frozen=True)
class KernelPolicy:
    """Which kernels a model may use: static data, part of its configuration.

    Attributes:
        implementation: what every operation takes: "xla", "pallas" (a kernel that declines is an
            error), or None for the kernel where there is one that accepts.
        disabled: kernels not to be used, each with the reason, such as a failed self-check.
            A name is "kernel" or "kernel:TYPE", as `rfjax selfcheck` prints them.
        interpret: take kernels on the CPU too, where they are interpreted: slow, for tests.
    """

    implementation: Implementation | None = None
    disabled: tuple[tuple[str, str], ...] = ()
    interpret: bool = False

    def why_disabled(self, kernel: str) -> str | None:
        """The reason not to use "kernel" or "kernel:TYPE", or None."""
        for name, reason in self.disabled:
            if name in (kernel, kernel.partition(":")[0]):
                return reason
        return None


DEFAULT_POLICY = KernelPolicy()
"""A kernel wherever one accepts."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """The implementation that runs an operation.

    Attributes:
        op: a name of `OPS`.
        implementation: what runs.
        reason: why it was taken.
        declined: the implementations that declined, each with its reason.
    """

    op: str
    implementation: Implementation
    reason: str
    declined: tuple[tuple[Implementation, str], ...]


def choose(
    op: str, implementation: Implementation | None = None, *, on_gpu: bool = False
) -> Choice:
    """What runs an operation whose arguments its kernels accept.

    Args:
        op: a name of `OPS`.
        implementation: one by name, or None for the first that accepts.
        on_gpu: whether the device is one that kernels run on.

    Raises:
        ConfigError: no operation or implementation has that name.
        UnsupportedError: the implementation asked for declines; the message says why.
    """
    if op not in OPS:
        near = difflib.get_close_matches(op, OPS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(OPS)}"
        raise ConfigError(f"no operation is named {op!r}; {hint}")
    if implementation not in (None, *get_args(Implementation)):
        known = ", ".join(get_args(Implementation))
        raise ConfigError(
            f"implementation of {op}: got {implementation!r}, expected one of {known}, or None"
        )
    kernels = KERNELS.get(op, ())
    if implementation == "pallas" and not kernels:
        raise UnsupportedError(
            f"implementation 'pallas' of {op} declines: {_NO_KERNEL}. Leave implementation at None "
            "to take what runs"
        )
    if implementation is not None:
        return Choice(op, implementation, "asked for by name", ())
    if kernels and on_gpu:
        *others, last = kernels
        names = f"{', '.join(others)} and {last}" if others else last
        return Choice(op, "pallas", f"{names}, or plain JAX where they decline", ())
    declined = _CPU if kernels else _NO_KERNEL
    return Choice(op, "xla", "plain JAX always accepts", (("pallas", declined),))
