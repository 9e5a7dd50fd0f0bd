"""One decode step's attention as one kernel: norms, rotation, cache write and attention.

A program serves the query heads of one kv head of one row, so that keys and values are read once.
Long contexts are split over programs ("Flash-Decoding", Dao et al., 2023), whose results a second,
small kernel combines. Split i of n takes the blocks of keys i, i + n, i + 2n, ...: capacity is
static and length is not, and so all splits have work whatever the length. The new key and value
never pass through memory on their way into the sum: split 0 starts its softmax with them.
"""

import dataclasses
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
from rfjax.pallas.exponential import LOG2_E
from rfjax.pallas.online_softmax import FLOOR, weigh
from rfjax.pallas.target import Target
from rfjax.pallas.tile import inside, load_or_zero
from rfjax.typing import Array, Float, Int

_SMALLEST = 16
"""Least size of a block that the matrix units take."""

_LARGEST_HEAD = 256

_LARGEST_UNROLLED = 8
"""Query heads of a group that are handled one by one without the matrix units."""

_UNSPLIT_KEYS = 256
"""Capacity up to which one program is faster than several and their combination."""

_PROGRAMS = 512
"""Programs that keep a large GPU busy: about four for each of its processors."""

MAX_SPLITS = 64
"""Most programs that share a row's context."""


@dataclasses.dataclass(frozen=True)
class Config:
    """How the work is cut: powers of two.

    `block_k` keys a step; `splits` programs for one row's context; `dot` uses the matrix units,
    with the query heads of a group padded to 16 rows, instead of multiplying and adding.
    """

    block_k: int
    splits: int
    num_warps: int
    num_stages: int
    dot: bool


def heuristic(
    batch: int,
    heads: tuple[int, int],
    capacity: int,
    head_dim: int,
    dtype: jnp.dtype,
    target: Target,
) -> Config:
    """A setting for any shape; `heads` counts query and kv heads, `dtype` is the cache's."""
    n_heads, n_kv = heads
    group = n_heads // n_kv
    wide = jnp.dtype(dtype) == jnp.float32  # most matrix units do not multiply f32
    padded = pl.next_power_of_2(max(head_dim, _SMALLEST))
    dot = group > (_LARGEST_UNROLLED if wide or target == "gfx11" else 2)
    block_k, warps = 64, 4
    if target == "gfx11":  # operands take twice the registers there, of which there are 256
        block_k, warps = (16 if dot or wide or padded > 128 else 32), 8
    elif wide or padded > 128:
        block_k = 32
    block_k = min(block_k, capacity)
    splits = 1
    if capacity > _UNSPLIT_KEYS:
        wanted = max(1, _PROGRAMS // (batch * n_kv))
        splits = min(1 << (wanted.bit_length() - 1), capacity // block_k, MAX_SPLITS)
    return Config(block_k, splits, warps, 2 if target == "cuda" and dot else 1, dot)


def tuning_space(
    batch: int,
    heads: tuple[int, int],
    capacity: int,
    head_dim: int,
    dtype: jnp.dtype,
    target: Target,
) -> tuple[Config, ...]:
    """Settings worth timing, the heuristic's first."""
    first = heuristic(batch, heads, capacity, head_dim, dtype, target)
    others = [
        Config(block_k, splits, warps, stages, dot)
        for block_k in (16, 32, 64, 128)
        for splits in (1, 2, 4, 8, 16, 32, 64)
        for warps in (4, 8)
        for dot in (True, False)
        for stages in ((1, 2, 3) if dot and target == "cuda" else (1,))
        if block_k * splits <= capacity and (dot or heads[0] // heads[1] <= _LARGEST_UNROLLED)
    ]
    return (first, *(config for config in others if config != first))


def declines(
    q: Array, k_cache: Array, v_cache: Array, half: int, scale: float, terms: ScoreTerms = NO_TERMS
) -> str | None:
    """Why the kernel does not take these arguments, or None if it does."""
    _, _, capacity, head_dim = k_cache.shape
    if k_cache.dtype != v_cache.dtype:
        return f"keys and values have different dtypes ({k_cache.dtype}, {v_cache.dtype})"
    known = (jnp.bfloat16, jnp.float16, jnp.float32)
    if q.dtype not in known or k_cache.dtype not in known:
        return f"its dtypes are bfloat16, float16 and float32, not {q.dtype} and {k_cache.dtype}"
    if head_dim > _LARGEST_HEAD:
        return f"its largest head dim is {_LARGEST_HEAD}, got {head_dim}"
    if capacity & (capacity - 1) or capacity < _SMALLEST:
        return f"the cache's capacity must be a power of two from {_SMALLEST}, got {capacity}"
    if 2 * half > head_dim:
        return f"{2 * half} elements are rotated of heads of {head_dim}"
    if scale <= 0:
        return f"it takes positive scales only, got {scale}"
    for name, there in (
        ("a soft cap", bool(terms.softcap)),
        ("ALiBi's slopes", terms.slopes is not None),
        ("sinks", terms.sinks is not None),
    ):
        if there:
            return f"it scales and masks scores, and does not take {name}"
    return None


# Jitted by itself, so that layers alike are traced and lowered once.
@functools.partial(jax.jit, static_argnames=("pairing", "mask", "scale", "eps", "target", "config"))
def decode_attention(
    q: Float[Array, "B Nq H"],
    k: Float[Array, "B Kk H"] | None,
    v: Float[Array, "B Kv H"] | None,
    k_cache: Float[Array, "B K S H"],
    v_cache: Float[Array, "B K H S"],
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
    target: Target,
    config: Config | None = None,
) -> tuple[Float[Array, "B N H"], Float[Array, "B K S H"], Float[Array, "B K H S"]]:
    """Attention of one new token a row over its cache, which takes the token's key and value.

    What `rfjax.ops.decode_attention.decode_attention` computes, without rounding between the
    norm, the rotation and the multiplier. The caches are updated in place where the caller has
    donated them. Rows at position -1 write nothing and get zeros.

    Args:
        q: queries as projected; with `k` and `v` None, queries, keys and values of N + 2K heads.
        positions: of the new tokens; their rows' caches hold the keys before.
        cos, sin: of those positions, for `2 * half` elements of a head.
        q_norm, k_norm: weights of the RMS norm of each head before rotation.
        q_multiplier: of each row's rotated queries, f32.
        target: whose instructions to use; "interpret" runs on the CPU.
        config: how to cut the work; None takes the heuristic's.
    """
    batch, n_kv, capacity, head_dim = k_cache.shape
    fused = k is None or v is None
    n_heads = q.shape[1] - 2 * n_kv if fused else q.shape[1]
    heads = Heads(n_heads, n_kv, pairing, eps)
    if config is None:
        config = heuristic(batch, (n_heads, n_kv), capacity, head_dim, k_cache.dtype, target)
    operands = {
        "positions": positions,
        "cos": cos,
        "sin": sin,
        "q_norm": q_norm,
        "k_norm": k_norm,
        "q_multiplier": q_multiplier,
        "q": q,
        "k": q if fused else k,
        "v": q if fused else v,
        "k_cache": k_cache,
        "v_cache": v_cache,
    }
    operands = {name: array for name, array in operands.items() if array is not None}
    names = tuple(operands)
    out = jax.ShapeDtypeStruct((batch, n_heads, head_dim), q.dtype)
    outputs = [out]
    if config.splits > 1:
        sums = jax.ShapeDtypeStruct((batch, n_heads, config.splits), jnp.float32)
        outputs = [jax.ShapeDtypeStruct((*sums.shape, head_dim), jnp.float32), sums, sums]
    n_results = len(outputs)
    params = plt.CompilerParams(num_warps=config.num_warps, num_stages=config.num_stages)
    kernel = functools.partial(
        _kernel,
        names=names,
        first_k=n_heads if fused else 0,
        first_v=n_heads + n_kv if fused else 0,
        heads=heads,
        config=config,
        mask=mask,
        scale=scale,
        target=target,
    )
    *results, k_cache, v_cache = pl.pallas_call(
        kernel,
        out_shape=[
            *outputs,
            jax.ShapeDtypeStruct(k_cache.shape, k_cache.dtype),
            jax.ShapeDtypeStruct(v_cache.shape, v_cache.dtype),
        ],
        grid=(n_kv, config.splits, batch),
        input_output_aliases={
            names.index("k_cache"): n_results,
            names.index("v_cache"): n_results + 1,
        },
        compiler_params=params,
        interpret=target == "interpret",
        name="decode_attention",
    )(*operands.values())
    if config.splits == 1:
        return results[0], k_cache, v_cache
    attended = combine_attention(
        positions,
        *results,
        dtype=q.dtype,
        mask=mask,
        capacity=capacity,
        block_k=config.block_k,
        target=target,
    )
    return attended, k_cache, v_cache


def _kernel(*refs, names, first_k, first_v, heads, config, mask, scale, target):
    inputs = dict(zip(names, refs, strict=False))
    *result_refs, k_out, v_out = refs[len(names) :]
    _, _, capacity, head_dim = inputs["k_cache"].shape
    kv_head, split, row = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    position = inputs["positions"][row]
    first, cached, first_block, blocks = decode_span(mask, position, capacity, config.block_k)
    dims = jnp.arange(pl.next_power_of_2(max(head_dim, _SMALLEST)), dtype=jnp.int32)
    real = dims < head_dim

    def body():
        load = functools.partial(_load_block, inputs, row, kv_head, dims, config.block_k)
        # Under way before anything else is, so that the rest is done while waiting for it. A block
        # at the end of the cache may be there in vain: all of it is masked then.
        last = capacity // config.block_k - 1
        tile = load(jnp.minimum(first_block + split, last) if mask.size else split)
        prepare = functools.partial(prepare_heads, inputs, row, dims, head_dim, heads)
        k_dtype = k_out.dtype
        new_k = prepare("k", first_k + kv_head).astype(k_dtype)
        new_v = load_or_zero(inputs["v"].at[row, first_v + kv_head, dims], real).astype(k_dtype)
        fresh = (split == 0) & (position >= 0) & (position < capacity)
        slot = jnp.clip(position, 0, capacity - 1)
        plt.store(k_out.at[row, kv_head, slot, dims], new_k, mask=real & fresh)
        plt.store(v_out.at[row, kv_head, dims, slot], new_v, mask=real & fresh)

        attend = _attend_by_dot if config.dot else _attend_by_sums
        attend(
            prepare,
            (new_k.astype(jnp.float32), new_v.astype(jnp.float32), fresh),
            functools.partial(
                _over_blocks,
                load=load,
                tile=tile,
                split=split,
                span=(first, cached, first_block, blocks),
                capacity=capacity,
                config=config,
                sized=mask.size > 0,
            ),
            result_refs,
            at=(row, kv_head, split),
            dims=dims,
            heads=heads,
            config=config,
            scale=scale * LOG2_E,
            target=target,
        )

    if config.splits == 1:
        body()
    else:
        pl.when((split == 0) | (split < blocks))(body)


def _load_block(inputs, row, kv_head, dims, block_k: int, block):
    """Keys `[block_k, H]` and values `[H, block_k]` of one block, and the keys' positions."""
    keys = block * block_k + jnp.arange(block_k, dtype=jnp.int32)
    k_ref, v_ref = inputs["k_cache"], inputs["v_cache"]
    head_dim = k_ref.shape[3]
    k = load_or_zero(
        k_ref.at[row, kv_head, keys[:, None], dims[None, :]], inside(keys, None, dims, head_dim)
    )
    v = load_or_zero(
        v_ref.at[row, kv_head, dims[:, None], keys[None, :]], inside(dims, head_dim, keys, None)
    )
    return k, v, keys


def _over_blocks(step, carry, *, load, tile, split, span, capacity, config: Config, sized: bool):
    """Run `step(tile, visible, carry)` over a split's blocks, the first of which is `tile`.

    `visible` tells which of the block's keys are, or is None where all are. The last block holds
    slots that were never written, or whatever an earlier sequence left there.
    """
    first, cached, first_block, blocks = span
    n_splits = config.splits

    def turns(n_blocks):
        """This split's share of that many blocks."""
        return jax.lax.div(jnp.maximum(n_blocks - split, 0) + (n_splits - 1), n_splits)

    def check(tile, carry):
        keys = tile[2]
        visible = keys < cached
        if sized:
            visible &= keys >= first
        return step(tile, visible, carry)

    def checked(i, carry):
        return check(load(first_block + split + i * n_splits), carry)

    def unchecked(i, carry):
        return step(load(first_block + split + i * n_splits), None, carry)

    carry = check(tile, carry)
    if n_splits * config.block_k == capacity:
        return carry  # there is no second block
    # Only a sized mask's first block, which is behind us, hides keys at its beginning: a split's
    # later blocks are visible as far as they are written.
    full = turns(jnp.maximum(jax.lax.div(cached, config.block_k) - first_block, 0))
    carry = jax.lax.fori_loop(1, full, unchecked, carry)
    return jax.lax.fori_loop(jnp.maximum(full, 1), turns(blocks), checked, carry)


def _attend_by_dot(
    prepare, new, over_blocks, result_refs, *, at, dims, heads, config, scale, target
):
    """All query heads of the group as the rows of one product."""
    row, kv_head, split = at
    new_k, new_v, fresh = new
    group = jnp.arange(max(_SMALLEST, pl.next_power_of_2(heads.group)), dtype=jnp.int32)
    # Rows of padding repeat the last head, so that they stay finite.
    wide = prepare("q", (kv_head * heads.group + jnp.minimum(group, heads.group - 1))[:, None])

    def step(tile, visible, carry):
        acc, best, total = carry
        k, v, _ = tile
        if visible is not None:
            visible = visible[None, :]
            v = jnp.where(visible, v, jnp.zeros_like(v))
        scores = _dot(wide.astype(k.dtype), k)
        weights, best, shrink = weigh(scores, best, scale, visible, target)
        acc = acc * shrink[:, None] + _dot(weights.astype(v.dtype), v)
        return acc, best, total * shrink + jnp.sum(weights, axis=1)

    score = jnp.sum(wide * new_k[None, :], axis=1) * scale
    best = jnp.where(fresh, score, jnp.float32(FLOOR))
    total = jnp.where(fresh, jnp.ones_like(best), jnp.zeros_like(best))
    acc = total[:, None] * new_v[None, :]
    acc, best, total = over_blocks(step, (acc, best, total))

    real, head = group < heads.group, kv_head * heads.group + group
    head_dim = result_refs[0].shape[-1]
    both = real[:, None] & (dims < head_dim)[None, :]
    if config.splits == 1:
        (out_ref,) = result_refs
        out = acc * (1.0 / jnp.maximum(total, 1e-30))[:, None]
        plt.store(
            out_ref.at[row, head[:, None], dims[None, :]], out.astype(out_ref.dtype), mask=both
        )
        return
    acc_ref, best_ref, total_ref = result_refs
    plt.store(acc_ref.at[row, head[:, None], split, dims[None, :]], acc, mask=both)
    plt.store(best_ref.at[row, head, split], best, mask=real)
    plt.store(total_ref.at[row, head, split], total, mask=real)


def _dot(a, b):
    """`a @ b.T` in f32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return plt.dot(a, b, trans_b=True, precision=precision)


def _attend_by_sums(
    prepare, new, over_blocks, result_refs, *, at, dims, heads, config, scale, target
):
    """The query heads of the group one by one, over tiles of keys and values read once."""
    row, kv_head, split = at
    new_k, new_v, fresh = new
    queries = [prepare("q", kv_head * heads.group + g) for g in range(heads.group)]

    def step(tile, visible, carry):
        k, v = tile[0].astype(jnp.float32), tile[1].astype(jnp.float32)
        if visible is not None:
            v = jnp.where(visible[None, :], v, 0.0)
        states = []
        for q, (acc, best, total) in zip(queries, carry, strict=True):
            scores = jnp.sum(k * q[None, :], axis=1)
            weights, best, shrink = weigh(scores, best, scale, visible, target)
            acc = acc * shrink + jnp.sum(v * weights[None, :], axis=1)
            states.append((acc, best, total * shrink + jnp.sum(weights)))
        return tuple(states)

    carry = []
    for q in queries:
        best = jnp.where(fresh, jnp.sum(q * new_k) * scale, jnp.float32(FLOOR))
        total = jnp.where(fresh, jnp.float32(1), jnp.float32(0))
        carry.append((new_v * total, best, total))
    carry = over_blocks(step, tuple(carry))

    real = dims < result_refs[0].shape[-1]
    for g, (acc, best, total) in enumerate(carry):
        head = kv_head * heads.group + g
        if config.splits == 1:
            (out_ref,) = result_refs
            out = acc * (1.0 / jnp.maximum(total, 1e-30))
            plt.store(out_ref.at[row, head, dims], out.astype(out_ref.dtype), mask=real)
        else:
            acc_ref, best_ref, total_ref = result_refs
            plt.store(acc_ref.at[row, head, split, dims], acc, mask=real)
            plt.store(best_ref.at[row, head, split], best)
            plt.store(total_ref.at[row, head, split], total)
