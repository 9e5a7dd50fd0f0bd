"""Attention of many queries a row, on the matrix units: blocks of queries over blocks of keys.

Scores stay on the chip (Dao, "FlashAttention-2", 2023): a program holds one block of queries of
one head, and visits the blocks of keys that some of its queries see. Blocks that all of them see
in full take no masking.
"""

import dataclasses
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
from rfjax.pallas.score_exponents import score_exponents
from rfjax.pallas.target import Target
from rfjax.pallas.tile import inside, load_or_zero
from rfjax.typing import Array, Float, Int

_SMALLEST = 16
"""Least size of a block that the matrix units take."""

_LARGEST_HEAD = 256

_VECTOR = 8
"""Elements of 16 bits that one instruction loads."""


@dataclasses.dataclass(frozen=True)
class Config:
    """How the work is cut.

    `block_q` queries by `block_k` keys a step, both powers of two of at least 16. `peel` takes the
    blocks without masking in a loop of their own.
    """

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int
    peel: bool = True


def heuristic(
    length: int,
    n_keys: int,
    head_dim: int,
    dtype: jnp.dtype,
    target: Target,
    *,
    sized: bool = False,
    sloped: bool = False,
) -> Config:
    """A setting for any shape; `length` queries a row, `n_keys` slots for keys.

    Masks of a size and ALiBi's slopes take registers, which AMD's largest blocks leave none of.
    """
    padded = padded_head(head_dim)
    block_q = min(128, max(_SMALLEST, pl.next_power_of_2(length)))
    block_k = min(128, max(_SMALLEST, pl.next_power_of_2(n_keys)))
    if jnp.dtype(dtype) == jnp.float32:
        if target == "gfx9":
            return Config(min(block_q, 32), min(block_k, 32), 4, 1)
        return Config(_SMALLEST, _SMALLEST, 8, 1, False)
    if target == "gfx11":  # operands take twice the registers there, of which there are 256
        if padded > 128:
            return Config(_SMALLEST, _SMALLEST, 8, 1, False)
        most = 32 if sloped and padded == 128 else 64
        return Config(min(block_q, most), min(block_k, 32), 8, 1, peel=padded < 128)
    if target == "cuda":  # within the 99 KiB of shared memory that small devices have
        if padded > 128:
            return Config(min(block_q, 64), min(block_k, 32), 8, 2)
        return Config(
            block_q, min(block_k, 64), 8 if block_q == 128 else 4, 2 if padded > 64 else 3
        )
    if padded > 128:
        return Config(min(block_q, 64), min(block_k, 32), 4, 1)
    return Config(block_q, min(block_k, 32 if sized or sloped else 64), 8, 1)


def tuning_space(
    length: int, n_keys: int, head_dim: int, dtype: jnp.dtype, target: Target
) -> tuple[Config, ...]:
    """Settings worth timing, the heuristic's first."""
    first = heuristic(length, n_keys, head_dim, dtype, target)
    if jnp.dtype(dtype) == jnp.float32:
        return (first,)
    others = [
        Config(block_q, block_k, warps, stages, peel)
        for block_q in (64, 128)
        for block_k in (32, 64, 128)
        for warps in (4, 8)
        for stages in ((2, 3) if target == "cuda" else (1, 2))
        for peel in (True, False)
        if block_q <= max(first.block_q, 64) and block_k <= max(_SMALLEST, n_keys)
    ]
    return (first, *(config for config in others if config != first))


def padded_head(head_dim: int) -> int:
    """Head dim as the kernel computes with it: the next power of two, at least 16."""
    return max(_SMALLEST, pl.next_power_of_2(head_dim))


def declines(q: Array, k: Array, v: Array, scale: float, target: Target) -> str | None:
    """Why the kernel does not take these arguments, or None if it does."""
    if not q.dtype == k.dtype == v.dtype:
        return f"q, k and v have different dtypes ({q.dtype}, {k.dtype}, {v.dtype})"
    if q.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        return f"its dtypes are bfloat16, float16 and float32, not {q.dtype}"
    if q.dtype == jnp.float32 and target in ("cuda", "gfx11"):
        return "the matrix units of this device do not multiply f32 in full precision"
    if q.shape[-1] > _LARGEST_HEAD:
        return f"its largest head dim is {_LARGEST_HEAD}, got {q.shape[-1]}"
    if scale <= 0:
        return f"it takes positive scales only, got {scale}"
    return None


# Jitted by itself, so that layers alike are traced and lowered once.
@functools.partial(jax.jit, static_argnames=("mask", "scale", "target", "config"))
def prefill_attention(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K H S"],
    *,
    query_positions: Int[Array, "B L"],
    key_lengths: Int[Array, " B"],
    mask: Mask,
    scale: float,
    terms: ScoreTerms = NO_TERMS,
    target: Target,
    config: Config | None = None,
) -> Float[Array, "B L N H"]:
    """Softmax attention as `rfjax.ops.attention.attention` defines it, in the dtype of `q`.

    Products accumulate in f32 (f32 operands are multiplied in full precision), softmax is f32.
    A query at position -1 gets zeros under every mask.

    Args:
        query_positions: absolute positions, in any order; -1 marks padding.
        terms: of the scores. With slopes, the queries of a block should lie within some thousands
            of positions: f32 holds distances from the last of them.
        target: whose instructions to use; "interpret" runs on the CPU.
        config: how to cut the work; None takes the heuristic's.
    """
    batch, length, n_heads, head_dim = q.shape
    n_keys = k.shape[2]
    if config is None:
        config = heuristic(
            length,
            n_keys,
            head_dim,
            q.dtype,
            target,
            sized=mask.size > 0,
            sloped=terms.slopes is not None,
        )
    # Rows of values begin at whole vectors, so that they are loaded as such.
    v = jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, -n_keys % _VECTOR))) if n_keys % _VECTOR else v
    operands = {
        "positions": query_positions,
        "lengths": key_lengths,
        "q": q,
        "k": k,
        "v": v,
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
        # Programs start in the order of the first index: those of most keys come first.
        grid=(n_heads, pl.cdiv(length, config.block_q) * batch),
        compiler_params=plt.CompilerParams(
            num_warps=config.num_warps, num_stages=config.num_stages
        ),
        interpret=target == "interpret",
        name="prefill_attention",
    )(*operands.values())


def _kernel(*refs, names, config: Config, mask: Mask, scale: float, softcap: float, target: Target):
    *inputs, out_ref = refs
    inputs = dict(zip(names, inputs, strict=True))
    k_ref, v_ref = inputs["k"], inputs["v"]
    _, length, n_heads, head_dim = out_ref.shape
    n_keys = k_ref.shape[2]
    block_k = config.block_k
    padded = padded_head(head_dim)
    head, n_blocks = pl.program_id(0), pl.cdiv(length, config.block_q)
    row = jax.lax.div(pl.program_id(1), n_blocks)
    block = n_blocks - 1 - jax.lax.rem(pl.program_id(1), n_blocks)
    kv_head = jax.lax.div(head, n_heads // k_ref.shape[1])

    queries = block * config.block_q + jnp.arange(config.block_q, dtype=jnp.int32)
    dims = jnp.arange(padded, dtype=jnp.int32)
    at_queries = (row, queries[:, None], head, dims[None, :])
    q_mask = inside(queries, length, dims, head_dim)
    q = load_or_zero(inputs["q"].at[at_queries], q_mask)
    positions = plt.load(inputs["positions"].at[row, queries], mask=queries < length, other=-1)
    n_real = jnp.minimum(inputs["lengths"][row], n_keys)
    span = key_span(mask, positions, n_real, block_k)

    # Distances are counted from the last query: one number a key instead of one a score. What is
    # missing is the same for all scores of a query, and changes no weight.
    bias_at = None
    if "slopes" in inputs:
        slope, last = inputs["slopes"][head] * LOG2_E, jnp.max(positions)
        bias_at = lambda places: slope * (places - last).astype(jnp.float32)  # noqa: E731

    def step(masked, i, carry):
        acc, best, total = carry
        keys = i * block_k + jnp.arange(block_k, dtype=jnp.int32)
        k = load_or_zero(
            k_ref.at[row, kv_head, keys[:, None], dims[None, :]],
            inside(keys, n_keys if masked else None, dims, head_dim),
        )
        visible = span.sees(keys) if masked else None
        bias = None if bias_at is None else bias_at(keys)[None, :]
        scores, factor = score_exponents(_dot(q, k), scale, softcap, bias, target)
        weights, best, shrink = weigh(scores, best, factor, visible, target)
        v = load_or_zero(
            v_ref.at[row, kv_head, dims[:, None], keys[None, :]],
            inside(dims, head_dim, keys, v_ref.shape[3] if masked else None),
        )
        acc = acc * shrink[:, None] + _dot(weights.astype(v.dtype), v)
        return acc, best, total * shrink + jnp.sum(weights, axis=1)

    best = jnp.full((config.block_q,), FLOOR, jnp.float32)
    total = jnp.zeros((config.block_q,), jnp.float32)
    if "sinks" in inputs:
        sink = inputs["sinks"][head] * LOG2_E
        if bias_at is not None:
            sink += bias_at(positions)
        best = jnp.maximum(best, sink)
        total = exp2(sink - best, target)
    carry = (jnp.zeros((config.block_q, padded), jnp.float32), best, total)
    first = span.first
    if config.peel and span.lowest is None:
        first = span.full
        carry = jax.lax.fori_loop(0, first, functools.partial(step, False), carry)
    acc, _, total = jax.lax.fori_loop(first, span.blocks, functools.partial(step, True), carry)
    # By the mask, not by the scores: NaN must stay NaN, and a maximum may drop it.
    real = span.any_sees(positions)
    norm = 1.0 / jnp.where(real, total, 1.0)
    out = jnp.where(real[:, None], acc * norm[:, None], 0.0).astype(out_ref.dtype)
    plt.store(out_ref.at[at_queries], out, mask=q_mask)


def _dot(a, b):
    """`a @ b.T` in f32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return plt.dot(a, b, trans_b=True, precision=precision)
