"""Self-checks of products with few rows of activations, against f64 products of exact weights.

Activations are packed by their kernel on the way, as in a model.
"""

from collections.abc import Iterable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from rfjax.ops.dispatch import KernelPolicy
from rfjax.ops.kernel_product import GROUPED_KERNEL, KERNEL, PLAIN_KERNEL
from rfjax.ops.linear import Norm, Projection, gated_linear, linear, linears
from rfjax.ops.moe import expert_ffn
from rfjax.quant.formats import dequantize_numpy
from rfjax.quant.layout import LAYOUTS
from rfjax.quant.qtensor import QTensor, Weight, pack_numpy
from rfjax.quant.random_blocks import with_scales
from rfjax.quant.types import BLOCK_SIZES, NATIVE_DTYPES, GGMLType
from rfjax.selfcheck.case import CheckCase, Trial, relative_error

_LIMIT = 1e-4
"""Of results in f32; the kernels' errors are 1e-5 to 3e-5."""

_ROUNDED = {"float32": _LIMIT, "float16": 1e-3, "bfloat16": 6e-3}
"""Of results in a narrower dtype, which are rounded once."""

_BY_NAME = KernelPolicy("pallas")
_EPS = 1e-5

ODD = (67, 1792)
"""An odd number of rows, and seven columns of a layout: neither fills a tile."""

WIDTH = 4096
"""Of 8B models."""


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
            yield _plain(type, 128, width, 3, dtype)
            yield _gated(type, 64, width, dtype)


def _plain(type: GGMLType, n: int, k: int, m: int, dtype: str) -> CheckCase:
    """With bias and residual."""

    def make(rng: np.random.Generator) -> Trial:
        weight, values = _weight(rng, type, n, k)
        x = _rounded(rng.standard_normal((m, k)), dtype)
        bias, residual = _rounded(rng.standard_normal(n)), _rounded(rng.standard_normal((m, n)))
        expected = x.astype(np.float64) @ values.T + bias + residual

        def function(x, weight, bias, residual):
            wide = jnp.dtype("float32")
            return linear(x, weight, bias, residual=residual, out_dtype=wide, policy=_BY_NAME)

        return Trial(
            function,
            (x, weight, bias, residual),
            lambda found: relative_error(found, expected),
        )

    return CheckCase(_kernel(type), f"{n}x{k}, rows {m}, {dtype}", _LIMIT, make)


def _gated(type: GGMLType, n: int, k: int, dtype: str) -> CheckCase:
    """Two weights in one launch behind a norm, as of a feed-forward network."""

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
            return gated_linear(x, gate, up, "silu", norm=Norm(norm, _EPS), policy=_BY_NAME)

        return Trial(function, (x, gate, up, norm), lambda found: relative_error(found, expected))

    label = f"norm, gate and up {n}x{k}, {dtype}"
    return CheckCase(_kernel(type), label, _ROUNDED[dtype], make)


def together_case(types: Sequence[GGMLType], dtype: str, *, width: int = WIDTH) -> CheckCase:
    """Weights of several types that share a launch, as queries, keys and values do.

    A failure speaks against the kernel as a whole: no single type is to blame.
    """

    def make(rng: np.random.Generator) -> Trial:
        pairs = [_weight(rng, type, 96 - 32 * (i % 2), width) for i, type in enumerate(types)]
        x = _rounded(rng.standard_normal((1, width)), dtype)
        expected = np.concatenate([x.astype(np.float64) @ v.T for _, v in pairs], axis=1)

        def function(x, *weights):
            found = linears(x, [Projection(weight) for weight in weights], policy=_BY_NAME)
            return jnp.concatenate(found, axis=1)

        arguments = (x, *(weight for weight, _ in pairs))
        return Trial(function, arguments, lambda found: relative_error(found, expected))

    label = f"{' + '.join(type.name for type in types)}, {dtype}"
    return CheckCase(KERNEL, label, _ROUNDED[dtype], make)


def experts_case(
    types: Sequence[GGMLType], dtype: str, *, sizes: tuple[int, int] = (2048, 768)
) -> CheckCase:
    """The experts of two tokens, some of them shared.

    Args:
        types: of the stacks gate, up and down.
        dtype: of the activations.
        sizes: of the input and of an expert's hidden layer.
    """
    width, hidden = sizes
    chosen = np.asarray([[3, 0], [2, 3]], np.int32)

    def make(rng: np.random.Generator) -> Trial:
        shapes = ((hidden, width), (hidden, width), (width, hidden))
        stacks = [_stack(rng, t, 4, n, k) for t, (n, k) in zip(types, shapes, strict=True)]
        gate, up, down = (values for _, values in stacks)
        x, weights = _rounded(rng.standard_normal((2, width)), dtype), rng.random((2, 2))
        weights = _rounded(weights)
        wide = x.astype(np.float64)
        g = np.einsum("td,tafd->taf", wide, gate[chosen])
        inner = g / (1 + np.exp(-g)) * np.einsum("td,tafd->taf", wide, up[chosen])
        expected = np.einsum("ta,taf,tadf->td", weights.astype(np.float64), inner, down[chosen])

        def function(x, weights, chosen, gate, up, down):
            return expert_ffn(x, weights, chosen, gate, up, down, "silu", policy=_BY_NAME)

        arguments = (x, weights, chosen, *(stack for stack, _ in stacks))
        return Trial(function, arguments, lambda found: relative_error(found, expected))

    name = PLAIN_KERNEL if types[0] in NATIVE_DTYPES else GROUPED_KERNEL
    label = f"experts {hidden}x{width}, {' + '.join(type.name for type in types)}, {dtype}"
    # Where the types differ, no single one is to blame.
    kernel = f"{name}:{types[0].name}" if len(set(types)) == 1 else name
    return CheckCase(kernel, label, _ROUNDED[dtype], make)


def _kernel(type: GGMLType) -> str:
    return f"{PLAIN_KERNEL if type in NATIVE_DTYPES else KERNEL}:{type.name}"


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
