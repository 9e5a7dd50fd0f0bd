"""The two forms of a decode program: all query heads of a group by one product, or one by one."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plt

from rfjax.pallas.exponential import LOG2_E, exp2
from rfjax.pallas.online_softmax import FLOOR, weigh
from rfjax.pallas.page_tile import Tile
from rfjax.pallas.paged_decode_config import SMALLEST
from rfjax.pallas.softcap import softcapped
from rfjax.pallas.target import Target
from rfjax.typing import Array

_LEAST = 1e-30
"""Keeps a row without keys from being divided by 0."""


@dataclasses.dataclass(frozen=True)
class Program:
    """What a form knows of its program, while it is traced.

    Attributes:
        inputs: references by name; terms that there are not are missing.
        results: the output [B, N, H], or of each split sums [B, N, splits, H], largest scores and
            sums of weights [B, N, splits].
        first_head, n_heads, end_head: the query heads of the program begin at the first and are at
            most that many; those from the end on belong to another kv head.
        prepare: the queries of a head, or of a column of heads, by "q" and index, f32.
        new: key and value of the new token as pages hold them, f32 [H], and whether this program
            counts them.
        loop: `loop(step, begin)` over the program's blocks: see `over_blocks`.
    """

    inputs: Mapping[str, Any]
    results: tuple[Any, ...]
    row: Array
    split: Array
    first_head: Array
    n_heads: int
    end_head: Array
    dims: Array
    prepare: Callable[[str, Array], Array]
    new: Callable[[], tuple[Array, Array, Array]]
    loop: Callable[..., Any]
    scale: float
    softcap: float
    target: Target

    def exponents(self, products: Array, slopes: Array | None, keys: Array | None):
        """Scores from products of queries and keys, and the factor that makes them exponents.

        Args:
            slopes: of the heads, broadcasting against the products.
            keys: positions, likewise; None for the new token's own.
        """
        factor = self.scale
        if self.softcap:
            products = softcapped(products, self.scale, self.softcap, self.target)
            factor = 1.0
        factor *= LOG2_E
        if slopes is None or keys is None:
            return products, factor
        distance = (keys - self.inputs["positions"][self.row]).astype(jnp.float32)
        return products * factor + slopes * distance, 1.0

    def of_heads(self, name: str, heads: Array) -> Array | None:
        """One of the terms that each query head has, as exponents of two; None without it."""
        ref = self.inputs.get(name)
        return None if ref is None else plt.load(ref.at[heads]) * LOG2_E

    def finish(self, heads: Array, real: Array | None, acc: Array, best: Array, total: Array):
        """Write results: of one head, or of some of which `real` tells those that exist."""
        exists = self.dims < self.results[0].shape[-1]
        one = real is None
        both = exists if one else real[:, None] & exists[None, :]
        at = (heads,) if one else (heads[:, None],)
        dims = self.dims if one else self.dims[None, :]
        if len(self.results) == 3:
            acc_ref, best_ref, total_ref = self.results
            plt.store(acc_ref.at[self.row, *at, self.split, dims], acc, mask=both)
            plt.store(best_ref.at[self.row, heads, self.split], best, mask=real)
            plt.store(total_ref.at[self.row, heads, self.split], total, mask=real)
            return
        inverse = 1.0 / jnp.maximum(total, _LEAST)
        out = acc * (inverse if one else inverse[:, None])
        (ref,) = self.results
        plt.store(ref.at[self.row, *at, dims], out.astype(ref.dtype), mask=both)

    def with_sink(self, sinks: Array | None, best: Array) -> tuple[Array, Array | None]:
        """The largest of scores and sinks; where splits are combined, sinks come in there."""
        if sinks is None or len(self.results) == 3:
            return best, None
        return jnp.maximum(best, sinks), sinks


def attend_by_dot(program: Program) -> None:
    """All query heads of the group as the rows of one product."""
    target = program.target
    rows = jnp.arange(max(SMALLEST, _power_of_two(program.n_heads)), dtype=jnp.int32)
    # Rows of padding repeat the last head, so that they stay finite.
    head = jnp.minimum(program.first_head + rows, program.end_head - 1)
    slopes, sinks = program.of_heads("slopes", head), program.of_heads("sinks", head)
    slopes = None if slopes is None else slopes[:, None]
    dtype = program.inputs["k"].dtype
    if dtype == jnp.int8 or program.inputs["q"].dtype == jnp.float32:
        dtype = program.inputs["q"].dtype
    # Weights that have taken up the scales of 8 bits may be less than float16 holds.
    packed = program.inputs["v"].dtype == jnp.int8
    v_dtype = jnp.bfloat16 if packed and dtype == jnp.float16 else dtype
    wide = jnp.float32(0)  # until it begins

    def begin():
        nonlocal wide
        new_k, new_v, fresh = program.new()
        wide = program.prepare("q", head[:, None])
        score, factor = program.exponents(jnp.sum(wide * new_k[None, :], axis=1), None, None)
        best = jnp.where(fresh, score * factor, jnp.float32(FLOOR))
        total = jnp.where(fresh, jnp.ones_like(best), jnp.zeros_like(best))
        return total[:, None] * new_v[None, :], best, total

    def step(tile: Tile, visible, state):
        acc, best, total = state
        products = _dot(wide.astype(dtype), tile.k.astype(dtype), transposed=True)
        if tile.k_scale is not None:
            products = products * tile.k_scale[None, :]
        scores, factor = program.exponents(products, slopes, tile.keys[None, :])
        visible = None if visible is None else visible[None, :]
        weights, best, shrink = weigh(scores, best, factor, visible, target)
        total = total * shrink + jnp.sum(weights, axis=1)
        if tile.v_scale is not None:
            weights = weights * tile.v_scale[None, :]
        acc = acc * shrink[:, None] + _dot(weights.astype(v_dtype), tile.v.astype(v_dtype))
        return acc, best, total

    acc, best, total = program.loop(step, begin)
    highest, sinks = program.with_sink(sinks, best)
    if sinks is not None:
        shrink = exp2(best - highest, target)
        acc, total = acc * shrink[:, None], total * shrink + exp2(sinks - highest, target)
    real = (rows < program.n_heads) & (program.first_head + rows < program.end_head)
    program.finish(program.first_head + rows, real, acc, highest, total)


def attend_by_lanes(program: Program, abreast: int) -> None:
    """The query heads of the group one by one, over tiles of keys and values read once.

    A tile is `[n, abreast, H]`: the lanes that hold a key's elements hold those of every key at its
    place in the other rows of the tile, and each of the `abreast` places has a softmax of its own.
    So nothing but a key's products is summed over lanes before the end, and no warp waits for
    another.
    """
    target = program.target
    index = [program.first_head + i for i in range(program.n_heads)]
    slopes = [program.of_heads("slopes", head) for head in index]
    queries: list[Array] = []

    def begin():
        new_k, new_v, fresh = program.new()
        here = (jnp.arange(abreast, dtype=jnp.int32) == 0) & fresh
        total = jnp.where(here, 1.0, 0.0)
        states = []
        for head in index:
            q = program.prepare("q", head)
            queries.append(q[None, None, :])
            score, factor = program.exponents(jnp.sum(q * new_k), None, None)
            best = jnp.where(here, score * factor, jnp.float32(FLOOR))
            states.append((total[:, None] * new_v[None, :], best, total))
        return tuple(states)

    def step(tile: Tile, visible, states):
        k, v = tile.k.astype(jnp.float32), tile.v.astype(jnp.float32)
        after = []
        for q, slope, (acc, best, total) in zip(queries, slopes, states, strict=True):
            products = jnp.sum(k * q, axis=2)
            if tile.k_scale is not None:
                products = products * tile.k_scale
            scores, factor = program.exponents(products, slope, tile.keys)
            weights, best, shrink = weigh(scores, best, factor, visible, target, axis=0)
            total = total * shrink + jnp.sum(weights, axis=0)
            if tile.v_scale is not None:
                weights = weights * tile.v_scale
            acc = acc * shrink[:, None] + jnp.sum(weights[..., None] * v, axis=0)
            after.append((acc, best, total))
        return tuple(after)

    states = program.loop(step, begin)
    for head, (acc, best, total) in zip(index, states, strict=True):
        highest, sink = program.with_sink(program.of_heads("sinks", head), jnp.max(best))
        shrink = exp2(best - highest, target)
        acc, total = jnp.sum(acc * shrink[:, None], axis=0), jnp.sum(total * shrink)
        if sink is not None:
            total += exp2(sink - highest, target)
        program.finish(head, None, acc, highest, total)


def _dot(a: Array, b: Array, *, transposed: bool = False) -> Array:
    """`a @ b` in f32, or `a @ b.T`."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return plt.dot(a, b, trans_b=transposed, precision=precision)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
