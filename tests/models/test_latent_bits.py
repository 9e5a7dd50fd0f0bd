"""Latent attention gives a token the same bits, however rows are cut into steps and batches."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from support.latent_case import (
    LENGTH,
    attend,
    fresh,
    hidden,
    in_steps,
    layer_of,
    weights_of,
)


@pytest.mark.parametrize("name", ["bottleneck, split", "direct, joint"])
def test_prefill_equals_decode_steps_and_chunks(name):
    layer = layer_of(name)
    weights, x = weights_of(layer), hidden(2)
    whole = in_steps(weights, x, layer, [LENGTH])
    assert_array_equal(whole, in_steps(weights, x, layer, [1] * LENGTH))
    assert_array_equal(whole, in_steps(weights, x, layer, [20, 20]))


def test_a_row_alone_equals_the_row_in_a_batch():
    layer = layer_of("bottleneck, split")
    weights, x = weights_of(layer), hidden(3, batch=5)
    together = in_steps(weights, x, layer, [20, 1, 1])
    at = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (5, LENGTH))
    without_pages, _ = attend(weights, x, at, layer=layer)
    for i in (0, 4):
        row = x[i : i + 1]
        assert_array_equal(together[i : i + 1], in_steps(weights, row, layer, [20, 1, 1]))
        alone, _ = attend(weights, row, at[:1], layer=layer)
        assert_array_equal(without_pages[i : i + 1], alone)


def test_padding_is_not_written_and_changes_nothing():
    layer = layer_of("direct, joint")
    weights, x = weights_of(layer), hidden(4, batch=2, length=20)
    pages, table = fresh(layer, 2)
    positions = np.stack([np.arange(20), np.where(np.arange(20) < 13, np.arange(20), -1)])
    positions = positions.astype(np.int32)
    out, pages = attend(weights, x, positions, pages, table, layer=layer)
    assert_array_equal(out[1, :13], in_steps(weights, x[1:, :13], layer, [13])[0])
    assert not np.asarray(out[1, 13:]).any()
    kept = np.asarray(pages.k)[table[1]].reshape(-1, pages.k.shape[-1])
    assert np.isfinite(kept[:13]).all() and np.isnan(kept[13:]).all()
