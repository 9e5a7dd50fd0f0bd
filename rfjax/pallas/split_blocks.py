"""The loop over those blocks of keys in pages that fall to one of several programs."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rfjax.ops.mask import Mask
from rfjax.pallas.decode_span import Count, decode_span
from rfjax.pallas.page_tile import PagedRow, Tile
from rfjax.typing import Array

Step = Callable[[Tile, Array | None, Any], Any]


def over_blocks(
    step: Step,
    begin: Callable[[], Any],
    row: PagedRow,
    mask: Mask,
    position: Count,
    capacity: int,
    split: tuple[Count, int],
    *,
    ahead: bool,
    peel: bool,
) -> Any:
    """Run `step(tile, visible, state)` over a split's blocks, starting with the state `begin()`.

    Values that are not visible are zeros in the tile.

    Split i of n takes the blocks i, i + n, i + 2n, ... of those that hold visible keys. Where they
    are peeled, those that are visible in full come first, with None for `visible`; softmax does not
    mind the order.

    Args:
        row: the keys and values, of which `position` are in the pages.
        capacity: most of them.
        split: its index and the number of splits.
        peel: take the blocks that are visible in full in a loop of their own.
        ahead: load a block's keys and values while the one before is worked on, in registers.
    """
    index, n_splits = split
    block_k = math.prod(row.shape)
    first, cached, first_block, blocks = decode_span(mask, position, capacity, block_k)

    def turns(n_blocks: Count) -> Count:
        """This split's share of that many blocks."""
        return jax.lax.div(jnp.maximum(n_blocks - index, 0) + (n_splits - 1), n_splits)

    n = turns(blocks)
    peel = peel and n_splits * block_k < capacity  # else there is one block at most
    # The block that a window begins in has keys behind it: split 0 takes it after the whole ones.
    late = jnp.minimum(1 - jnp.minimum(index, 1), n) if mask.size and peel else 0
    full = jnp.clip(turns(jax.lax.div(cached, block_k) - first_block), late, n)
    whole = full - late

    def block_of(i) -> Count:
        turn = i
        if mask.size and peel:
            turn = jnp.where(i < whole, i + late, jnp.where(i < full, i - whole, i))
        return first_block + index + turn * n_splits

    def one(checked: bool, i, carry):
        (pages, tile), state = carry
        block, following = block_of(i), block_of(jnp.minimum(i + 1, n - 1))
        visible = None
        if checked:
            keys = row.keys(block)
            visible = keys < cached
            if mask.size:
                visible &= keys >= first
        if ahead:
            now = tile if visible is None else tile.hiding(visible)
            tile, pages = row.load(following, pages), row.find(block_of(jnp.minimum(i + 2, n - 1)))
        else:
            now, pages = row.load(block, pages, visible), row.find(following)
        return (pages, tile), step(now, visible, state)

    # Under way before anything else is; the block may be there in vain.
    start = block_of(jnp.int32(0))
    pages, tile = row.find(start), None
    if ahead:
        tile = row.load(start, pages)
        pages = row.find(block_of(jnp.minimum(jnp.int32(1), n - 1)))
    carry = (pages, tile), begin()
    if peel:
        carry = jax.lax.fori_loop(0, whole, functools.partial(one, False), carry)
    else:
        whole = 0
    _, state = jax.lax.fori_loop(whole, n, functools.partial(one, True), carry)
    return state
