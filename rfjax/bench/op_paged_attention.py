"""Attention over pages to be timed: pages in random order, in several layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rfjax.bench.attention_case import AttentionCase
from rfjax.bench.attention_data import drawer, error_of
from rfjax.cache.paged import PagedLayer, quantize_heads
from rfjax.ops.dispatch import KernelPolicy
from rfjax.ops.mask import Mask
from rfjax.ops.paged_attention import paged_attention
from rfjax.ops.paged_decode_attention import paged_decode_attention
from rfjax.typing import Array

_ROW = 128
"""Tokens of a prompt that make one row."""

_CHECKED_QUERIES = 16


class PagedDecode:
    """One new token a sequence, whose key and value are written."""

    def __init__(
        self, case: AttentionCase, n_layers: int, dtype: str, policy: KernelPolicy, seed: int
    ):
        self._case = case
        self._table = _table(case, seed)
        draw = drawer(dtype, seed)
        heads = (case.batch, case.n_heads + 2 * case.n_kv_heads, case.head_dim)
        self._heads = [draw(heads) for _ in range(n_layers)]
        self._pages = [_pages(case, draw) for _ in range(n_layers)]
        half = (case.batch, case.head_dim // 2)
        self._tables = jnp.ones(half, jnp.float32), jnp.zeros(half, jnp.float32)

        def layers(
            heads: list[Array], pages: list[PagedLayer], table: Array, cos: Array, sin: Array
        ) -> Any:
            done = [
                paged_decode_attention(
                    q,
                    None,
                    None,
                    layer,
                    table,
                    cos,
                    sin,
                    positions=jnp.full((case.batch,), case.length - 1, jnp.int32),
                    mask=Mask("causal"),
                    scale=case.head_dim**-0.5,
                    pairing="interleaved",
                    eps=1e-5,
                    policy=policy,
                )
                for q, layer in zip(heads, pages, strict=True)
            ]
            return [out for out, _ in done], [layer for _, layer in done]

        self._layers = jax.jit(layers, donate_argnums=1)

    def __call__(self) -> list[Array]:
        outputs, self._pages = self._layers(self._heads, self._pages, self._table, *self._tables)
        return outputs

    def error(self) -> float:
        """Of the first sequence in the first layer."""
        case, out = self._case, self()[0][0]
        q = np.asarray(self._heads[0][0, : case.n_heads])
        found = np.asarray(out, np.float64).reshape(1, case.n_heads, case.head_dim)
        return error_of(found, q[None], *_first(case, self._pages[0], self._table), case)


class PagedPrefill:
    """Whole prompts, whose keys and values are in the pages already, in rows of 128 tokens."""

    def __init__(
        self, case: AttentionCase, n_layers: int, dtype: str, policy: KernelPolicy, seed: int
    ):
        self._case = case
        self._table = _table(case, seed)
        draw = drawer(dtype, seed)
        row = min(_ROW, case.length)
        rows = -(-case.length // row)  # of a sequence
        queries = (case.batch * rows, row, case.n_heads, case.head_dim)
        self._queries = [draw(queries) for _ in range(n_layers)]
        self._pages = [_pages(case, draw) for _ in range(n_layers)]

        def layers(queries: list[Array], pages: list[PagedLayer], table: Array) -> list[Array]:
            positions = jnp.arange(rows * row, dtype=jnp.int32)
            positions = jnp.where(positions < case.length, positions, -1).reshape(rows, row)
            return [
                paged_attention(
                    q,
                    layer,
                    jnp.repeat(table, rows, axis=0),
                    query_positions=jnp.tile(positions, (case.batch, 1)),
                    key_lengths=jnp.full((case.batch * rows,), case.length, jnp.int32),
                    mask=Mask("causal"),
                    scale=case.head_dim**-0.5,
                    policy=policy,
                )
                for q, layer in zip(queries, pages, strict=True)
            ]

        self._layers = jax.jit(layers)

    def __call__(self) -> list[Array]:
        return self._layers(self._queries, self._pages, self._table)

    def error(self) -> float:
        """Of the last tokens of the first sequence in the first layer."""
        case, q = self._case, self._queries[0]
        rows = q.shape[0] // case.batch

        def last(x: Array) -> np.ndarray:
            of_first = x[:rows].reshape(rows * q.shape[1], case.n_heads, case.head_dim)
            return np.asarray(of_first[: case.length][-_CHECKED_QUERIES:])

        found = last(self()[0]).astype(np.float64)
        return error_of(found, last(q), *_first(case, self._pages[0], self._table), case)


def _table(case: AttentionCase, seed: int) -> Array:
    """int32 [B, M]: all pages but page 0, shuffled."""
    each = -(-case.length // case.page_size)
    shuffled = 1 + np.random.default_rng(seed).permutation(case.batch * each)
    return jnp.asarray(shuffled.reshape(case.batch, each), jnp.int32)


def _pages(case: AttentionCase, draw) -> PagedLayer:
    n_pages = 1 + case.batch * -(-case.length // case.page_size)
    shape = (n_pages, case.n_kv_heads, case.page_size, case.head_dim)
    if not case.packed:
        return PagedLayer(draw(shape), draw(shape))
    (k, k_scale), (v, v_scale) = (jax.jit(quantize_heads)(draw(shape)) for _ in range(2))
    return PagedLayer(k, v, k_scale, v_scale)


def _first(case: AttentionCase, layer: PagedLayer, table: Array) -> tuple[np.ndarray, np.ndarray]:
    """Keys [K, S, H] and values [K, H, S] of the first sequence."""

    def gathered(values: Array, scales: Array | None) -> np.ndarray:
        found = np.asarray(values[table[0]], np.float64)  # [M, K, C, H]
        if scales is not None:
            found = found * np.asarray(scales[table[0]], np.float64)[..., None]
        found = found.transpose(1, 0, 2, 3).reshape(case.n_kv_heads, -1, case.head_dim)
        return found[:, : case.length]

    keys, values = gathered(layer.k, layer.k_scale), gathered(layer.v, layer.v_scale)
    return keys, values.swapaxes(1, 2)
