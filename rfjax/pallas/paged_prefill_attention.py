"""Attention of many queries a row over keys and values in pages, on the matrix units.

As `rfjax.pallas.prefill_attention`, with keys and values found through a page table. The rows of a
program's block are tokens times the query heads of one kv head: these read the same keys, and a
block spans fewer positions that way, so that less is computed in vain at the diagonal, and few
tokens fill a block as well. Page ids come one block ahead of the keys they find.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from rfjax.ops.mask import Mask
from rfjax.ops.scores import NO_TERMS, ScoreTerms
from rfjax.pallas.exponential import LOG2_E, exp2
from rfjax.pallas.key_span import key_span
from rfjax.pallas.online_softmax import FLOOR, weigh
from rfjax.pallas.page_tile import PagedRow, declines_size
from rfjax.pallas.paged_prefill_config import SMALLEST, Config, head_parts, heuristic
from rfjax.pallas.softcap import softcapped
from rfjax.pallas.target import Target
from rfjax.pallas.tile import inside, load_or_zero
from rfjax.typing import Array, Float, Int

_LARGEST_HEAD = 256

_FLOATS = (jnp.bfloat16, jnp.float16, jnp.float32)


def declines(q: Array, k_pages: Array, v_pages: Array, scale: float, target: Target) -> str | None:
    """Why the kernel does not take these arguments, or None if it does."""
    page_size, head_dim = k_pages.shape[2:]
    if k_pages.dtype != v_pages.dtype:
        return f"keys and values have different dtypes ({k_pages.dtype}, {v_pages.dtype})"
    if q.dtype not in _FLOATS:
        return f"its queries are bfloat16, float16 or float32, not {q.dtype}"
    if k_pages.dtype not in (*_FLOATS, jnp.int8):
        return f"its pages are bfloat16, float16, float32 or int8, not {k_pages.dtype}"
    if q.dtype == jnp.float32 and target in ("cuda", "gfx11"):
        return "the matrix units of this device do not multiply f32 in full precision"
    if head_dim > _LARGEST_HEAD:
        return f"its largest head dim is {_LARGEST_HEAD}, got {head_dim}"
    if page_size & (page_size - 1) or page_size < SMALLEST:
        return f"a page must have a power of two of tokens from {SMALLEST}, got {page_size}"
    if (reason := declines_size(k_pages)) is not None:
        return reason
    if scale <= 0:
        return f"it takes positive scales only, got {scale}"
    return None


# Jitted by itself, so that layers alike are traced and lowered once.
@functools.partial(jax.jit, static_argnames=("mask", "scale", "target", "config"))
def paged_prefill_attention(
    q: Float[Array, "B L N H"],
    k_pages: Array,
    v_pages: Array,
    table: Int[Array, "B M"],
    *,
    query_positions: Int[Array, "B L"],
    key_lengths: Int[Array, " B"],
    mask: Mask,
    scale: float,
    terms: ScoreTerms = NO_TERMS,
    k_scale: Float[Array, "P K C"] | None = None,
    v_scale: Float[Array, "P K C"] | None = None,
    target: Target,
    config: Config | None = None,
) -> Float[Array, "B L N H"]:
    """Softmax attention as `rfjax.ops.paged_attention.paged_attention` defines it.

    Keys and values are converted to the dtype of `q`, in which they are multiplied (f32 in full
    precision); products accumulate in f32, softmax is f32. A query that sees no key gets zeros.
    Keys and values that no query of a program sees may be anything, NaN included.

    Args:
        k_pages, v_pages: `[P, K, C, H]`, in a floating dtype or int8.
        table: of each row; every entry is a page.
        query_positions: absolute positions, in any order; -1 marks padding.
        terms: of the scores.
        k_scale, v_scale: of int8 pages, for each head and token.
        target: whose instructions to use; "interpret" runs on the CPU.
        config: how to cut the work; None takes the heuristic's.
    """
    batch, length, n_heads, head_dim = q.shape
    n_kv, page_size = k_pages.shape[1:3]
    group = n_heads // n_kv
    if config is None:
        capacity, dtypes = table.shape[1] * page_size, (q.dtype, k_pages.dtype)
        config = heuristic(batch, length, (n_heads, n_kv), capacity, head_dim, dtypes, target)
    operands = {
        "positions": query_positions,
        "lengths": key_lengths,
        "table": table,
        "q": q,
        "k": k_pages,
        "v": v_pages,
        "k_scale": k_scale,
        "v_scale": v_scale,
        "sinks": terms.sinks,
        "slopes": terms.slopes,
    }
    operands = {name: array for name, array in operands.items() if array is not None}
    kernel = functools.partial(
        _kernel,
        names=tuple(operands),
        config=config,
        mask=mask,
        scale=scale,
        softcap=terms.softcap,
        target=target,
    )
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        # Programs start in the order of the first index: those that read the same keys together.
        grid=(n_kv, pl.cdiv(length * group, config.block_q) * batch),
        compiler_params=plt.CompilerParams(
            num_warps=config.num_warps, num_stages=config.num_stages
        ),
        interpret=target == "interpret",
        name="paged_prefill_attention",
    )(*operands.values())


def _kernel(*refs, names, config: Config, mask: Mask, scale: float, softcap: float, target: Target):
    *inputs, out_ref = refs
    inputs = dict(zip(names, inputs, strict=True))
    _, length, n_heads, head_dim = out_ref.shape
    kv_head, page_size = pl.program_id(0), inputs["k"].shape[2]
    group = n_heads // inputs["k"].shape[1]
    block_k = config.block_k

    # The last pieces of a sequence, which have the most keys, come first.
    n_blocks = pl.cdiv(length * group, config.block_q)
    index = pl.num_programs(1) - 1 - pl.program_id(1)
    row, block = jax.lax.div(index, n_blocks), jax.lax.rem(index, n_blocks)
    rows = block * config.block_q + jnp.arange(config.block_q, dtype=jnp.int32)
    tokens = jax.lax.div(rows, group)
    heads = kv_head * group + jax.lax.rem(rows, group)
    real = rows < length * group
    positions = plt.load(inputs["positions"].at[row, tokens], mask=real, other=-1)
    capacity = inputs["table"].shape[1] * page_size
    span = key_span(mask, positions, jnp.minimum(inputs["lengths"][row], capacity), block_k)
    keys_of_row = PagedRow(inputs, row, kv_head, _dims(head_dim)[0], (block_k,))

    queries = []
    for dims in _dims(head_dim):
        exists = inside(rows, length * group, dims, head_dim)
        at = inputs["q"].at[row, tokens[:, None], heads[:, None], dims[None, :]]
        queries.append(load_or_zero(at, exists))

    slopes = None
    if "slopes" in inputs:
        slopes = plt.load(inputs["slopes"].at[heads], mask=real, other=0.0) * LOG2_E

    def to_exponents(scores, keys, k_scale):
        """Scores, and what they are still to be multiplied by to be exponents of two."""
        if k_scale is not None:
            scores = scores * k_scale[None, :]
        factor = scale
        if softcap:
            scores, factor = softcapped(scores, scale, softcap, target), 1.0
        factor *= LOG2_E
        if slopes is not None:
            distance = (keys[None, :] - positions[:, None]).astype(jnp.float32)
            scores, factor = scores * factor + slopes[:, None] * distance, 1.0
        return scores, factor

    def step(i, carry):
        acc, best, total, pages = carry
        tile = functools.partial(_load_tile, inputs, kv_head, pages, i, block_k)
        keys = i * block_k + jnp.arange(block_k, dtype=jnp.int32)
        k, k_scale = tile("k", None)
        products = [
            _dot(q, part.astype(q.dtype), trans_b=True) for q, part in zip(queries, k, strict=True)
        ]
        scores = functools.reduce(jnp.add, products)
        scores, factor = to_exponents(scores, keys, k_scale)
        # A branch, no loop of its own for blocks seen in full: so the pipeline of loads goes on.
        scores = jax.lax.cond(
            (i < span.whole) | (i >= span.full),
            lambda scores: jnp.where(span.sees(keys), scores, -jnp.inf),  # weighs 0
            lambda scores: scores,
            scores,
        )
        weights, best, shrink = weigh(scores, best, factor, None, target)
        total = total * shrink + jnp.sum(weights, axis=1)
        # Of 8 bits the values are multiplied in bfloat16: weights that have taken up their scales
        # may be less than float16 holds.
        v, v_scale = tile("v", (keys >= span.begin) & (keys < span.end))
        dtype = queries[0].dtype
        if v_scale is not None:
            weights = weights * v_scale[None, :]
            dtype = jnp.bfloat16 if dtype == jnp.float16 else dtype
        weights = weights.astype(dtype)
        acc = tuple(
            part * shrink[:, None] + _dot(weights, values.astype(dtype))
            for part, values in zip(acc, v, strict=True)
        )
        return acc, best, total, keys_of_row.find(i + 1)

    best = jnp.full((config.block_q,), FLOOR, jnp.float32)
    total = jnp.zeros((config.block_q,), jnp.float32)
    if "sinks" in inputs:
        sinks = plt.load(inputs["sinks"].at[heads], mask=real, other=0.0) * LOG2_E
        best = jnp.maximum(sinks, FLOOR)
        total = exp2(sinks - best, target)
    acc = tuple(jnp.zeros((config.block_q, dims.shape[0]), jnp.float32) for dims in _dims(head_dim))
    carry = (acc, best, total, keys_of_row.find(span.first))
    acc, _, total, _ = jax.lax.fori_loop(span.first, span.blocks, step, carry)

    # By the mask, not by the scores: NaN must stay NaN, and a maximum may drop it.
    attends = span.any_sees(positions)
    norm = 1.0 / jnp.where(attends, total, 1.0)
    for dims, part in zip(_dims(head_dim), acc, strict=True):
        out = jnp.where(attends[:, None], part * norm[:, None], 0.0).astype(out_ref.dtype)
        at = out_ref.at[row, tokens[:, None], heads[:, None], dims[None, :]]
        plt.store(at, out, mask=inside(rows, length * group, dims, head_dim))


def _dims(head_dim: int) -> list[Array]:
    """Elements of a head, by the parts that it is computed in."""
    return [start + jnp.arange(size, dtype=jnp.int32) for start, size in head_parts(head_dim)]


def _load_tile(inputs, kv_head, pages, block, block_k: int, name: str, seen):
    """Keys or values `[block_k, H]` of a block, in the parts of a head, and their scales.

    Args:
        pages: of `PagedRow.find`.
        seen: Bool [block_k], those to be read instead of zeros; None reads all.
    """
    ref, scale_ref = inputs[name], inputs.get(f"{name}_scale")
    _, _, page_size, head_dim = ref.shape
    places = jnp.arange(block_k, dtype=jnp.int32)
    if block_k < page_size:
        places += (block * block_k) & (page_size - 1)
    elif block_k > page_size:
        places &= page_size - 1
    scale = None
    if scale_ref is not None:
        scale = load_or_zero(scale_ref.at[pages, kv_head, places], seen)
        seen = None  # any byte is a number, and zero times it is zero
    pages = pages[:, None] if pages.ndim else pages
    parts = []
    for dims in _dims(head_dim):
        exists = inside(places, None, dims, head_dim)
        if seen is not None:
            wide = jnp.broadcast_to(seen[:, None], (block_k, dims.shape[0]))
            exists = wide if exists is None else exists & wide
        at = ref.at[pages, kv_head, places[:, None], dims[None, :]]
        parts.append(load_or_zero(at, exists))
    return parts, scale


def _dot(a, b, trans_b: bool = False):
    """`a @ b`, or `a @ b.T`, in f32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return plt.dot(a, b, trans_b=trans_b, precision=precision)
