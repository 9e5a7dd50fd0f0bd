import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.quant.bits import bf16, f16, field_planes, fields, lookup, words16, words32

ALL_16_BITS = np.arange(1 << 16, dtype="<u2").view(np.uint8)
IN_BOTH = pytest.mark.parametrize(
    ("xp", "run"), [(np, lambda f: f), (jnp, jax.jit)], ids=["numpy", "jax"]
)


@IN_BOTH
def test_f16_is_exact_for_every_bit_pattern(xp, run):
    got = np.asarray(run(lambda data: f16(data, xp))(xp.asarray(ALL_16_BITS)))
    expected = ALL_16_BITS.view(np.float16).astype(np.float32)
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got[~nan].view(np.uint32), expected[~nan].view(np.uint32))


@IN_BOTH
def test_bf16_is_the_upper_half_of_f32(xp, run):
    got = np.asarray(run(bf16)(xp.asarray(ALL_16_BITS))).view(np.uint32)
    np.testing.assert_array_equal(got, np.arange(1 << 16, dtype=np.uint32) << 16)


@IN_BOTH
def test_words_are_little_endian(xp, run):
    data = xp.asarray(np.array([[0x01, 0x02, 0x03, 0x84]], np.uint8))
    assert np.asarray(run(words16)(data)).tolist() == [[0x0201, 0x8403]]
    assert np.asarray(run(words32)(data)).tolist() == [[0x84030201]]


@IN_BOTH
def test_fields_lowest_first(xp, run):
    data = xp.asarray(np.array([[0b11_10_01_00, 0b00_01_10_11]], np.uint8))
    beside = run(lambda data: fields(data, 2, 4))(data)
    planes = run(lambda data: field_planes(data, 2, 4))(data)
    assert np.asarray(beside).tolist() == [[[0, 1, 2, 3], [3, 2, 1, 0]]]
    assert np.asarray(planes).tolist() == [[[0, 3], [1, 2], [2, 1], [3, 0]]]


@IN_BOTH
def test_lookup(xp, run):
    table = np.array([5, -7, 11], np.int8)
    index = xp.asarray(np.array([[2, 0], [1, 1]], np.uint8))
    got = np.asarray(run(lambda index: lookup(table, index, xp))(index))
    assert got.dtype == np.int8
    assert got.tolist() == [[11, 5], [-7, -7]]
