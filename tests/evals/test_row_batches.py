"""Rows through the device: in order, in one shape, and no sooner than they are needed."""

import jax
import numpy as np
import pytest

from rfjax.evals.row_batches import in_batches
from rfjax.sharding import make_mesh

pytestmark = pytest.mark.quick_compile


def rows(n):
    """Trees of two arrays, which say which row they are."""
    for i in range(n):
        yield {"a": np.full(3, i, np.int32), "b": np.float32(i)}


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 9])
def test_rows_come_back_in_order_and_in_one_shape(batch_size):
    shapes = set()

    def compute(batch):
        shapes.add((batch["a"].shape, batch["b"].shape))
        return batch["a"].sum(-1), batch

    found = list(in_batches(compute, rows(7), batch_size))
    assert [int(total) for total, _ in found] == [3 * i for i in range(7)]
    assert [float(batch["b"]) for _, batch in found] == list(range(7))
    assert all(isinstance(total, np.ndarray | np.generic) for total, _ in found)
    assert shapes == {((batch_size, 3), (batch_size,))}


def test_no_rows_are_no_batches():
    assert list(in_batches(lambda batch: batch, rows(0), 4)) == []


def test_rows_are_taken_as_they_are_needed():
    taken = []

    def watched():
        for i, row in enumerate(rows(8)):
            taken.append(i)
            yield row

    found = in_batches(lambda batch: batch, watched(), 2)
    next(found)
    assert taken == [0, 1, 2, 3]  # the batch that is handed out, and the one behind it


@pytest.mark.parametrize("groups, batch_size, expected", [(2, 3, 4), (4, 4, 4), (4, 1, 4)])
def test_every_group_of_devices_gets_rows(groups, batch_size, expected):
    seen = []

    def compute(batch):
        array = batch["a"]
        (rows_each,) = {shard.data.shape[0] for shard in array.addressable_shards}
        seen.append((array.shape[0], array.shape[0] // rows_each))
        return jax.tree.map(lambda x: x + 1, batch)

    mesh = make_mesh(data=groups, model=2)
    found = list(in_batches(compute, rows(6), batch_size, mesh=mesh))
    assert [float(row["b"]) for row in found] == [1, 2, 3, 4, 5, 6]
    assert set(seen) == {(expected, groups)}
