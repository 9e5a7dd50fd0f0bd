"""Products of few rows with plain weights against f64, interpreted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.pallas.plain_matvec import Config, heuristic, plain_matvec

pytestmark = pytest.mark.quick_compile

TOLERANCE = 1e-6
"""Relative error (norms) against f64 of the same operands: only sums in f32 are rounded."""


def case(n: int, k: int, m: int, weight_dtype="bfloat16", dtype="bfloat16", seed: int = 0):
    """A weight, activations, and their product in f64."""
    rng = np.random.default_rng(seed + n * k)
    weight = jnp.asarray(rng.standard_normal((n, k)), weight_dtype)
    x = jnp.asarray(rng.standard_normal((m, k)), dtype)
    return weight, x, np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T


def error(got, want) -> float:
    got = np.asarray(got, np.float64)
    assert got.shape == want.shape
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def product(x, weights, **options):
    return plain_matvec(x, weights, **{"out_dtype": jnp.float32, **options}, target="interpret")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("weight_dtype", ["bfloat16", "float16", "float32"])
def test_every_pair_of_dtypes_is_multiplied_exactly(weight_dtype, dtype):
    # 21 rows are no multiple of a tile, nor 200 elements of a chunk.
    weight, x, want = case(21, 200, 2, weight_dtype, dtype)
    (got,) = product(x, [weight], config=Config(rows=4, columns=32, unroll=2, warps=1))
    assert error(got, want) < TOLERANCE


@pytest.mark.parametrize(
    ("n", "k", "m"), [(131, 320, 1), (1, 33, 1), (3, 1, 3), (5, 257, 4), (2, 5000, 1)]
)
def test_odd_shapes(n, k, m):
    weight, x, want = case(n, k, m)
    (got,) = product(x, [weight])
    assert error(got, want) < TOLERANCE


def test_results_are_rounded_once():
    weight, x, want = case(9, 512, 1)
    (got,) = product(x, [weight], out_dtype=jnp.bfloat16)
    assert got.dtype == jnp.bfloat16
    assert error(got, want) < 2**-8


def test_weights_of_several_sizes_and_dtypes_share_a_launch():
    query, x, want_query = case(24, 64, 3)
    key = jnp.asarray(np.random.default_rng(1).standard_normal((10, 64)), jnp.float32)
    want_key = np.asarray(x, np.float64) @ np.asarray(key, np.float64).T
    biases = [None, jnp.arange(10, dtype=jnp.float32)]
    outputs = product(x, [query, key], biases=biases)
    assert error(outputs[0], want_query) < TOLERANCE
    assert error(outputs[1], want_key + np.arange(10)) < TOLERANCE


def test_residual_and_gate():
    gate, x, want_gate = case(13, 96, 2)
    up, _, _ = case(13, 96, 2, seed=1)
    want_up = np.asarray(x, np.float64) @ np.asarray(up, np.float64).T
    (got,) = product(x, [gate, up], gated=jax.nn.silu)
    assert error(got, want_gate / (1 + np.exp(-want_gate)) * want_up) < TOLERANCE
    (got,) = product(x, [gate], residual=jnp.full((2, 13), 3, jnp.bfloat16))
    assert error(got, want_gate + 3) < TOLERANCE


@pytest.mark.parametrize("n", [1, 3, 4096, 28672])
@pytest.mark.parametrize("k", [1, 33, 320, 896, 4096, 4864, 11008, 14336])
def test_the_heuristic_always_answers(n, k):
    for m in (1, 2, 3, 4):
        config = heuristic(n, k, m)
        assert config.rows <= n
        for size in (config.rows, config.columns, config.unroll, config.warps):
            assert size & (size - 1) == 0 and size > 0
