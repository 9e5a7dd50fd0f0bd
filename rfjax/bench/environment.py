"""What the benchmark runs on, as the reports name it."""

import importlib.metadata
from typing import Any

import jax

from rfjax.bench.result import Environment
from rfjax.processor import processor_name


def find_environment() -> Environment:
    """Of the default device."""
    device = jax.devices()[0]
    return Environment(
        build_commit=importlib.metadata.version("rfjax"),
        jax_version=jax.__version__,
        backends=_backend(device),
        cpu_info=processor_name(),
        gpu_info="" if device.platform == "cpu" else device.device_kind,
    )


def _backend(device: Any) -> str:
    """As llama-bench names it: "CPU", "CUDA", "ROCm", or the platform of a `jax.Device`."""
    if device.platform != "gpu":
        return device.platform.upper()
    version = device.client.platform_version.lower()
    return next((name for name in ("ROCm", "CUDA") if name.lower() in version), "GPU")
