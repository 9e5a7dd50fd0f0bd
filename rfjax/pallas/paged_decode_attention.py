"""One decode step's attention over pages as one kernel: norms, rotation, write and attention.

As `rfjax.pallas.decode_attention`, with keys and values found through a page table: a program
serves the query heads of one kv head of one row, long contexts are split over programs, and the new
key and value go into their page and straight into the sum.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from rfjax.ops.mask import Mask
from rfjax.ops.scores import NO_TERMS, ScoreTerms
from rfjax.pallas.combine_attention import combine_attention
from rfjax.pallas.decode_heads import Heads, prepare_heads
from rfjax.pallas.decode_span import decode_span
from rfjax.pallas.page_tile import PagedRow, declines_size
from rfjax.pallas.page_write import write_head
from rfjax.pallas.paged_decode_config import (
    SMALLEST,
    Config,
    heads_of_program,
    heuristic,
    keys_abreast,
    padded_head,
)
from rfjax.pallas.paged_decode_forms import Program, attend_by_dot, attend_by_lanes
from rfjax.pallas.split_blocks import over_blocks
from rfjax.pallas.target import Target
from rfjax.pallas.tile import load_or_zero
from rfjax.typing import Array, Float, Int

_LARGEST_HEAD = 256

_FLOATS = (jnp.bfloat16, jnp.float16, jnp.float32)

Pages = tuple[Array, Array, Array | None, Array | None]
"""Keys and values [P, K, C, H], and of int8 ones their scales, f32 [P, K, C]."""


_PAGES = ("k", "v", "k_scale", "v_scale")


def declines(q: Array, pages: Pages, half: int, scale: float) -> str | None:
    """Why the kernel does not take these arguments, or None if it does.

    Args:
        half: half the number of elements of a head that are rotated.
    """
    k_pages, v_pages, *scales = pages
    page_size, head_dim = k_pages.shape[2:]
    if k_pages.dtype != v_pages.dtype:
        return f"keys and values have different dtypes ({k_pages.dtype}, {v_pages.dtype})"
    if q.dtype not in _FLOATS:
        return f"its queries are bfloat16, float16 or float32, not {q.dtype}"
    if k_pages.dtype not in (*_FLOATS, jnp.int8):
        return f"its pages are bfloat16, float16, float32 or int8, not {k_pages.dtype}"
    if any((scale is not None) != (k_pages.dtype == jnp.int8) for scale in scales):
        return "int8 pages have scales, and others have none"
    if head_dim > _LARGEST_HEAD:
        return f"its largest head dim is {_LARGEST_HEAD}, got {head_dim}"
    if page_size & (page_size - 1) or page_size < SMALLEST:
        return f"a page must have a power of two of tokens from {SMALLEST}, got {page_size}"
    if (reason := declines_size(k_pages)) is not None:
        return reason
    if 2 * half > head_dim:
        return f"{2 * half} elements are rotated of heads of {head_dim}"
    if scale <= 0:
        return f"it takes positive scales only, got {scale}"
    return None


# Jitted by itself, so that layers alike are traced and lowered once.
@functools.partial(jax.jit, static_argnames=("pairing", "mask", "scale", "eps", "target", "config"))
def paged_decode_attention(
    q: Float[Array, "B Nq H"],
    k: Float[Array, "B Kk H"] | None,
    v: Float[Array, "B Kv H"] | None,
    pages: Pages,
    table: Int[Array, "B M"],
    cos: Float[Array, "B half"],
    sin: Float[Array, "B half"],
    *,
    positions: Int[Array, " B"],
    pairing: Literal["interleaved", "half"],
    mask: Mask,
    scale: float,
    eps: float,
    q_norm: Float[Array, " H"] | None = None,
    k_norm: Float[Array, " H"] | None = None,
    q_multiplier: Float[Array, " B"] | None = None,
    terms: ScoreTerms = NO_TERMS,
    target: Target,
    config: Config | None = None,
) -> tuple[Float[Array, "B N H"], Pages]:
    """Attention of one new token a row over its pages, which take the token's key and value.

    What `rfjax.ops.paged_decode_attention.paged_decode_attention` computes, without rounding
    between the norm, the rotation and the multiplier. The pages are updated in place where the
    caller has donated them. Rows at position -1 write nothing and get zeros.

    Args:
        q: queries as projected; with `k` and `v` None, queries, keys and values of N + 2K heads.
        pages: keys and values before the tokens; anything behind windows, from the positions on,
            and in pages of nobody.
        table: of each row; every entry is a page.
        positions: of the new tokens.
        cos, sin: of those positions, for `2 * half` elements of a head.
        q_norm, k_norm: weights of the RMS norm of each head before rotation.
        q_multiplier: of each row's rotated queries, f32.
        terms: of the scores.
        target: whose instructions to use; "interpret" runs on the CPU.
        config: how to cut the work; None takes the heuristic's.
    """
    k_pages = pages[0]
    n_kv, page_size, head_dim = k_pages.shape[1:]
    batch, capacity = table.shape[0], table.shape[1] * page_size
    fused = k is None or v is None
    n_heads = q.shape[1] - 2 * n_kv if fused else q.shape[1]
    if config is None:
        dtypes = jnp.dtype(q.dtype), jnp.dtype(k_pages.dtype)
        config = heuristic(batch, (n_heads, n_kv), capacity, head_dim, dtypes, target)
    operands = {
        "positions": positions,
        "table": table,
        "cos": cos,
        "sin": sin,
        "q_norm": q_norm,
        "k_norm": k_norm,
        "q_multiplier": q_multiplier,
        "sinks": terms.sinks,
        "slopes": terms.slopes,
        "q": q,
        "new_k": q if fused else k,
        "new_v": q if fused else v,
        **dict(zip(_PAGES, pages, strict=True)),
    }
    operands = {name: array for name, array in operands.items() if array is not None}
    group = n_heads // n_kv
    served = heads_of_program(config, group)
    names = tuple(operands)
    written = [name for name in _PAGES if name in operands]
    results = [jax.ShapeDtypeStruct((batch, n_heads, head_dim), q.dtype)]
    if config.splits > 1:
        sums = jax.ShapeDtypeStruct((batch, n_heads, config.splits), jnp.float32)
        results = [jax.ShapeDtypeStruct((*sums.shape, head_dim), jnp.float32), sums, sums]
    kernel = functools.partial(
        _kernel,
        names=names,
        n_results=len(results),
        first=(n_heads, n_heads + n_kv) if fused else (0, 0),
        heads=Heads(n_heads, n_kv, pairing, eps),
        served=served,
        config=config,
        mask=mask,
        scale=scale,
        softcap=terms.softcap,
        target=target,
    )
    outputs = pl.pallas_call(
        kernel,
        out_shape=[
            *results,
            *(jax.ShapeDtypeStruct(operands[n].shape, operands[n].dtype) for n in written),
        ],
        grid=(n_kv * pl.cdiv(group, served), config.splits, batch),
        input_output_aliases={names.index(n): len(results) + i for i, n in enumerate(written)},
        compiler_params=plt.CompilerParams(
            num_warps=config.num_warps, num_stages=config.num_stages if config.dot else 1
        ),
        interpret=target == "interpret",
        name="paged_decode_attention",
    )(*operands.values())
    after = dict(zip(written, outputs[len(results) :], strict=True))
    pages = (after["k"], after["v"], after.get("k_scale"), after.get("v_scale"))
    if config.splits == 1:
        return outputs[0], pages
    acc, best, total = outputs[: len(results)]
    out = combine_attention(
        positions,
        acc,
        best,
        total,
        terms.sinks,
        dtype=q.dtype,
        mask=mask,
        capacity=capacity,
        block_k=config.block_k,
        target=target,
    )
    return out, pages


def _kernel(
    *refs,
    names,
    n_results,
    first,
    heads: Heads,
    served: int,
    config: Config,
    mask,
    scale,
    softcap,
    target: Target,
):
    inputs = dict(zip(names, refs, strict=False))
    results = refs[len(names) : len(names) + n_results]
    written = [name for name in _PAGES if name in inputs]
    outputs = dict(zip(written, refs[len(names) + n_results :], strict=True))
    _, _, page_size, head_dim = inputs["k"].shape
    capacity = inputs["table"].shape[1] * page_size
    head, split, row = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    parts = pl.cdiv(heads.group, served)
    kv_head, part = jax.lax.div(head, parts), jax.lax.rem(head, parts)
    position = inputs["positions"][row]
    dims = jnp.arange(padded_head(head_dim), dtype=jnp.int32)

    def body():
        abreast = keys_abreast(head_dim, inputs["k"].dtype, config.num_warps, target)
        abreast = min(abreast, config.block_k)
        shape = (config.block_k,) if config.dot else (config.block_k // abreast, abreast)
        keys = PagedRow(inputs, row, kv_head, dims, shape)

        prepare = functools.partial(
            prepare_heads, {**inputs, "k": inputs["new_k"]}, row, dims, head_dim, heads
        )

        def new():
            fresh = (split == 0) & (position >= 0) & (position < capacity)
            writes = fresh & (part == 0)
            slot = jnp.clip(position, 0, capacity - 1)
            at = (keys.page_of(slot), kv_head, slot & (page_size - 1))
            x = prepare("k", first[0] + kv_head)
            value = inputs["new_v"].at[row, first[1] + kv_head, dims]
            value = load_or_zero(value, dims < head_dim).astype(jnp.float32)
            both = []
            for name, head in (("k", x), ("v", value)):
                into = outputs[name], outputs.get(f"{name}_scale")
                both.append(write_head(into, at, head, dims, writes, target))
            return *both, fresh

        program = Program(
            inputs=inputs,
            results=results,
            row=row,
            split=split,
            first_head=kv_head * heads.group + part * served,
            n_heads=served,
            end_head=(kv_head + 1) * heads.group,
            dims=dims,
            prepare=prepare,
            new=new,
            loop=functools.partial(
                over_blocks,
                row=keys,
                mask=mask,
                position=position,
                capacity=capacity,
                split=(split, config.splits),
                ahead=not config.dot and config.num_stages > 1,
                peel=config.peel,
            ),
            scale=scale,
            softcap=softcap,
            target=target,
        )
        if config.dot:
            attend_by_dot(program)
        else:
            attend_by_lanes(program, abreast)

    if config.splits == 1:
        body()
    else:
        *_, blocks = decode_span(mask, position, capacity, config.block_k)
        pl.when((split == 0) | (split < blocks))(body)
