"""Keys and values of any number of sequences in pages of equal size, found through page tables.

An immutable pytree and pure functions on it; the jitted step donates the old cache, so that XLA
updates it in place. Layers fall into groups (full attention, sliding window), which own pages and
tables of their own: who owns which page is the scheduler's affair (`rfjax.engine.page_pool`).
Token p of a sequence stands in page `table[p // C]` of each of its groups, at place `p % C`.
"""

import dataclasses

import jax.numpy as jnp
from flax import struct
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from rfjax.cache.kv_shape import KVShape
from rfjax.sharding import leaf_sharding
from rfjax.typing import Array, Float, Int

_LARGEST_INT8 = 127


@struct.dataclass
class PagedLayer:
    """One layer's pages. Page 0 is the null page, which no sequence owns.

    In an 8-bit cache keys and values are int8, and `value = int8 * scale` with a scale for each
    head and token; else the scales are None.
    """

    k: Array  # [P, K, C, H]
    v: Array  # [P, K, C, H]
    k_scale: Array | None = None  # f32 [P, K, C]
    v_scale: Array | None = None  # f32 [P, K, C]

    @property
    def page_size(self) -> int:
        """Tokens of a page."""
        return self.k.shape[2]


@struct.dataclass
class LatentLayer:
    """One layer's pages of latent attention: a single head of keys, and no values of their own.

    Scales of an 8-bit cache as in `PagedLayer`.
    """

    k: Array  # [P, 1, C, R]
    k_scale: Array | None = None  # f32 [P, 1, C]

    @property
    def page_size(self) -> int:
        """Tokens of a page."""
        return self.k.shape[2]


LayerPages = PagedLayer | LatentLayer


@struct.dataclass
class PagedCache:
    """Pages of every layer, and the group whose table finds them."""

    layers: tuple[LayerPages, ...]
    groups: tuple[int, ...] = struct.field(pytree_node=False)  # of each layer


def init_paged_cache(
    kv_shapes: tuple[KVShape, ...],
    groups: tuple[int, ...],
    n_pages: tuple[int, ...],
    page_size: int,
    dtype: jnp.dtype,
    mesh: Mesh | None = None,
) -> PagedCache:
    """An empty cache.

    Args:
        kv_shapes: of every layer.
        groups: of every layer.
        n_pages: of each group, the null page included.
        page_size: tokens of a page.
        dtype: of keys and values; int8 adds the scales.
        mesh: spreads kv heads over "model"; None is one device.
    """

    def layer(shape: KVShape, group: int) -> LayerPages:
        device = None if mesh is None else pages_sharding(mesh, shape.n_kv)
        places = (n_pages[group], shape.n_kv, page_size)
        # Each array is allocated by itself: the step donates them all.
        zeros = lambda *sizes: jnp.zeros((*places, *sizes), dtype, device=device)  # noqa: E731
        scale = lambda: (  # noqa: E731
            jnp.zeros(places, jnp.float32, device=device) if jnp.dtype(dtype) == jnp.int8 else None
        )
        if shape.is_latent:
            return LatentLayer(zeros(shape.k_dim), scale())
        return PagedLayer(zeros(shape.k_dim), zeros(shape.v_dim), scale(), scale())

    layers = tuple(layer(s, g) for s, g in zip(kv_shapes, groups, strict=True))
    return PagedCache(layers, groups)


def pages_sharding(mesh: Mesh | AbstractMesh, n_kv: int) -> NamedSharding:
    """Where a layer's pages live: kv heads over "model"; every group of "data" holds all."""
    return leaf_sharding(mesh, "the cache", (1, n_kv, 1), (None, "kv_heads", None))


def page_bytes(
    kv_shapes: tuple[KVShape, ...],
    page_size: int,
    dtype: jnp.dtype,
    mesh: Mesh | AbstractMesh | None = None,
) -> int:
    """Bytes on each device of one page in all of some layers."""
    total = 0
    itemsize = jnp.dtype(dtype).itemsize
    for n_kv, k_dim, v_dim in kv_shapes:
        n_scales = 0 if itemsize > 1 else 2 if v_dim else 1
        if mesh is not None:
            _, n_kv, _ = pages_sharding(mesh, n_kv).shard_shape((1, n_kv, 1))
        total += n_kv * page_size * ((k_dim + v_dim) * itemsize + 4 * n_scales)
    return total


def append_pages(
    layer: PagedLayer,
    table: Int[Array, "B M"],
    k: Float[Array, "B L K H"],
    v: Float[Array, "B L K H"],
    positions: Int[Array, "B L"],
) -> PagedLayer:
    """Write the keys and values of L tokens a row at their positions.

    A position outside `[0, M * C)` is not written: padding is marked so.

    Args:
        table: of each row.
        positions: absolute.
    """
    at = _places(layer, table, positions)
    keys, k_scale = _written(layer.k, layer.k_scale, at, k)
    values, v_scale = _written(layer.v, layer.v_scale, at, v)
    return PagedLayer(keys, values, k_scale, v_scale)


def append_latent(
    layer: LatentLayer,
    table: Int[Array, "B M"],
    k: Float[Array, "B L 1 R"],
    positions: Int[Array, "B L"],
) -> LatentLayer:
    """Write the keys of L tokens a row at their positions, as `append_pages` does."""
    return LatentLayer(*_written(layer.k, layer.k_scale, _places(layer, table, positions), k))


def _places(layer: LayerPages, table: Array, positions: Array) -> tuple[Array, slice, Array]:
    """Where tokens at these positions stand; outside of all pages for those of no page."""
    n_pages, size = layer.k.shape[0], layer.page_size
    page = jnp.take_along_axis(table, positions // size, axis=1, mode="clip")
    inside = (positions >= 0) & (positions < table.shape[1] * size)
    return jnp.where(inside, page, n_pages), slice(None), positions % size


def _written(
    pages: Array, scales: Array | None, at: tuple[Array, slice, Array], heads: Array
) -> tuple[Array, Array | None]:
    """Pages, and scales of 8-bit ones, with heads [B, L, K, H] at their places."""
    if scales is None:
        return pages.at[at].set(heads.astype(pages.dtype), mode="drop"), None
    values, new = quantize_heads(heads)
    return pages.at[at].set(values, mode="drop"), scales.at[at].set(new, mode="drop")


def quantize_heads(x: Float[Array, "*T H"]) -> tuple[Int[Array, "*T H"], Float[Array, "*T"]]:
    """int8 values and f32 scales of heads: the largest becomes 127 or -127, the rest is rounded.

    Halves are rounded to even. A head of zeros has the scale 0. NaN makes the scale NaN, so that
    it is not lost.
    """
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1) / _LARGEST_INT8
    inverse = jnp.where(scale > 0, 1.0 / scale, 0.0)
    rounded = jnp.round(x * inverse[..., None])
    return jnp.clip(rounded, -_LARGEST_INT8, _LARGEST_INT8).astype(jnp.int8), scale


def read_pages(
    layer: PagedLayer, pages: Int[Array, "B n"], dtype: jnp.dtype
) -> tuple[Float[Array, "B K S H"], Float[Array, "B K S H"]]:
    """Keys and values of whole pages, S = n * C tokens a row, in `dtype`."""
    return (
        _read(layer.k, layer.k_scale, pages, dtype),
        _read(layer.v, layer.v_scale, pages, dtype),
    )


def read_latent(
    layer: LatentLayer, pages: Int[Array, "B n"], dtype: jnp.dtype
) -> Float[Array, "B 1 S R"]:
    """Keys of whole pages, as `read_pages` gives them."""
    return _read(layer.k, layer.k_scale, pages, dtype)


def _read(values: Array, scales: Array | None, pages: Array, dtype: jnp.dtype) -> Array:
    found = values[pages].astype(dtype)  # [B, n, K, C, H]
    if scales is not None:
        found = (found.astype(jnp.float32) * scales[pages][..., None]).astype(dtype)
    batch, n, n_kv, size, head_dim = found.shape
    return found.transpose(0, 2, 1, 3, 4).reshape(batch, n_kv, n * size, head_dim)


def copy_pages(
    cache: PagedCache, copies: tuple[tuple[Int[Array, " n"], Int[Array, " n"]], ...]
) -> PagedCache:
    """Copy whole pages in every layer; all sources are read before any target is written.

    Args:
        copies: sources and targets of each group; a target outside the pages copies nothing.
    """

    def copied(layer: LayerPages, group: int) -> LayerPages:
        sources, targets = copies[group]
        values = {
            name: pages.at[targets].set(pages[sources], mode="drop")
            for name, pages in vars(layer).items()
            if pages is not None
        }
        return dataclasses.replace(layer, **values)

    layers = zip(cache.layers, cache.groups, strict=True)
    return PagedCache(tuple(copied(layer, group) for layer, group in layers), cache.groups)
