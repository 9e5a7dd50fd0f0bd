"""How the work of paged decode attention is cut."""

import dataclasses

import jax.numpy as jnp
from jax.experimental import pallas as pl

from rfjax.pallas.target import Target, lanes_of

SMALLEST = 16
"""Least number of rows and columns that the matrix units take."""

LARGEST_UNROLLED = 8
"""Query heads of a group that are handled one by one without the matrix units."""

_VECTOR = 16
"""Bytes that one load instruction of a lane reads."""

_PROGRAMS = 1024
"""Programs that keep a large GPU busy to the end: two for each of which it holds at a time."""

_UNSPLIT_KEYS = 256
"""Capacity up to which one program is faster than several and their combination."""

_MOST_KEYS = 8192
"""Keys of one program: where rows are many, a long one among them shall not hold up the step."""

MAX_SPLITS = 64
"""Most programs that share a row's context."""


@dataclasses.dataclass(frozen=True)
class Config:
    """How the work is cut: powers of two, but for `num_stages`.

    `block_k` keys a step; `splits` programs for one row's context. `dot` uses the matrix units,
    with the query heads of a group padded to 16 rows, and lets the compiler keep `num_stages`
    blocks under way. Otherwise lanes multiply and add, and two stages load one block ahead. `peel`
    takes the blocks of which all keys are visible in a loop of their own, without masks.
    """

    block_k: int
    splits: int
    num_warps: int
    num_stages: int
    dot: bool
    peel: bool


def padded_head(head_dim: int) -> int:
    """Head dim as the kernel computes with it: the next power of two, at least 16."""
    return max(SMALLEST, pl.next_power_of_2(head_dim))


def keys_abreast(head_dim: int, page_dtype: jnp.dtype, num_warps: int, target: Target) -> int:
    """Keys that all lanes of a program together load by one instruction."""
    of_key = padded_head(head_dim) * jnp.dtype(page_dtype).itemsize // _VECTOR
    return max(1, lanes_of(target) * num_warps // max(1, of_key))


def heuristic(
    batch: int,
    heads: tuple[int, int],
    capacity: int,
    head_dim: int,
    dtypes: tuple[jnp.dtype, jnp.dtype],
    target: Target,
) -> Config:
    """A setting for any shape.

    Args:
        heads: numbers of query and of kv heads.
        capacity: most keys of a row: what its table has pages for.
        dtypes: of queries, and of keys and values in pages.
    """
    n_heads, n_kv = heads
    group = n_heads // n_kv
    wide = jnp.float32 in dtypes  # most matrix units do not multiply f32
    if target == "cuda":
        # The matrix units take a fifth of the instructions, however few the heads.
        dot = not wide or group > LARGEST_UNROLLED
    else:
        dot = group > (LARGEST_UNROLLED if wide or target == "gfx11" else 4)
    warps, stages = 4, 1
    if dot:
        block_k = 32 if wide or padded_head(head_dim) > 128 else 64
        if target == "gfx11":  # operands take twice the registers there, of which there are 256
            block_k, warps = 16, 8
        elif target == "cuda":
            stages = 1 if wide else 3
    else:
        block_k = 4 * keys_abreast(head_dim, dtypes[1], warps, target)
    block_k = min(block_k, max(SMALLEST, pl.next_power_of_2(capacity)))
    splits = 1
    if capacity > _UNSPLIT_KEYS:
        wanted = max(_PROGRAMS // (batch * n_kv), capacity // _MOST_KEYS, 1)
        most = min(capacity // block_k, MAX_SPLITS)
        splits = 1 << (min(wanted, most).bit_length() - 1)
    # A pipeline that the compiler makes runs dry between two loops.
    return Config(block_k, splits, warps, stages, dot, peel=not dot or stages == 1)


def tuning_space(
    batch: int,
    heads: tuple[int, int],
    capacity: int,
    head_dim: int,
    dtypes: tuple[jnp.dtype, jnp.dtype],
    target: Target,
) -> tuple[Config, ...]:
    """Settings worth timing, the heuristic's first."""
    first = heuristic(batch, heads, capacity, head_dim, dtypes, target)
    others = [
        Config(block_k, splits, warps, stages, dot, peel)
        for dot in (True, False)
        for block_k in (16, 32, 64, 128)
        for splits in (1, 2, 4, 8, 16, 32, 64)
        for warps in (1, 2, 4, 8)
        for stages in ((1, 2, 3, 4) if dot and target == "cuda" else (1, 2))
        for peel in (True, False)
        if block_k * splits <= capacity and (dot or heads[0] // heads[1] <= LARGEST_UNROLLED)
    ]
    return (first, *(config for config in others if config != first))
