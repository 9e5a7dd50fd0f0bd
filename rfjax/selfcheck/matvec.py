"""Self-checks of products with rows of activations, against f64 products of exact weights.

Activations are packed by their kernel on the way, as in a model.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rfjax.errors import UnsupportedError
from rfjax.models.launches import Launch
from rfjax.ops.dispatch import KERNELS, KernelPolicy
from rfjax.ops.kernel_product import (
    GROUPED_KERNEL,
    KERNEL,
    MATMUL_KERNEL,
    PLAIN_KERNEL,
    target_of_product,
)
from rfjax.ops.linear import Norm, Projection, gated_linear, linear, linears
from rfjax.ops.moe import expert_ffn
from rfjax.quant.formats import dequantize_numpy
from rfjax.quant.layout import LAYOUTS
from rfjax.quant.qtensor import QTensor, Weight, pack, pack_numpy
from rfjax.quant.random_blocks import with_scales
from rfjax.quant.types import BLOCK_SIZES, NATIVE_DTYPES, GGMLType
from rfjax.selfcheck.case import CheckCase, Trial, relative_error

_LIMIT = 1e-4
"""Of results in f32; the kernels' errors are 1e-5 to 3e-5."""

_ROUNDED = {"float32": _LIMIT, "float16": 1e-3, "bfloat16": 6e-3}
"""Of results in a narrower dtype, which are rounded once."""

_EXACT_ROWS = 16
"""Rows of activations up to which kernels multiply without rounding the weights."""

_BY_NAME = KernelPolicy("pallas")
_EPS = 1e-5

ODD = (67, 1792)
"""An odd number of rows, and seven columns of a layout: neither fills a tile."""

WIDTH = 4096
"""Of 8B models."""

ROWS = (1, 4, 16, 64, 256)
"""Rows of activations that models are tried with, of which a kernel takes some: kernels differ in
what they do with few and with many."""

_DIFFERENT = 67
"""Rows of a matrix as large as a model's before they repeat: no power of two, so that a tile and
its neighbour differ."""


def matvec_cases(
    types: Iterable[GGMLType], dtype: str, *, odd: tuple[int, int] = ODD, width: int = WIDTH
) -> Iterator[CheckCase]:
    """A few shapes a type.

    Args:
        types: of weights; those without a kernel are left out.
        dtype: of the activations.
        odd: rows and columns of a matrix that fill no tiles.
        width: columns of the others.
    """
    for type in types:
        if type in LAYOUTS or type in NATIVE_DTYPES:
            yield _plain(type, *odd, 1, dtype)
            for m in (3, 16, 32, 200):
                if kernel_for((type,), width, m, dtype) is not None:
                    yield _plain(type, 128, width, m, dtype)
            yield _gated(type, 64, width, dtype)


def launch_cases(launches: Sequence[Launch], dtype: str) -> Iterator[CheckCase]:
    """What a model meets: its own launches, at the sizes by which their settings are found.

    One row of activations is tried with every launch. For more rows a few launches do, others each
    time, that together have all types.
    """
    for turn, m in enumerate(ROWS):
        missing = {type for launch in launches for type in launch.types}
        for i in range(len(launches)):
            launch = launches[(i + turn) % len(launches)]
            wanted = m == 1 or not missing.isdisjoint(launch.types)
            if wanted and kernel_for(launch.types, launch.k, m, dtype) is not None:
                missing.difference_update(launch.types)
                yield launch_case(launch, m, dtype)


def kernel_for(
    types: Sequence[GGMLType], k: int, m: int, dtype: str
) -> tuple[str, KernelPolicy] | None:
    """The kernel that multiplies `m` rows of activations with weights of these types here.

    Returns:
        Its name as `CheckCase` has it, and the policy that takes it and no other; None where plain
        JAX multiplies.
    """
    for name in KERNELS["linear"]:
        others = [(other, f"{name} is asked") for other in KERNELS["linear"] if other != name]
        policy = KernelPolicy("pallas", disabled=tuple(others))
        try:
            targets = [
                target_of_product(m, _shape_of(type, k), policy, jnp.dtype(dtype)) for type in types
            ]
        except UnsupportedError:
            continue
        if None not in targets:
            return f"{name}:{_joined(types)}", policy
    return None


def launch_case(launch: Launch, m: int, dtype: str) -> CheckCase:
    """The products of one launch with `m` rows of activations.

    The matrices are made on the device, from a few rows that repeat: the launch is as large as the
    model's, and takes the settings that it will take there.
    """
    kernel, policy = _known_kernel(launch.types, launch.k, m, dtype)
    alone = len(launch.types) == 1
    activation = "silu" if launch.gated and not alone else None
    repeats = [np.arange(n, dtype=np.int32) % _DIFFERENT for n in launch.sizes]

    def make(rng: np.random.Generator) -> Trial:
        pairs = [
            _weight(rng, type, min(n, _DIFFERENT), launch.k)
            for type, n in zip(launch.types, launch.sizes, strict=True)
        ]
        x = _rounded(rng.standard_normal((m, launch.k)), dtype)
        norm = _rounded(rng.uniform(0.5, 1.5, launch.k))
        residual = _rounded(rng.standard_normal((m, launch.sizes[0])))
        wide = x.astype(np.float64)
        if not alone:
            wide = wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + _EPS) * norm
        expected = [
            (wide @ values.T)[:, rows] for (_, values), rows in zip(pairs, repeats, strict=True)
        ]
        if alone:
            expected = [expected[0] + residual]
        if activation is not None:
            expected = [expected[0] / (1 + np.exp(-expected[0])) * expected[1]]

        def function(x, norm, residual, repeats, *few):
            weights = [_repeated(weight, rows) for weight, rows in zip(few, repeats, strict=True)]
            if alone:
                wide = jnp.dtype("float32")
                return [linear(x, weights[0], residual=residual, out_dtype=wide, policy=policy)]
            projections, before = [Projection(w) for w in weights], Norm(norm, _EPS)
            if activation is None:
                return linears(x, projections, norm=before, policy=policy)
            gate, up = projections
            return [gated_linear(x, gate, up, activation, norm=before, policy=policy)]

        arguments = (x, norm, residual, repeats, *(weight for weight, _ in pairs))
        return Trial(function, arguments, lambda found: _error(found, expected))

    limit = _limit(kernel, m, dtype) if alone else _ROUNDED[dtype]
    parts = zip(launch.sizes, launch.types, strict=True)
    weights = " + ".join(f"{n} {type.name}" for n, type in parts)
    gated = ", gated" if activation is not None else ""
    return CheckCase(kernel, f"{weights} x {launch.k}{gated}, rows {m}, {dtype}", limit, make)


def _error(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """The largest relative error of any result; NaN where one has it."""
    errors = [relative_error(f, e) for f, e in zip(found, expected, strict=True)]
    return float(np.max(errors))


def _repeated(weight: Weight, rows: jax.Array, axis: int = 0) -> Weight:
    """The rows of a matrix, or of every matrix of a stack, that are named."""
    return jax.tree.map(lambda plane: jnp.take(plane, rows, axis=axis), weight)


def _plain(type: GGMLType, n: int, k: int, m: int, dtype: str) -> CheckCase:
    """With bias and residual."""
    kernel, policy = _known_kernel((type,), k, m, dtype)

    def make(rng: np.random.Generator) -> Trial:
        weight, values = _weight(rng, type, n, k)
        x = _rounded(rng.standard_normal((m, k)), dtype)
        bias, residual = _rounded(rng.standard_normal(n)), _rounded(rng.standard_normal((m, n)))
        expected = x.astype(np.float64) @ values.T + bias + residual

        def function(x, weight, bias, residual):
            wide = jnp.dtype("float32")
            return linear(x, weight, bias, residual=residual, out_dtype=wide, policy=policy)

        return Trial(
            function,
            (x, weight, bias, residual),
            lambda found: relative_error(found, expected),
        )

    label = f"{n}x{k}, rows {m}, {dtype}"
    return CheckCase(kernel, label, _limit(kernel, m, dtype), make)


def _gated(type: GGMLType, n: int, k: int, dtype: str) -> CheckCase:
    """Two weights in one launch behind a norm, as of a feed-forward network."""
    kernel, policy = _known_kernel((type,), k, 1, dtype)

    def make(rng: np.random.Generator) -> Trial:
        (gate, gate_values), (up, up_values) = (_weight(rng, type, n, k) for _ in range(2))
        x = _rounded(rng.standard_normal((1, k)), dtype)
        norm = _rounded(rng.uniform(0.5, 1.5, k))
        wide = x.astype(np.float64)
        normed = wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + _EPS) * norm
        g, u = normed @ gate_values.T, normed @ up_values.T
        expected = g / (1 + np.exp(-g)) * u

        def function(x, gate, up, norm):
            gate, up = Projection(gate), Projection(up)
            return gated_linear(x, gate, up, "silu", norm=Norm(norm, _EPS), policy=policy)

        return Trial(function, (x, gate, up, norm), lambda found: relative_error(found, expected))

    label = f"norm, gate and up {n}x{k}, {dtype}"
    return CheckCase(kernel, label, _ROUNDED[dtype], make)


@dataclasses.dataclass(frozen=True)
class ExpertsKind:
    """What a model's experts are beside their types and sizes.

    Attributes:
        activation: a name of `rfjax.ops.activation.GATES`.
        biased: every stack has a bias.
    """

    activation: str = "silu"
    biased: bool = False

    def __str__(self) -> str:
        names = [self.activation] if self.activation != "silu" else []
        return ", ".join(names + ["biases"] * self.biased)


_GATES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "silu": lambda g, u: g / (1 + np.exp(-g)) * u,
    "gelu": lambda g, u: g * (1 + np.tanh(0.7978845608 * (g + 0.044715 * g**3))) / 2 * u,
    "relu": lambda g, u: np.maximum(g, 0) * u,
    "relu_squared": lambda g, u: np.maximum(g, 0) ** 2 * u,
    "swiglu_oai": lambda g, u: (
        np.minimum(g, 7)
        / (1 + np.exp(-1.702 * np.minimum(g, 7)))
        * (np.minimum(np.maximum(u, -7), 7) + 1)
    ),
}
"""What is made of gate and up, in f64."""


def experts_case(
    types: Sequence[GGMLType],
    dtype: str,
    sizes: tuple[int, int],
    kind: ExpertsKind = ExpertsKind(),
) -> CheckCase:
    """The experts of two tokens, some of them shared.

    Args:
        types: of the stacks gate, up and down.
        dtype: of the activations.
        sizes: of the input and of an expert's hidden layer.
        kind: what they are beside.
    """
    width, hidden = sizes
    chosen = np.asarray([[3, 0], [2, 3]], np.int32)
    shapes = ((hidden, width), (hidden, width), (width, hidden))
    repeats = [np.arange(n, dtype=np.int32) % _DIFFERENT for n, _ in shapes]

    def make(rng: np.random.Generator) -> Trial:
        stacks = [
            _stack(rng, type, 4, min(n, _DIFFERENT), k)
            for type, (n, k) in zip(types, shapes, strict=True)
        ]
        gate, up, down = (values for _, values in stacks)
        biases = [
            rng.standard_normal((4, min(n, _DIFFERENT))).astype(np.float32) * kind.biased
            for n, _ in shapes
        ]
        of_gate, of_up, of_down = (bias.astype(np.float64)[chosen] for bias in biases)
        x, weights = _rounded(rng.standard_normal((2, width)), dtype), rng.random((2, 2))
        weights = _rounded(weights)
        wide = x.astype(np.float64)
        g = np.einsum("td,tafd->taf", wide, gate[chosen]) + of_gate
        u = np.einsum("td,tafd->taf", wide, up[chosen]) + of_up
        inner = _GATES[kind.activation](g, u)[..., repeats[0]]
        outer = np.einsum("taf,tadf->tad", inner, down[chosen]) + of_down
        expected = np.einsum("ta,tad->td", weights.astype(np.float64), outer)[:, repeats[2]]

        def function(x, weights, chosen, repeats, biases, *few):
            gate, up, down = (
                Projection(_repeated(stack, rows, 1), bias[:, rows] if kind.biased else None)
                for stack, rows, bias in zip(few, repeats, biases, strict=True)
            )
            return expert_ffn(x, weights, chosen, gate, up, down, kind.activation, policy=_BY_NAME)

        arguments = (x, weights, chosen, repeats, biases, *(stack for stack, _ in stacks))
        return Trial(function, arguments, lambda found: relative_error(found, expected))

    name = PLAIN_KERNEL if types[0] in NATIVE_DTYPES else GROUPED_KERNEL
    parts = [f"experts {hidden}x{width}", " + ".join(t.name for t in types), str(kind), dtype]
    label = ", ".join(filter(None, parts))
    return CheckCase(f"{name}:{_joined(types)}", label, _ROUNDED[dtype], make)


def _known_kernel(
    types: Sequence[GGMLType], k: int, m: int, dtype: str
) -> tuple[str, KernelPolicy]:
    """`kernel_for`, or for what no kernel takes here the one that says so."""
    plain = PLAIN_KERNEL if types[0] in NATIVE_DTYPES else KERNEL
    return kernel_for(types, k, m, dtype) or (f"{plain}:{_joined(types)}", _BY_NAME)


def _limit(kernel: str, m: int, dtype: str) -> float:
    """Of results in f32: many rows are multiplied by matrix units, in the activations' dtype."""
    exact = m <= _EXACT_ROWS and not kernel.startswith(MATMUL_KERNEL)
    return _LIMIT if exact else _ROUNDED[dtype]


def _joined(types: Sequence[GGMLType]) -> str:
    return "+".join(dict.fromkeys(type.name for type in types))


@functools.cache
def _shape_of(type: GGMLType, k: int) -> Weight:
    """A matrix without numbers."""
    if type in NATIVE_DTYPES:
        return jax.ShapeDtypeStruct((1, k), NATIVE_DTYPES[type])  # pyright: ignore[reportReturnType]
    elements, size = BLOCK_SIZES[type]
    raw = jax.ShapeDtypeStruct((1, k // elements, size), jnp.uint8)
    return jax.eval_shape(lambda raw: pack(raw, type), raw)


def _weight(rng: np.random.Generator, type: GGMLType, n: int, k: int) -> tuple[Weight, np.ndarray]:
    """A random matrix and its values in f64."""
    if type in NATIVE_DTYPES:
        plain = _rounded(rng.standard_normal((n, k)) * k**-0.5, NATIVE_DTYPES[type])
        return plain, plain.astype(np.float64)  # pyright: ignore[reportReturnType]
    elements, size = BLOCK_SIZES[type]
    raw = rng.integers(0, 256, (n, k // elements, size), dtype=np.uint8)
    raw = np.asarray(with_scales(raw, type, k**-0.5))
    return pack_numpy(raw, type), dequantize_numpy(raw, type, (n, k)).astype(np.float64)


def _stack(
    rng: np.random.Generator, type: GGMLType, count: int, n: int, k: int
) -> tuple[Weight, np.ndarray]:
    """Random matrices and their values in f64, stacked."""
    weight, values = _weight(rng, type, count * n, k)
    apart = lambda plane: plane.reshape(count, n, *plane.shape[1:])  # noqa: E731
    if isinstance(weight, QTensor):
        planes = {name: apart(plane) for name, plane in weight.planes.items()}
        return QTensor(planes, type), apart(values)
    return apart(weight), apart(values)


def _rounded(values: np.ndarray, dtype: str = "float32") -> np.ndarray:
    return values.astype(jnp.dtype(dtype))
