"""Products with chosen matrices of a stack against f64, interpreted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.ops.activation import GATES, IN_KERNELS, gated
from rfjax.pallas.grouped_matvec import grouped_matvec, heuristic
from rfjax.pallas.pack_activations import pack_activations_reference
from rfjax.quant.formats import dequantize_numpy
from rfjax.quant.layout import LAYOUTS, Layout
from rfjax.quant.qtensor import pack
from rfjax.quant.types import BLOCK_SIZES, GGMLType

pytestmark = pytest.mark.quick_compile

_N, _EXPERTS = 5, 3

packed = jax.jit(pack, static_argnums=1)
pack_reference = jax.jit(pack_activations_reference)


def _halves(layout: Layout) -> tuple[int, ...]:
    """Where in a block numbers of 16 bits stand."""
    start = layout.scale_bytes
    return () if layout.scale == "e" else (start, start + 2) if layout.has_minimum else (start,)


def stack_of(type: GGMLType, k: int, seed: int = 0):
    """A packed stack `[E, N, K]`, and its values in f64."""
    rng = np.random.default_rng(seed + type)
    layout, (elements, size) = LAYOUTS[type], BLOCK_SIZES[type]
    raw = rng.integers(0, 256, (_EXPERTS, _N, k // elements, size)).astype(np.uint8)
    start = layout.scale_bytes
    if layout.scale == "e":
        raw[..., start] = rng.integers(118, 122, raw.shape[:-1])
    for at in _halves(layout):
        scales = rng.uniform(0.001, 0.01, raw.shape[:-1]).astype(np.float16)
        raw[..., at : at + 2] = scales.view(np.uint8).reshape(*raw.shape[:-1], 2)
    values = dequantize_numpy(raw.reshape(-1, *raw.shape[2:]), type, (_EXPERTS * _N, k))
    return packed(jnp.asarray(raw), type), values.astype(np.float64).reshape(_EXPERTS, _N, k)


def rows(n: int, k: int) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((n, k)).astype(np.float32)


def chosen(x, values, experts):
    """Pair p is row `p // (P / T)` times its expert."""
    repeated = np.repeat(x.astype(np.float64), len(experts) // len(x), axis=0)
    return np.einsum("pk,pnk->pn", repeated, values[experts])


def error(got, want) -> float:
    got = np.asarray(got, np.float64)
    assert got.shape == want.shape
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def test_packed_experts():
    x, experts = rows(2, 768), np.array([2, 0, 1, 1], np.int32)
    stack, values = stack_of(GGMLType.Q4_K, 768)
    got = grouped_matvec(
        pack_reference(jnp.asarray(x)),
        [stack],
        jnp.asarray(experts),
        out_dtype=jnp.float32,
        target="interpret",
    )
    assert error(got, chosen(x, values, experts)) < 1e-4


def test_packed_gate_and_up_of_two_types():
    x, experts = rows(1, 256), np.array([1, 2], np.int32)
    gate, gate_values = stack_of(GGMLType.Q6_K, 256)
    up, up_values = stack_of(GGMLType.Q8_0, 256)
    got = grouped_matvec(
        pack_reference(jnp.asarray(x)),
        [gate, up],
        jnp.asarray(experts),
        gated=GATES["silu"],
        out_dtype=jnp.float32,
        target="interpret",
    )
    want = chosen(x, gate_values, experts)
    assert error(got, want / (1 + np.exp(-want)) * chosen(x, up_values, experts)) < 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_experts(dtype):
    x, experts = rows(3, 33), np.array([0, 2, 2, 1, 0, 1], np.int32)
    gate, up = (jnp.asarray(rows(_EXPERTS * _N, 33).reshape(_EXPERTS, _N, 33) + i) for i in (0, 1))
    gate, up = gate.astype(dtype), up.astype(dtype)
    run = lambda stacks, **options: grouped_matvec(  # noqa: E731
        jnp.asarray(x),
        stacks,
        jnp.asarray(experts),
        out_dtype=jnp.float32,
        target="interpret",
        **options,
    )
    want = [chosen(x, np.asarray(stack, np.float64), experts) for stack in (gate, up)]
    assert error(run([up]), want[1]) < 1e-6
    both = want[0] / (1 + np.exp(-want[0])) * want[1]
    assert error(run([gate, up], gated=GATES["silu"]), both) < 1e-6


def outcome(products, biases, name):
    """Of a gate, in plain JAX, from exact products."""
    inputs = [p + b.astype(np.float64) for p, b in zip(products, biases, strict=True)]
    return np.asarray(gated(*(jnp.asarray(i, jnp.float32) for i in inputs), name))


def test_biases_of_packed_gate_and_up():
    """As in gpt-oss."""
    x, experts = rows(2, 96), np.array([2, 0, 1, 1], np.int32)
    (gate, gate_values), (up, up_values) = (stack_of(GGMLType.MXFP4, 96, seed=i) for i in (0, 1))
    of_gate, of_up = rows(_EXPERTS, _N), rows(_EXPERTS, _N) + 1
    got = grouped_matvec(
        pack_reference(jnp.asarray(x)),
        [gate, up],
        jnp.asarray(experts),
        biases=[jnp.asarray(of_gate), jnp.asarray(of_up)],
        gated=GATES["swiglu_oai"],
        out_dtype=jnp.float32,
        target="interpret",
    )
    products = [chosen(x, values, experts) for values in (gate_values, up_values)]
    assert error(got, outcome(products, (of_gate[experts], of_up[experts]), "swiglu_oai")) < 1e-4


@pytest.mark.parametrize("name", sorted(IN_KERNELS))
def test_gates_and_biases_of_plain_experts(name):
    """A bias of both, of one, and of neither."""
    x, experts = rows(2, 33), np.array([2, 0, 1, 1], np.int32)
    stacks = [rows(_EXPERTS * _N, 33).reshape(_EXPERTS, _N, 33) + i for i in (0.0, 0.1)]
    products = [chosen(x, stack, experts) for stack in stacks]
    both = [rows(_EXPERTS, _N), rows(_EXPERTS, _N) + 1]
    given = ((0, 0), (1, 0), (0, 1), (1, 1)) if name == "swiglu_oai" else ((1, 1),)
    for which in given:
        got = grouped_matvec(
            jnp.asarray(x),
            [jnp.asarray(stack, jnp.float32) for stack in stacks],
            jnp.asarray(experts),
            biases=[jnp.asarray(b) if has else None for b, has in zip(both, which, strict=True)],
            gated=GATES[name],
            out_dtype=jnp.float32,
            target="interpret",
        )
        added = [bias[experts] * has for bias, has in zip(both, which, strict=True)]
        # Kernels do not round GELU to f16, as plain JAX does.
        limit = 1e-3 if name == "gelu" else 1e-5
        assert error(got, outcome(products, added, name)) < limit


def test_the_bias_of_one_stack():
    x, experts, bias = rows(4, 64), np.array([2, 0, 1, 1], np.int32), rows(_EXPERTS, _N)
    stack, values = stack_of(GGMLType.Q8_0, 64)
    got = grouped_matvec(
        pack_reference(jnp.asarray(x)),
        [stack],
        jnp.asarray(experts),
        biases=[jnp.asarray(bias)],
        out_dtype=jnp.float32,
        target="interpret",
    )
    assert error(got, chosen(x, values, experts) + bias[experts]) < 1e-4


@pytest.mark.parametrize("n", [1, 3, 2048])
@pytest.mark.parametrize("k", [32, 320, 768, 896, 1408, 2048, 14336])
def test_the_heuristic_always_answers(n, k):
    config = heuristic(n, k)
    assert config.rows <= n and config.groups * config.columns <= 32
    for size in (config.rows, config.groups, config.columns, config.warps):
        assert size & (size - 1) == 0 and size > 0
