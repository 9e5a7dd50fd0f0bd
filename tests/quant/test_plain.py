import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfjax.quant.formats import dequantize, dequantize_numpy
from rfjax.quant.types import GGMLType

COUNT = 64
RAW = st.tuples(st.integers(0, 2**32 - 1), st.integers(-80, 80))

# Halfway cases, overflow, and the edges of f32's normal and subnormal ranges.
F64_EDGES = [
    *(0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 5e-324, -1e-310, 1e300, -1e300),
    *(2.0**-149, 2.0**-150, 2.0**-150 * (1 + 2**-40), 3 * 2.0**-150, 2.0**-151, 2.0**-126),
    *(2.0**-126 * (1 - 2**-24), 2.0**-126 * (1 - 2**-25), 2.0**-127 * (1 + 2**-22)),
    *(1 + 2**-24, 1 + 3 * 2**-24, 1 + 2**-24 + 2**-52, 1 + 2**-25, 2 - 2**-25, 2 - 2**-24),
    *(3.4028234663852886e38, 3.4028235677973366e38, 3.4028235677973360e38, 2.0**128),
]
I64_EDGES = [
    *(0, 1, -1, 2**24 + 1, -(2**24) - 1, 2**24 + 3, 2**31 - 1, 2**31, -(2**31), 2**32, 2**32 - 1),
    *(2**53 + 1, 2**62 + 2**38, 2**62 + 2**38 + 1, 2**62 + 3 * 2**38, 2**63 - 1, -(2**63)),
    *(2**40 + 2**16, 2**40 + 2**16 + 1, -(2**40) - 2**16, 2**25 + 2, 2**33 + 2**9 + 1, 2**57 - 1),
]
I32_EDGES = [0, 1, -1, 2**24 + 1, 2**24 + 3, -(2**24) - 3, 2**31 - 1, -(2**31), 2**30 + 64]


def both(values: np.ndarray, type: GGMLType) -> list[np.ndarray]:
    raw = values.view(np.uint8)
    shape = (values.size,)
    return [
        dequantize_numpy(raw, type, shape),
        np.asarray(dequantize(jnp.asarray(raw), type, shape)),
    ]


def same_bits(got: np.ndarray, expected: np.ndarray):
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got[~nan].view(np.uint32), expected[~nan].view(np.uint32))


def to_f32(values: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return values.astype(np.float32)


def pad(values: list, dtype: str) -> np.ndarray:
    return np.array(values + [0] * (COUNT - len(values)), dtype)


@pytest.mark.parametrize(
    ("type", "values"),
    [
        (GGMLType.F64, pad(F64_EDGES, "<f8")),
        (GGMLType.I64, pad(I64_EDGES, "<i8")),
        (GGMLType.I32, pad(I32_EDGES, "<i4")),
        (GGMLType.I16, pad([0, -1, 2**15 - 1, -(2**15)], "<i2")),
        (GGMLType.I8, pad([0, -1, 127, -128], "<i1")),
    ],
    ids=lambda value: value.name if isinstance(value, GGMLType) else "",
)
def test_edges_round_as_numpy_does(type, values):
    for got in both(values, type):
        same_bits(got, to_f32(values))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(RAW)
def test_f64_rounds_to_nearest_even(seed_and_exponent):
    seed, exponent = seed_and_exponent
    rng = np.random.default_rng(seed)
    # Around a power of two across f32's range, with few or many bits set behind the 24th.
    significand = 1 + rng.integers(0, 2**28, COUNT) * 2.0**-28
    values = rng.choice([-1, 1], COUNT) * significand * 2.0 ** (exponent * 2 + rng.integers(0, 9))
    for got in both(values, GGMLType.F64):
        same_bits(got, to_f32(values))
    raw = rng.integers(0, 2**64, COUNT, dtype=np.uint64).view("<f8")
    for got in both(raw, GGMLType.F64):
        same_bits(got, to_f32(raw))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_i64_rounds_to_nearest_even(seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(-(2**63), 2**63, COUNT) >> rng.integers(0, 63, COUNT)
    # Clear most low bits of some, so that halfway cases occur.
    values &= ~np.int64(0) << rng.integers(0, 40, COUNT)
    for got in both(values, GGMLType.I64):
        same_bits(got, to_f32(values))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_f32_bits_pass_untouched(seed):
    bits = np.random.default_rng(seed).integers(0, 2**32, COUNT, dtype=np.uint32)
    bits[:4] = [1, 0x8000_0001, 0x007F_FFFF, 0x8000_0000]  # subnormals and negative zero
    for got in both(bits, GGMLType.F32):
        np.testing.assert_array_equal(got.view(np.uint32), bits)
