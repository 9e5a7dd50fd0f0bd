"""Activations in block fixed point: the kernel against its definition, and what it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.ops.norm import rms_norm
from rfjax.pallas.pack_activations import (
    LARGEST,
    PackedActivations,
    pack_activations,
    pack_activations_reference,
)

pytestmark = pytest.mark.quick_compile

pack_reference = jax.jit(pack_activations_reference)


def unpack(packed: PackedActivations) -> np.ndarray:
    """The numbers that packed activations stand for, f64 `[M, K]`."""
    words = np.asarray(packed.words)
    m, _, _, groups, columns, _ = words.shape
    parts = words.view(np.int8).reshape(m, 2, 2, groups, columns, 16).astype(np.float64)
    q = 256 * parts[:, 0] + parts[:, 1]  # [M, half, J, S, 16]
    np.testing.assert_array_equal(q.sum(-1), np.asarray(packed.sums))
    values = q * np.asarray(packed.scales, np.float64)[:, None, :, :, None]
    return values.transpose(0, 3, 2, 1, 4).reshape(m, -1)


@pytest.mark.parametrize(
    ("m", "k", "dtype"), [(1, 256, "bfloat16"), (3, 320, "float32"), (2, 1056, "float32")]
)
def test_within_half_a_step(m, k, dtype):
    x = jnp.asarray(np.random.default_rng(k).standard_normal((m, k)), dtype)
    for packed in (pack_reference(x), pack_activations(x, target="interpret")):
        exact = np.asarray(x, np.float64)
        largest = np.abs(exact).reshape(m, -1, 32).max(-1, keepdims=True)
        difference = np.abs(unpack(packed) - exact).reshape(m, -1, 32)
        # A little more: scales and quotients are f32.
        assert (difference <= largest / LARGEST * 0.51).all()


def test_the_norm_comes_first():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 320)), jnp.float32)
    weight = jnp.asarray(rng.uniform(0.5, 2.0, 320), jnp.float32)
    got = unpack(pack_activations(x, norm=weight, eps=1e-5, target="interpret"))
    want = np.asarray(rms_norm(x, weight, 1e-5), np.float64)
    assert np.abs(got - want).max() <= 1e-4


def test_zeros_stay_zeros():
    packed = pack_activations(jnp.zeros((1, 64)), target="interpret")
    assert (unpack(packed) == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows(bad):
    x = np.ones((1, 64), np.float32)
    x[0, 40] = bad
    for packed in (
        pack_activations(jnp.asarray(x), target="interpret"),
        pack_reference(jnp.asarray(x)),
    ):
        scales = np.asarray(packed.scales).reshape(-1)
        assert np.isfinite(scales[0]) and np.isnan(scales[1])
