"""Keys and values of a fixed set of sequences, one contiguous row each.

An immutable pytree and pure functions on it; the jitted step donates the old cache, so that XLA
updates it in place.
"""

import math

import jax.numpy as jnp
from flax import struct
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from rfjax.cache.kv_shape import KVShape
from rfjax.errors import UnsupportedError
from rfjax.sharding import leaf_sharding
from rfjax.typing import Array, Float, Int


@struct.dataclass
class LayerCache:
    """One layer's keys and values; token p of a row stands at index p.

    Values are stored transposed because attention contracts both products' last axes (see
    `rfjax.ops.attention`).
    """

    k: Array  # [B, K, S, H]
    v: Array  # [B, K, H, S]

    @property
    def capacity(self) -> int:
        """Tokens a row can hold."""
        return self.k.shape[2]


@struct.dataclass
class DenseCache:
    """A layer cache per layer."""

    layers: tuple[LayerCache, ...]

    @property
    def capacity(self) -> int:
        """Tokens a row can hold."""
        return self.layers[0].capacity


def init_cache(
    kv_shapes: tuple[KVShape, ...],
    batch: int,
    capacity: int,
    dtype: jnp.dtype,
    mesh: Mesh | None = None,
) -> DenseCache:
    """An empty cache, spread over a mesh if there is one.

    Args:
        kv_shapes: of every layer.
        batch: rows.
        capacity: tokens of a row.
        dtype: of keys and values.
        mesh: see `cache_sharding`.

    Raises:
        UnsupportedError: a layer keeps no values of its own.
    """
    if any(shape.is_latent for shape in kv_shapes):
        raise UnsupportedError(
            "a cache of dense rows: got layers of latent attention, expected layers that keep keys "
            "and values. Use pages (rfjax.cache.paged, as the engine does)"
        )

    def layer(n_kv: int, k_dim: int, v_dim: int) -> LayerCache:
        device = None if mesh is None else cache_sharding(mesh, batch, n_kv)
        return LayerCache(
            k=jnp.zeros((batch, n_kv, capacity, k_dim), dtype, device=device),
            v=jnp.zeros((batch, n_kv, v_dim, capacity), dtype, device=device),
        )

    return DenseCache(layers=tuple(layer(*shape) for shape in kv_shapes))


def cache_sharding(mesh: Mesh | AbstractMesh, batch: int, n_kv: int) -> NamedSharding:
    """Where a layer's keys and values live: sequences over "data", kv heads over "model"."""
    axes = ("batch", "kv_heads", None, None)
    return leaf_sharding(mesh, "the cache", (batch, n_kv, 1, 1), axes)


def cache_bytes(
    kv_shapes: tuple[KVShape, ...],
    batch: int,
    capacity: int,
    dtype: jnp.dtype,
    mesh: Mesh | AbstractMesh | None = None,
) -> int:
    """Bytes that `init_cache` with the same arguments allocates, on each device.

    Layers of latent attention, which it refuses, count with what pages keep of as many tokens.
    """
    total = 0
    for n_kv, k_dim, v_dim in kv_shapes:
        shape = (batch, n_kv, capacity, k_dim + v_dim)
        if mesh is not None:
            shape = cache_sharding(mesh, batch, n_kv).shard_shape(shape)
        total += math.prod(shape)
    return total * jnp.dtype(dtype).itemsize


def append(
    cache: LayerCache,
    k: Float[Array, "B L K H"],
    v: Float[Array, "B L K H"],
    positions: Int[Array, "B L"],
) -> LayerCache:
    """Write the keys and values of L tokens a row at their positions.

    A position outside `[0, capacity)` is not written: padding is marked so, and a row that is
    full is never silently overwritten (callers check capacity before the step).
    """
    # A negative index would count from the end, as in NumPy.
    index = jnp.where(positions < 0, cache.capacity, positions)
    rows = jnp.arange(k.shape[0], dtype=index.dtype)[:, None]
    return LayerCache(
        k=cache.k.at[rows, :, index].set(k.astype(cache.k.dtype), mode="drop"),
        v=cache.v.at[rows, :, :, index].set(v.astype(cache.v.dtype), mode="drop"),
    )
