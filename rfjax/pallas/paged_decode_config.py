"""How the work of paged decode attention is cut."""

import dataclasses

import jax.numpy as jnp
from jax.experimental import pallas as pl

from rfjax.pallas.target import Target, lanes_of

SMALLEST = 16
"""Least number of rows and columns that the matrix units take."""

UNROLLED = 4
"""Query heads that a program handles one by one: with more, code is long and registers are few."""

_VECTOR = 16
"""Bytes that one load instruction of a lane reads."""

_PROGRAMS = 1024
"""Programs that keep a large GPU busy to the end. On NVIDIA's half of them do, which run at once:
measured on an H200, where a second round of programs costs more than it evens out."""

_UNSPLIT_KEYS = 256
"""Capacity up to which one program is faster than several and their combination."""

_MOST_KEYS = 8192
"""Keys of one program: where rows are many, a long one among them shall not hold up the step."""

MAX_SPLITS = 64
"""Most programs that share a row's context."""


@dataclasses.dataclass(frozen=True)
class Config:
    """How the work is cut: powers of two, but for `num_stages`.

    `block_k` keys a step; `splits` programs for one row's context; at most `heads` query heads of a
    group in one program. `dot` uses the matrix units, with the heads padded to 16 rows, and lets
    the compiler keep `num_stages` blocks under way. Otherwise lanes multiply and add, one head
    after another, and two stages load one block ahead. `peel` takes the blocks of which all keys
    are visible in a loop of their own, without masks.
    """

    block_k: int
    splits: int
    heads: int
    num_warps: int
    num_stages: int
    dot: bool
    peel: bool


def heads_of_program(config: Config, group: int) -> int:
    """Query heads of a program, of `group` that share a kv head.

    One by one they must be as many in every program; the rows of a product may be padding.
    """
    if config.dot:
        return min(group, config.heads)
    return max(n for n in range(1, min(group, config.heads) + 1) if group % n == 0)


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
    warps, stages = 4, 1
    dot = _by_product(group, head_dim, dtypes, target)
    if dot:
        large = padded_head(head_dim) > 128
        served = 32 if large else 64
        block_k = 32
        if target == "gfx11":  # operands take twice the registers there, of which there are 256
            block_k, served, warps = 16, 16, 8
        elif target == "cuda" and dtypes[1] != jnp.int8 and not large:
            block_k, warps, stages = 64, 2, 2  # the best of 27 on an H200, at every shape tried
        elif target == "cuda":  # copies of up to 48 KiB under way
            stages = 3 if large else 4
        elif jnp.float32 not in dtypes:  # within the local memory of gfx950, which copies to it
            block_k, stages = 16 if large else 32, 2
    else:
        served = UNROLLED
        packed = dtypes[1] == jnp.int8  # a lane has more elements: fewer keys fit in registers
        block_k = (2 if packed else 4) * keys_abreast(head_dim, dtypes[1], warps, target)
        stages = 1 if packed else 2
    block_k = min(block_k, max(SMALLEST, pl.next_power_of_2(capacity)))
    splits = 1
    if capacity > _UNSPLIT_KEYS:
        programs = batch * n_kv * pl.cdiv(group, served)
        busy = _PROGRAMS // 2 if target == "cuda" else _PROGRAMS
        wanted = max(busy // programs, capacity // _MOST_KEYS, 1)
        most = min(capacity // block_k, MAX_SPLITS)
        splits = 1 << (min(wanted, most).bit_length() - 1)
    # A pipeline runs dry between two loops; but on AMD GPUs masked loads are branches.
    peel = not dot or target != "cuda"
    return Config(block_k, splits, served, warps, stages, dot, peel)


def _by_product(
    group: int, head_dim: int, dtypes: tuple[jnp.dtype, jnp.dtype], target: Target
) -> bool:
    """Whether the matrix units are faster than multiplying and adding."""
    if jnp.float32 in dtypes:  # which only those of gfx9 multiply
        return target == "gfx9" and group > 8
    if target == "cuda":  # with its pipeline of copies it takes a fifth of the instructions
        return True
    if target == "gfx11" and padded_head(head_dim) > 128:  # operands would not fit in registers
        return False
    few = target == "gfx9" or (target == "gfx11" and dtypes[1] == jnp.int8)
    return group > (2 if few else UNROLLED)


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
        Config(
            block_k,
            splits,
            max(first.heads, SMALLEST) if dot else UNROLLED,
            warps,
            stages,
            dot,
            peel,
        )
        for dot in (True, False)
        for block_k in (16, 32, 64, 128)
        for splits in (1, 2, 4, 8, 16, 32, 64)
        for warps in (1, 2, 4, 8)
        for stages in ((1, 2, 3, 4) if dot and target == "cuda" else (1, 2))
        for peel in (True, False)
        if block_k * splits <= capacity
    ]
    return (first, *(config for config in others if config != first))
