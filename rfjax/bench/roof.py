"""What the device can do at most, measured: the rates that the others are a share of."""

import dataclasses

import jax
import jax.numpy as jnp

from rfjax.bench.timing import seconds_per_call
from rfjax.io.memory import free_bytes

_COPY_BYTES = {"cpu": 1 << 28, "gpu": 1 << 30}
_MATMUL_SIZE = {"cpu": 1024, "gpu": 8192}


@dataclasses.dataclass(frozen=True)
class Roof:
    """Measured ceilings of one device.

    Attributes:
        copy_bytes_per_s: of a copy within the device's memory, bytes read and bytes written.
        matmul_flop_per_s: of a square matrix product in `dtype`.
        dtype: of the product.
    """

    copy_bytes_per_s: float
    matmul_flop_per_s: float
    dtype: str


def measure_roof(dtype: str) -> Roof:
    """Measure the default device.

    A copy is of 1 GiB on GPUs and of 256 MiB on the CPU, beyond every cache; once as a copy and
    once as an increment, which XLA may spread over more threads; the faster one counts. The
    product is of 8192 x 8192 matrices on GPUs and of 1024 x 1024 on the CPU.
    """
    device = jax.devices()[0]
    kind = "cpu" if device.platform == "cpu" else "gpu"
    nbytes = _COPY_BYTES[kind]
    free = free_bytes(device)
    if free is not None:
        nbytes = min(nbytes, max(1 << 20, free // 8))
    return Roof(
        copy_bytes_per_s=max(
            2 * nbytes / seconds for seconds in (_copy(nbytes), _increment(nbytes))
        ),
        matmul_flop_per_s=_matmul(_MATMUL_SIZE[kind], dtype),
        dtype=dtype,
    )


def _copy(nbytes: int) -> float:
    source = jnp.ones(nbytes // 4, jnp.float32)
    return seconds_per_call(jax.jit(jnp.copy), source).fastest


def _increment(nbytes: int) -> float:
    source = jnp.ones(nbytes // 4, jnp.float32)
    return seconds_per_call(jax.jit(lambda x: x + jnp.float32(1)), source).fastest


def _matmul(size: int, dtype: str) -> float:
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=a.dtype))
    return 2 * size**3 / seconds_per_call(product, a, a).fastest
