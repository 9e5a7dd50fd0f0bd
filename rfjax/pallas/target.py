"""Which machine a kernel is being traced for: it decides the instructions that kernels name."""

from typing import Any, Literal

import jax

Target = Literal["cuda", "gfx9", "gfx11", "interpret"]


def current_target() -> Target:
    """The target of code traced now.

    The abstract device of the mesh in use if it names an AMD architecture (that is how a program
    is lowered for a device that is not there), else the first device of the default backend.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None and device.device_kind.startswith("gfx"):
        return _amd(device.device_kind)
    return target_of(jax.devices()[0])


def current_device_kind() -> str:
    """The kind of the device that code is traced for, such as "NVIDIA H200" or "gfx942"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None and device.device_kind.startswith("gfx"):
        return device.device_kind
    return jax.devices()[0].device_kind


def target_of(device: Any) -> Target:
    """The target of one `jax.Device`; on the CPU kernels are interpreted."""
    if device.platform == "cpu":
        return "interpret"
    # CUDA devices report numbers such as "9.0", ROCm devices names such as "gfx942".
    architecture = str(getattr(device, "compute_capability", ""))
    return _amd(architecture) if architecture.startswith("gfx") else "cuda"


def _amd(architecture: str) -> Target:
    return "gfx9" if architecture.startswith("gfx9") else "gfx11"
