"""Products on the matrix units from packed weights, against f64 products, interpreted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.pallas import packed_matmul as module
from rfjax.pallas.bf16_weights import fewest_groups
from rfjax.pallas.packed_matmul import Config, arranged, heuristic, packed_matmul
from rfjax.quant.formats import dequantize_numpy
from rfjax.quant.layout import LAYOUTS
from rfjax.quant.qtensor import dequantize_packed, pack, pack_numpy
from rfjax.quant.random_blocks import with_scales
from rfjax.quant.types import BLOCK_SIZES, GGMLType

pytestmark = pytest.mark.quick_compile

TOLERANCE = 4e-3
"""Relative error (norms) against f64 of operands in bfloat16; measured 1.7e-3 to 2.8e-3."""


def case(type: GGMLType, n: int, k: int, m: int, seed: int):
    """A packed weight, activations, and their product in f64."""
    rng = np.random.default_rng(seed)
    block, size = BLOCK_SIZES[type]
    bits = rng.integers(0, 256, (n, k // block, size), np.uint8)
    raw = np.asarray(with_scales(bits, type, k**-0.5))
    x = rng.standard_normal((m, k)).astype(np.float32)
    weight = dequantize_numpy(raw, type, (n, k)).astype(np.float64)
    return pack_numpy(raw, type), jnp.asarray(x), x.astype(np.float64) @ weight.T


def error(got, want) -> float:
    got = np.asarray(got, np.float64)
    assert got.shape == want.shape
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def product(x, weights, **options):
    options = {"out_dtype": jnp.float32, "target": "interpret", **options}
    return packed_matmul(x, weights, **options)


@pytest.mark.parametrize("type", LAYOUTS, ids=lambda type: type.name)
def test_every_type(type):
    # Neither 21 rows nor 18 of activations nor 5 columns fill their tiles.
    weight, x, want = case(type, 21, 1280, 18, seed=int(type))
    (got,) = product(x, [weight], config=Config(16, 16, 4, 2, 1, 4, 1))
    assert error(got, want) < TOLERANCE


@pytest.mark.parametrize(
    ("n", "k", "m"), [(131, 320, 17), (5, 32, 3), (40, 64, 20), (96, 96, 130), (16, 2048, 1)]
)
def test_odd_shapes(n, k, m):
    weight, x, want = case(GGMLType.Q5_1, n, k, m, seed=n)
    (got,) = product(x, [weight])
    assert error(got, want) < TOLERANCE


@pytest.mark.parametrize("splits", [1, 4])
def test_weights_of_several_types_share_a_launch(splits):
    sizes = ((GGMLType.Q4_K, 40), (GGMLType.Q6_K, 16), (GGMLType.Q8_0, 5))
    cases = [case(type, n, 1024, 20, seed=5) for type, n in sizes]
    x = cases[0][1]
    wants = [
        np.asarray(x, np.float64) @ np.asarray(dequantized(weight), np.float64).T
        for weight, _, _ in cases
    ]
    biases = [None, jnp.arange(16, dtype=jnp.float32), None]
    config = Config(16, 16, 4, 2, splits, 4, 1)
    outputs = product(x, [weight for weight, _, _ in cases], biases=biases, config=config)
    wants[1] = wants[1] + np.arange(16)
    for got, want in zip(outputs, wants, strict=True):
        assert error(got, want) < TOLERANCE


def dequantized(weight):
    planes = {name: jnp.asarray(plane) for name, plane in weight.planes.items()}
    return dequantize_packed(weight.replace(planes=planes))


@pytest.mark.parametrize("splits", [1, 2])
def test_residual_and_gate(splits):
    config = Config(16, 16, 4, 1, splits, 4, 1)
    gate, x, want_gate = case(GGMLType.Q4_0, 24, 512, 17, seed=1)
    up, _, _ = case(GGMLType.Q8_0, 24, 512, 17, seed=2)
    want_up = np.asarray(x, np.float64) @ np.asarray(dequantized(up), np.float64).T
    (got,) = product(x, [gate, up], gated=jax.nn.silu, config=config)
    want = want_gate / (1 + np.exp(-want_gate)) * want_up
    assert error(got, want) < 2 * TOLERANCE  # two rounded factors
    residual = jnp.ones((17, 24), jnp.bfloat16)
    options = {"residual": residual, "biases": [jnp.arange(24.0)]}
    (got,) = product(x, [gate], config=config, **options)
    assert error(got, want_gate + 1 + np.arange(24)) < TOLERANCE
    (rounded,) = product(x, [gate], config=config, out_dtype=jnp.bfloat16, **options)
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(rounded, np.float32), got, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("target", ["cuda", "gfx9"])
def test_activations_are_only_moved(target):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((17, 5 * 256)), jnp.bfloat16)
    config = Config(16, 16, 4, 1, 1, 4, 1)
    moved = arranged(x, config, target)
    assert moved.shape == (2, 8, 8, 32, 16)
    numbers = np.asarray(x, np.float32)
    want = np.sort(np.concatenate([numbers.ravel(), np.zeros(moved.size - x.size)]))
    np.testing.assert_array_equal(np.sort(np.asarray(moved, np.float32).ravel()), want)


@pytest.mark.parametrize("n", [1, 3, 48, 4096, 28672])
@pytest.mark.parametrize("k", [32, 96, 320, 768, 4096, 11008, 14336])
def test_the_heuristic_always_answers(n, k):
    for m in (1, 17, 64, 256, 1000):
        for target in ("cuda", "gfx9", "gfx11"):
            config = heuristic(n, k, m, target)
            for size in (config.rows, config.tokens, config.columns, config.groups, config.warps):
                assert size & (size - 1) == 0 and size > 0
            assert min(config.rows, config.tokens) >= 16
            assert config.columns >= 4
            assert config.splits & (config.splits - 1) == 0


@pytest.mark.parametrize("room", [99, 163, 227])
@pytest.mark.parametrize("type", LAYOUTS, ids=lambda type: type.name)
def test_what_is_chosen_fits_into_shared_memory(type, room, monkeypatch):
    """Whether one weight's tile is held, or a gate's two."""
    monkeypatch.setattr(module, "shared_memory", lambda target: room << 10)
    block, size = BLOCK_SIZES[type]
    raw = jax.ShapeDtypeStruct((14336, 4096 // block, size), jnp.uint8)
    weights = [jax.eval_shape(lambda raw: pack(raw, type), raw)] * 2
    groups = fewest_groups(LAYOUTS[type])
    for m in (5, 17, 64, 100, 128, 256):
        for gated in (False, True):
            config = module._chosen((14336, 4096, m), weights, groups, gated, "cuda")
            config = dataclasses.replace(config, groups=max(config.groups, groups))
            n_results = 2 if gated and config.tokens <= module._GATED_TOKENS else 1
            assert module._shared_bytes(config, weights, n_results) <= room << 10
            assert config.rows >= 16 and config.tokens >= 16
            if n_results == 2:
                assert config.rows <= 64


def abstract(type: GGMLType, n: int, k: int):
    block, size = BLOCK_SIZES[type]
    raw = jax.ShapeDtypeStruct((n, k // block, size), jnp.uint8)
    return jax.eval_shape(lambda raw: pack(raw, type), raw)


def test_few_rows_are_cut_into_many_small_programs_on_nvidia(monkeypatch):
    monkeypatch.setattr(module, "shared_memory", lambda target: 227 << 10)

    def chosen(type, n, k, m, count=1):
        weights = [abstract(type, n, k)] * count
        return module._chosen((n, k, m), weights, 1, count == 2, "cuda")

    for m in (5, 16):
        assert chosen(GGMLType.Q4_0, 28672, 4096, m) == Config(64, 16, 8, 1, 1, 2, 2)
        assert chosen(GGMLType.Q4_K, 28672, 4096, m) == Config(32, 16, 8, 2, 1, 2, 1)
        assert chosen(GGMLType.Q6_K, 28672, 4096, m) == Config(32, 16, 8, 2, 1, 2, 2)
        assert chosen(GGMLType.Q4_K, 14336, 4096, m, count=2) == Config(32, 16, 8, 2, 1, 2, 1)
        assert chosen(GGMLType.Q4_0, 4096, 14336, m).splits == 4
    assert chosen(GGMLType.Q4_K, 5, 256, 8).rows == 16
    assert chosen(GGMLType.Q4_K, 28672, 4096, 17).warps == 4
