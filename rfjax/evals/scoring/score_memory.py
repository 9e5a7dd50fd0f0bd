"""How many pages scoring holds keys and values in, and the cache of that many."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rfjax.cache.paged import PagedCache, init_paged_cache, page_bytes
from rfjax.errors import CapacityError
from rfjax.evals.scoring.continuation import Continuation
from rfjax.evals.scoring.score_plan import PAGE_SIZE, PIECE_SIZES, n_pages_of
from rfjax.io.load import Model
from rfjax.io.memory import gib, memory_of, step_bytes
from rfjax.quant.qtensor import packed_leaves

_CACHE_TOKENS = 1 << 16
"""Most tokens whose keys and values are held, unless one sequence needs more."""

_SHARE_OF_CPU = 0.25
_SHARE_OF_DEVICE = 0.8
"""Of the free memory, for the cache."""

_LEAST_BYTES = 1 << 25
"""Of pages on the CPU (or half as many): fewer would only be another program to compile."""


def pages_for(
    continuations: Sequence[Continuation], model: Model, step_tokens: int, asked: int | None
) -> int:
    """Pages to score these with: one of few numbers, so that few programs are compiled.

    Args:
        continuations: at least one.
        model: what scores.
        step_tokens: places of its largest step.
        asked: most tokens in pages; None for what memory allows, within reason.

    Raises:
        CapacityError: the longest does not fit in the free memory, or in what is asked for.
    """
    needed = [n_pages_of(one) for one in continuations]
    longest = max(needed)
    of_page = page_bytes(
        model.config.kv_shapes, PAGE_SIZE, jnp.dtype(model.config.dtype), model.mesh
    )
    devices = jax.devices()[:1] if model.mesh is None else list(model.mesh.devices.flat)
    memory = memory_of(devices)
    most = max(_CACHE_TOKENS // PAGE_SIZE, longest) if asked is None else asked // PAGE_SIZE
    if memory.free is not None:
        share = _SHARE_OF_CPU if devices[0].platform == "cpu" else _SHARE_OF_DEVICE
        room = int(share * memory.free) // memory.sharers - _workspace(model, step_tokens)
        most = min(most, max(0, room // of_page))
    if most < longest:
        raise CapacityError(
            f"the keys and values of the longest continuation take {gib(longest * of_page)}, and "
            f"there is room for {gib(most * of_page)} on {memory.where}: leave it out, raise "
            "cache_tokens where it is given, or use a mesh or a smaller dtype"
        )
    if asked is None and most > longest:
        most = max(longest, 1 << (most.bit_length() - 1))  # also where a little less is free
    if devices[0].platform != "cpu":
        return most
    n_pages = 1 << max(5, (_LEAST_BYTES // of_page).bit_length() - 1)
    while n_pages < sum(needed):  # memory is slow to be made here, and programs quick
        n_pages *= 4
    return min(most, n_pages)


def empty_cache(model: Model, n_pages: int) -> PagedCache:
    """Pages of all layers, found by one table: every layer keeps all tokens."""
    config = model.config
    dtype, groups = jnp.dtype(config.dtype), (0,) * len(config.layers)
    return init_paged_cache(config.kv_shapes, groups, (n_pages,), PAGE_SIZE, dtype, model.mesh)


def _workspace(model: Model, step_tokens: int) -> int:
    """Bytes of a step's intermediate values, from above."""
    packed = (leaf.shape[-2] * leaf.shape[-1] for leaf in packed_leaves(model.params))
    return step_bytes(
        model.config,
        max(packed, default=0),
        tokens=step_tokens,
        sequences=PIECE_SIZES[0],
        keys=model.config.context_length,
    )
