"""Whether an operation runs its kernel here, and for which machine."""

from collections.abc import Callable

from rfjax.errors import UnsupportedError
from rfjax.ops.dispatch import KernelPolicy
from rfjax.pallas.target import Target, current_target


def kernel_target(
    policy: KernelPolicy | None, kernel: str, declines: Callable[[Target], str | None]
) -> Target | None:
    """The target to trace `kernel` for, or None where plain JAX runs instead.

    Plain JAX runs where the policy says so (or there is none), where the kernel declines or is
    disabled, and on the CPU unless the policy asks for kernels there (they are interpreted).

    Args:
        declines: says for a target why the kernel does not take the arguments, or None.

    Raises:
        UnsupportedError: kernels were asked for by name, and this one declines or is disabled.
    """
    if policy is None or policy.implementation == "xla":
        return None
    target = current_target()
    by_name = policy.implementation == "pallas"
    if target == "interpret" and not (by_name or policy.interpret):
        return None
    reason = policy.why_disabled(kernel) or declines(target)
    if target == "unknown":
        reason = "kernels are written for NVIDIA GPUs and for AMD's gfx9, gfx11 and gfx12"
    if reason is None:
        return target
    if by_name:
        raise UnsupportedError(
            f"the kernel {kernel} was asked for by name and declines: {reason}. Leave the "
            "implementation at None to take what runs"
        )
    return None
