"""What the benchmark runs on, as the reports name it."""

import importlib.metadata
import pathlib
import platform
from typing import Any

import jax

from rfjax.bench.result import Environment

_CPU_INFO = pathlib.Path("/proc/cpuinfo")


def find_environment() -> Environment:
    """Of the default device."""
    device = jax.devices()[0]
    return Environment(
        build_commit=importlib.metadata.version("rfjax"),
        jax_version=jax.__version__,
        backends=_backend(device),
        cpu_info=_processor(_CPU_INFO),
        gpu_info="" if device.platform == "cpu" else device.device_kind,
    )


def _backend(device: Any) -> str:
    """As llama-bench names it: "CPU", "CUDA", "ROCm", or the platform of a `jax.Device`."""
    if device.platform != "gpu":
        return device.platform.upper()
    version = device.client.platform_version.lower()
    return next((name for name in ("ROCm", "CUDA") if name.lower() in version), "GPU")


def _processor(path: pathlib.Path) -> str:
    """The processor's name on Linux, elsewhere what Python knows of it."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
