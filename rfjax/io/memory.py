"""What a model will take on its devices, checked before anything is allocated."""

import math
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rfjax.errors import CapacityError
from rfjax.io.gguf import GGUFFile
from rfjax.models.params import Params, named_leaves
from rfjax.sharding import leaf_sharding


def free_bytes(device: Any) -> int | None:
    """Bytes that can still be allocated on a `jax.Device`, or None where nobody can say.

    Accelerators report their allocator's limit; for the CPU it is the host's available memory.
    """
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if device.platform == "cpu" and "SC_AVPHYS_PAGES" in os.sysconf_names:
        try:
            with open("/proc/meminfo", encoding="ascii") as lines:
                for line in lines:
                    if line.startswith("MemAvailable:"):
                        return int(line.split()[1]) * 1024
        except OSError:
            pass  # not Linux: free pages are the next best answer
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def weight_bytes(spec: Params, dtype: str, mesh: Mesh | None) -> int:
    """Bytes of all weights on one device: its share where the mesh splits them."""
    total = 0
    for name, leaf in named_leaves(spec).items():
        shape = leaf.shape
        if mesh is not None:
            shape = leaf_sharding(mesh, name, shape, leaf.axes).shard_shape(shape)
        total += math.prod(shape) * (4 if leaf.wide else jnp.dtype(dtype).itemsize)
    return total


def transient_bytes(spec: Params) -> int:
    """Bytes that loading takes beside the weights: the largest tensor in f32, while decoded."""
    return 4 * max(math.prod(leaf.shape) for leaf in named_leaves(spec).values())


def check_fits(gguf: GGUFFile, spec: Params, dtype: str, mesh: Mesh | None) -> None:
    """Refuse a model whose loading would exceed a device's free memory.

    Counted are the weights and what decoding the largest of them takes.

    Raises:
        CapacityError: says what is needed, what is free, and what to do.
    """
    devices = jax.devices()[:1] if mesh is None else list(mesh.devices.flat)
    needed = weight_bytes(spec, dtype, mesh)
    if devices[0].platform == "cpu":
        needed *= len(devices)  # simulated devices share the host's memory
    needed += transient_bytes(spec)
    for device in devices:
        free = free_bytes(device)
        if free is not None and needed > free:
            raise CapacityError(
                f"{gguf.path}: loading takes {needed / 2**30:.2f} GiB on {device} in {dtype}, "
                f"which has {free / 2**30:.2f} GiB free. Use a narrower dtype, a smaller model, "
                "or spread it over a mesh of more devices"
            )
