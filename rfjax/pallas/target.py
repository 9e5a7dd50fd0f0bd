"""Which machine a kernel is being traced for: it decides the instructions that kernels name."""

from typing import Any, Literal

import jax

Target = Literal["cuda", "gfx9", "gfx11", "interpret", "unknown"]
"""NVIDIA; AMD's CDNA; AMD's RDNA 3 and 4; no GPU; a GPU whose instructions no kernel names."""


def lanes_of(target: Target) -> int:
    """Lanes of a wave: what NVIDIA calls a warp, and Triton everywhere."""
    return 64 if target == "gfx9" else 32


def current_target() -> Target:
    """The target of code traced now.

    The abstract device of the mesh in use if it names an AMD architecture (that is how a program
    is lowered for a device that is not there), else JAX's default device.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None and device.device_kind.startswith("gfx"):
        return _amd(device.device_kind)
    return target_of(default_device())


def shared_memory(target: Target) -> int:
    """Bytes of shared memory (LDS) that a program may use on the device code is traced for."""
    if target != "cuda":
        return 64 << 10
    capability = str(getattr(default_device(), "compute_capability", ""))
    if capability.startswith(("9.", "10.")):
        return 227 << 10
    return (163 if capability in ("8.0", "8.7") else 99) << 10


def current_device_kind() -> str:
    """The kind of the device that code is traced for, such as "NVIDIA H200" or "gfx942"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None and device.device_kind.startswith("gfx"):
        return device.device_kind
    return default_device().device_kind


def default_device() -> Any:
    """The device that `jax.default_device` names, or the first of the default backend."""
    chosen = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if chosen is None:
        return jax.devices()[0]
    return jax.devices(chosen)[0] if isinstance(chosen, str) else chosen


def target_of(device: Any) -> Target:
    """The target of one `jax.Device`; on the CPU kernels are interpreted."""
    if device.platform == "cpu":
        return "interpret"
    # CUDA devices report numbers such as "9.0", ROCm devices names such as "gfx942".
    architecture = str(getattr(device, "compute_capability", ""))
    return _amd(architecture) if architecture.startswith("gfx") else "cuda"


def _amd(architecture: str) -> Target:
    if architecture.startswith("gfx9"):
        return "gfx9"
    return "gfx11" if architecture.startswith(("gfx11", "gfx12")) else "unknown"
