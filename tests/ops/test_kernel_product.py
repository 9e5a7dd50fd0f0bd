"""Who runs products of few rows, and that kernels and plain JAX agree, gradients included."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from rfjax.errors import UnsupportedError
from rfjax.ops.dispatch import DEFAULT_POLICY, KernelPolicy
from rfjax.ops.linear import Norm, Projection, gated_linear, linear, linears
from rfjax.quant.qtensor import pack
from rfjax.quant.types import BLOCK_SIZES, GGMLType

pytestmark = pytest.mark.quick_compile

XLA, INTERPRET = KernelPolicy("xla"), KernelPolicy(interpret=True)
_K = 64


def plain(n: int, dtype="float32", seed: int = 0) -> jax.Array:
    rng = np.random.default_rng(seed + n)
    return jnp.asarray(rng.standard_normal((n, _K)) / 8, dtype)


def packed(n: int, type: GGMLType = GGMLType.Q8_0):
    elements, size = BLOCK_SIZES[type]
    raw = np.random.default_rng(n).integers(0, 256, (n, _K // elements, size)).astype(np.uint8)
    raw[..., :2] = np.full(1, 2**-9, np.float16).view(np.uint8)
    return jax.jit(pack, static_argnums=1)(jnp.asarray(raw), type)


def tokens(n: int, dtype="float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(9).standard_normal((n, _K)), dtype)


def launches(function, *args) -> collections.Counter:
    """Kernels by name."""
    text = str(jax.make_jaxpr(function)(*args))
    kinds = ("plain_matvec_", "quantized_matvec_")
    return collections.Counter({kind: text.count(f"name={kind}") for kind in kinds})


def test_the_cpu_takes_plain_jax_unless_asked():
    x, weight = tokens(1), plain(5)
    run = lambda policy: launches(lambda: linear(x, weight, policy=policy)).total()  # noqa: E731
    assert run(DEFAULT_POLICY) == run(XLA) == 0
    assert run(INTERPRET) == run(KernelPolicy("pallas")) == 1
    for name in ("plain_matvec", "plain_matvec:F32"):
        assert run(KernelPolicy(None, ((name, "failed"),), interpret=True)) == 0
    other = (("plain_matvec:BF16", "failed"), ("quantized_matvec", "failed"))
    assert run(KernelPolicy(None, other, interpret=True)) == 1


def test_many_rows_are_declined():
    with pytest.raises(UnsupportedError, match="up to 4 rows of activations, and there are 5"):
        linear(tokens(5), plain(3), policy=KernelPolicy("pallas"))
    assert launches(lambda: linear(tokens(5), plain(3), policy=INTERPRET)).total() == 0


def test_integers_are_declined():
    with pytest.raises(UnsupportedError, match="no weights of dtype int8"):
        linear(tokens(1), jnp.ones((3, _K), jnp.int8), policy=KernelPolicy("pallas"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_equals_plain_jax(dtype):
    x, weight, bias = tokens(2, dtype), plain(9, dtype), jnp.arange(9, dtype=jnp.float32)
    residual = jnp.ones((2, 9), dtype)
    run = lambda policy: linear(x, weight, bias, residual=residual, policy=policy)  # noqa: E731
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    found, expected = (jax.jit(run, static_argnums=0)(policy) for policy in (INTERPRET, XLA))
    assert found.dtype == expected.dtype
    wide = lambda y: np.asarray(y, np.float32)  # noqa: E731
    assert_allclose(wide(found), wide(expected), rtol=tolerance, atol=tolerance)


def test_packed_and_plain_weights_take_a_launch_each():
    x, norm = tokens(1), Norm(jnp.linspace(0.5, 1.5, _K), 1e-5)
    weights = [plain(3), packed(4), plain(6)]
    biases = [jnp.ones(3), None, None]
    projections = [Projection(w, b) for w, b in zip(weights, biases, strict=True)]
    run = lambda policy: linears(x, projections, norm=norm, policy=policy)  # noqa: E731
    assert launches(lambda: run(INTERPRET)) == {"plain_matvec_": 1, "quantized_matvec_": 1}
    run = jax.jit(run, static_argnums=0)
    for found, expected in zip(run(INTERPRET), run(XLA), strict=True):
        assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [("plain plain", (1, 0)), ("packed packed", (0, 1)), ("plain packed", (1, 1))],
)
def test_gate_and_up_take_a_launch_together_if_alike(kinds, expected):
    make = {"plain": lambda: plain(8), "packed": lambda: packed(8)}
    gate, up = (Projection(make[kind]()) for kind in kinds.split())
    x, norm = tokens(2), Norm(jnp.ones(_K), 1e-5)
    run = lambda policy: gated_linear(x, gate, up, "silu", norm=norm, policy=policy)  # noqa: E731
    counted = launches(lambda: run(INTERPRET))
    assert (counted["plain_matvec_"], counted["quantized_matvec_"]) == expected
    if kinds == "plain plain":
        run = jax.jit(run, static_argnums=0)
        assert_allclose(run(INTERPRET), run(XLA), rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_plain_jax():
    x, norm, bias = tokens(2), jnp.linspace(0.5, 1.5, _K), jnp.ones(6)

    def gradients(policy):
        def loss(x, norm, weights, bias):
            scaled = Norm(norm, 1e-5)
            projections = [Projection(weights[0], bias), Projection(weights[1])]
            y = linears(x, projections, norm=scaled, policy=policy)
            hidden = gated_linear(x, *projections, "silu", norm=scaled, policy=policy)
            residual = linear(x, weights[0], residual=hidden, policy=policy)
            return sum(jnp.sum(jnp.sin(a)) for a in (*y, hidden, residual))

        weights = [plain(6), plain(6, seed=1)]
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(x, norm, weights, bias)

    found, expected = jax.tree.leaves(gradients(INTERPRET)), jax.tree.leaves(gradients(XLA))
    for a, b in zip(found, expected, strict=True):
        assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_packed_weights_have_the_gradient_of_plain_jax():
    weight = packed(4)

    def gradient(policy):
        loss = lambda x: jnp.sum(jnp.sin(linear(x, weight, policy=policy)))  # noqa: E731
        return jax.jit(jax.grad(loss))(tokens(1))

    assert_allclose(gradient(INTERPRET), gradient(XLA), rtol=1e-3, atol=1e-3)
