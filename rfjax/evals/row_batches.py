"""Rows of a corpus through the device in batches of one shape."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rfjax.sharding import batch_sharding


def in_batches(
    compute: Callable[[Any], Any],
    rows: Iterable[Any],
    batch_size: int,
    *,
    mesh: jax.sharding.Mesh | None = None,
) -> Iterator[Any]:
    """What `compute` makes of each row, in order, on the host.

    The next batch is dispatched before the last is waited for, so that the device does not wait
    for the host; rows are taken as they are needed, and no more than two batches are held.

    Args:
        compute: given a batch, `[batch_size, ...]` in every array, it returns arrays whose first
            axis is the batch, on the device.
        rows: trees of arrays, all of the same shapes.
        batch_size: rows of a batch. The last one is filled up with copies of its last row, so
            that one shape is compiled.
        mesh: devices over which the rows of a batch are spread, in batches of as many rows more as
            give every group of devices the same number; None leaves them on one.
    """
    if mesh is not None:
        batch_size += -batch_size % mesh.shape.get("data", 1)
    iterator = iter(rows)
    pending: tuple[Any, int] | None = None
    while batch := list(itertools.islice(iterator, batch_size)):
        full = batch + batch[-1:] * (batch_size - len(batch))
        inputs = jax.tree.map(lambda *arrays: jnp.asarray(np.stack(arrays)), *full)
        if mesh is not None:
            inputs = jax.device_put(inputs, batch_sharding(mesh, batch_size))
        result = compute(inputs)
        if pending is not None:
            yield from _on_host(*pending)
        pending = result, len(batch)
    if pending is not None:
        yield from _on_host(*pending)


def _on_host(result: Any, n_rows: int) -> Iterator[Any]:
    arrays = jax.tree.map(np.asarray, result)
    for i in range(n_rows):
        yield jax.tree.map(lambda array, i=i: array[i], arrays)
