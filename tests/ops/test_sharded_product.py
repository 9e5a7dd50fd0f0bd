"""Products by shares of a packed weight: plain JAX and the kernel, split by rows and columns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rfjax.ops.dispatch import KernelPolicy
from rfjax.ops.linear import linear
from rfjax.ops.sharded_product import sharded_product
from rfjax.quant.layout import LAYOUTS, PLANE_AXES
from rfjax.quant.qtensor import QTensor, dequantize_packed, pack_numpy
from rfjax.quant.types import BLOCK_SIZES, GGMLType
from rfjax.sharding import make_mesh, plane_spec

pytestmark = pytest.mark.quick_compile

KERNEL = KernelPolicy(implementation="pallas")
SPLITS = [("model", None), (None, "model"), (None, None)]


def weights(type, rows, k):
    """A packed matrix on the host with small scales."""
    elements, nbytes = BLOCK_SIZES[type]
    raw = np.random.default_rng(0).integers(0, 256, (rows, k // elements, nbytes), dtype=np.uint8)
    layout = LAYOUTS.get(type)
    at = 0 if layout is None else layout.scale_bytes
    for offset in (at, at + 2) if layout is not None and layout.scale == "dm" else (at,):
        raw[..., offset : offset + 2] = np.asarray([0x00, 0x1C], np.uint8)  # f16: 2^-8
    return pack_numpy(raw, type)


def spread(weight, mesh, split):
    sharding = NamedSharding(mesh, PartitionSpec(*split))
    planes = {}
    for name, plane in weight.planes.items():
        layout = LAYOUTS.get(weight.type)
        axes = PLANE_AXES[name] if layout is None else layout.plane_axes(name)
        spec = plane_spec(sharding.spec, axes)
        planes[name] = jax.device_put(plane, NamedSharding(mesh, spec))
    return QTensor(planes, weight.type, sharding)


def nmse(found, expected):
    expected = np.asarray(expected, np.float64)
    return ((np.asarray(found) - expected) ** 2).sum() / (expected**2).sum()


@pytest.mark.parametrize(
    ("type", "tokens", "split"),
    [
        (GGMLType.Q4_K, 3, SPLITS[0]),
        (GGMLType.Q4_K, 4, SPLITS[1]),
        (GGMLType.Q8_0, 3, SPLITS[1]),
        (GGMLType.Q8_0, 4, SPLITS[2]),
        (GGMLType.IQ2_S, 4, SPLITS[0]),
        (GGMLType.IQ2_S, 3, SPLITS[1]),
    ],
)
def test_shares_give_the_whole_product(type, tokens, split):
    weight = weights(type, 24, 1024)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((tokens, 1024), np.float32))
    expected = jax.jit(linear)(x, weight)
    on_mesh = spread(weight, make_mesh(data=2, model=4), split)
    product = lambda x, w: linear(x, w, policy=KernelPolicy("xla"))  # noqa: E731
    found = jax.jit(lambda x, w: sharded_product(product, x, w))(x, on_mesh)
    assert nmse(found, expected) <= 1e-12


@pytest.mark.parametrize("split", SPLITS, ids=["rows", "columns", "neither"])
def test_the_kernel_runs_on_each_share(split):
    """Interpreted here: its own error is that of 16-bit activations."""
    weight = weights(GGMLType.Q4_0, 64, 512)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 512), np.float32))
    bias = jnp.arange(64, dtype=jnp.float32)
    whole = np.asarray(jax.jit(dequantize_packed)(weight), np.float64)
    expected = np.asarray(x, np.float64) @ whole.T
    on_mesh = spread(weight, make_mesh(model=2), split)
    found = jax.jit(lambda x, w: linear(x, w, bias, policy=KERNEL))(x, on_mesh)
    assert nmse(np.asarray(found) - np.asarray(bias), expected) <= 1e-8


def test_the_compiled_product_gathers_no_weight():
    weight = spread(weights(GGMLType.Q4_0, 64, 512), make_mesh(model=2), ("model", None))
    x = jnp.ones((2, 512), jnp.float32)
    apply = jax.jit(lambda x, w: linear(x, w, policy=KERNEL))
    text = apply.lower(x, weight).compile().as_text()
    assert "all-gather" not in text and "all-to-all" not in text
