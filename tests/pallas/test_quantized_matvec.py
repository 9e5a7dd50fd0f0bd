"""The integer kernels against f64 products of the exact weights, interpreted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.pallas.pack_activations import pack_activations, pack_activations_reference
from rfjax.pallas.quantized_matvec import Config, heuristic, quantized_matvec
from rfjax.quant.formats import dequantize_numpy
from rfjax.quant.layout import LAYOUTS
from rfjax.quant.qtensor import pack_numpy
from rfjax.quant.types import BLOCK_SIZES, GGMLType

pytestmark = pytest.mark.quick_compile

pack_reference = jax.jit(pack_activations_reference)

TOLERANCE = 1e-4
"""Relative error (norms) against f64; measured 1e-5 to 3e-5."""


def random_raw(type: GGMLType, n: int, k: int, seed: int) -> np.ndarray:
    """Random blocks with scales of one magnitude."""
    rng = np.random.default_rng(seed)
    layout, (elements, size) = LAYOUTS[type], BLOCK_SIZES[type]
    raw = rng.integers(0, 256, (n, k // elements, size)).astype(np.uint8)
    start = layout.scale_bytes
    if layout.scale == "e":
        raw[..., start] = rng.integers(118, 126, raw.shape[:-1])
        return raw
    for at in (start, start + 2) if layout.has_minimum else (start,):
        scales = rng.uniform(0.001, 0.01, raw.shape[:-1]).astype(np.float16)
        raw[..., at : at + 2] = scales.view(np.uint8).reshape(*raw.shape[:-1], 2)
    return raw


def case(type: GGMLType, n: int, k: int, m: int, seed: int):
    """A packed weight, activations, and their product in f64."""
    raw = random_raw(type, n, k, seed)
    x = np.random.default_rng(seed + 1).standard_normal((m, k)).astype(np.float32)
    weight = dequantize_numpy(raw, type, (n, k)).astype(np.float64)
    return pack_numpy(raw, type), jnp.asarray(x), x.astype(np.float64) @ weight.T


def error(got, want) -> float:
    got = np.asarray(got, np.float64)
    assert got.shape == want.shape
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize("type", LAYOUTS, ids=lambda type: type.name)
def test_every_type(type):
    # 21 rows are no multiple of a tile; 768 leaves lanes idle in the last chunk of columns.
    weight, x, want = case(type, 21, 768, 1, seed=type)
    packed = pack_reference(x)
    config = Config(rows=4, groups=8, columns=2, warps=1)
    (got,) = quantized_matvec(
        packed, [weight], out_dtype=jnp.float32, config=config, target="interpret"
    )
    assert error(got, want) < TOLERANCE


@pytest.mark.parametrize(
    ("n", "k", "m"), [(131, 320, 1), (1, 32, 1), (3, 64, 5), (9, 32, 16), (320, 96, 1)]
)
def test_odd_shapes(n, k, m):
    weight, x, want = case(GGMLType.Q5_1, n, k, m, seed=n)
    packed = pack_activations(x, target="interpret")
    (got,) = quantized_matvec(packed, [weight], out_dtype=jnp.float32, target="interpret")
    assert error(got, want) < TOLERANCE


def test_weights_of_several_types_share_a_launch():
    cases = [
        case(type, n, 256, 3, seed=5) for type, n in ((GGMLType.Q4_K, 24), (GGMLType.Q6_K, 10))
    ]
    x = cases[0][1]
    biases = [None, jnp.arange(10, dtype=jnp.float32)]
    outputs = quantized_matvec(
        pack_reference(x),
        [weight for weight, _, _ in cases],
        biases=biases,
        out_dtype=jnp.float32,
        target="interpret",
    )
    assert error(outputs[0], cases[0][2]) < TOLERANCE
    assert error(outputs[1], cases[1][2] + np.arange(10)) < TOLERANCE


def test_residual_and_gate():
    gate, x, want_gate = case(GGMLType.Q4_0, 12, 128, 2, seed=1)
    up, _, _ = case(GGMLType.Q8_0, 12, 128, 2, seed=2)
    packed = pack_reference(x)
    (plain_up,) = quantized_matvec(packed, [up], out_dtype=jnp.float32, target="interpret")
    (got,) = quantized_matvec(
        packed, [gate, up], gated=jax.nn.silu, out_dtype=jnp.float32, target="interpret"
    )
    want = np.asarray(jax.nn.silu(jnp.asarray(want_gate, jnp.float32))) * np.asarray(plain_up)
    assert error(got, want.astype(np.float64)) < TOLERANCE
    residual = jnp.ones((2, 12), jnp.float32)
    (got,) = quantized_matvec(
        packed, [gate], residual=residual, out_dtype=jnp.float32, target="interpret"
    )
    assert error(got, want_gate + 1) < TOLERANCE


@pytest.mark.parametrize("n", [1, 3, 4096, 28672])
@pytest.mark.parametrize("k", [32, 96, 320, 768, 896, 4096, 5120, 11008, 14336, 16384])
def test_the_heuristic_always_answers(n, k):
    for m, target in ((1, "cuda"), (3, "gfx9"), (16, "gfx11")):
        config = heuristic(n, k, m, target)
        assert config.rows <= n
        for size in (config.rows, config.groups, config.columns, config.warps):
            assert size & (size - 1) == 0 and size > 0
