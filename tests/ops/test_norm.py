"""Norms against NumPy in f64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rfjax.ops.norm import layer_norm, normalize, rms_norm

jitted = jax.jit(normalize, static_argnames=("eps", "kind"))
KINDS = ("rms", "layer")


def reference(x, weight, eps, bias=0.0, kind="rms"):
    x = x.astype(np.float64)
    if kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight + bias


@pytest.mark.parametrize("shape", [(1, 8), (5, 33), (3, 4, 16), (2, 1, 1)])
@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.5])
def test_rms_norm(shape, eps):
    rng = np.random.default_rng(sum(shape))
    x = rng.standard_normal(shape, np.float32) * 3
    weight = rng.standard_normal(shape[-1], np.float32)
    found = jax.jit(rms_norm, static_argnums=2)(x, weight, eps)
    assert_allclose(found, reference(x, weight, eps), rtol=2e-6, atol=1e-6)


def test_rms_norm_of_zeros_is_zero_and_not_nan():
    assert_array_equal(rms_norm(jnp.zeros((2, 4)), jnp.ones(4), 1e-6), np.zeros((2, 4)))


def test_rms_norm_computes_in_f32_and_keeps_the_dtype():
    """Squares of 300 overflow f16; the result does not."""
    x = jnp.full((1, 64), 300.0, jnp.float16)
    found = rms_norm(x, jnp.ones(64), 1e-6)
    assert found.dtype == jnp.float16
    assert_allclose(found.astype(jnp.float32), 1.0)


@pytest.mark.parametrize("shape", [(1, 8), (5, 33), (3, 4, 16)])
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_layer_norm(shape, eps):
    """Of values far from zero, whose squares hide their variance."""
    rng = np.random.default_rng(sum(shape))
    x = rng.standard_normal(shape, np.float32) * 3 + 50
    weight, bias = rng.standard_normal((2, shape[-1]), np.float32)
    found = jax.jit(layer_norm, static_argnums=3)(x, weight, bias, eps)
    assert_allclose(found, reference(x, weight, eps, bias, "layer"), rtol=3e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("weighted", ["no", "one", "each head"])
def test_what_is_learned(kind, biased, weighted):
    """Nothing, one weight of every head, or one of each head; with a bias or without."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((3, 4, 16), np.float32) + 1
    shape = {"no": None, "one": (16,), "each head": (4, 16)}[weighted]
    weight = None if shape is None else rng.standard_normal(shape, np.float32)
    bias = rng.standard_normal(shape or (16,), np.float32) if biased else None
    found = jitted(x, weight, bias, eps=1e-5, kind=kind)
    one, none = 1.0 if weight is None else weight, 0.0 if bias is None else bias
    assert_allclose(found, reference(x, one, 1e-5, none, kind), rtol=2e-6, atol=3e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_of_another_dtype_are_widened(kind):
    x = jnp.arange(8, dtype=jnp.bfloat16).reshape(1, 8)
    weight, bias = jnp.full(8, 2, jnp.float16), jnp.full(8, 3, jnp.bfloat16)
    found = jitted(x, weight, bias, eps=1e-5, kind=kind)
    assert found.dtype == jnp.bfloat16
    expected = reference(np.asarray(x, np.float32), 2.0, 1e-5, 3.0, kind)
    assert_allclose(found.astype(jnp.float32), expected, rtol=8e-3)


def test_layer_norm_of_a_constant_is_its_bias():
    assert_array_equal(layer_norm(jnp.full((2, 4), 7.0), jnp.ones(4), jnp.full(4, 3.0), 1e-6), 3.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 2, 3, 16])
def test_a_row_does_not_depend_on_the_rows_beside_it(rows, kind):
    x = np.random.default_rng(3).standard_normal((40, 200), np.float32)
    weight, bias = np.linspace(0.5, 2, 200, dtype=np.float32), np.linspace(-1, 1, 200)
    norm = lambda x: jitted(x, weight, bias.astype(np.float32), eps=1e-5, kind=kind)  # noqa: E731
    whole = np.asarray(norm(x))
    assert_array_equal(norm(x[7 : 7 + rows]), whole[7 : 7 + rows])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_a_token_s_heads_do_not_depend_on_the_tokens_beside_it(tokens, kind):
    x = np.random.default_rng(4).standard_normal((24, 3, 48), np.float32)
    weight = np.linspace(0.5, 2, 144, dtype=np.float32).reshape(3, 48)
    norm = lambda x: jitted(x, weight, None, eps=1e-5, kind=kind)  # noqa: E731
    whole = np.asarray(norm(x))
    assert_array_equal(norm(x[3 : 3 + tokens]), whole[3 : 3 + tokens])
