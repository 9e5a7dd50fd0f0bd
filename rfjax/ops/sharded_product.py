"""A product with a packed weight that is spread over a mesh: each device multiplies its share.

XLA partitions plain operations by itself, but gathers the operands of a kernel, whose insides it
does not know; therefore kernels run per share.
"""

from collections.abc import Callable

import jax
from jax.sharding import Mesh, PartitionSpec

from rfjax.quant.layout import LAYOUTS, PLANE_AXES
from rfjax.quant.qtensor import QTensor, Weight
from rfjax.sharding import batch_sharding, plane_spec
from rfjax.typing import Array, Float

Product = Callable[[Array, QTensor], Array]


def is_spread(weight: Weight) -> bool:
    """Whether a weight lies on a mesh, split or replicated."""
    return isinstance(weight, QTensor) and weight.sharding is not None


def sharded_product(
    product: Product, x: Float[Array, "T in"], weight: QTensor
) -> Float[Array, "T out"]:
    """`product(x, weight)` from the shares of a weight that is split by rows, columns or not.

    Rows give each device outputs of its own. Columns give each a part of every sum, which are
    added at the end; so the product must be linear and return f32.

    Args:
        product: of tokens `[T, in]` and a packed weight `[out, in]`, f32 `[T, out]`.
        x: tokens; spread over "data" where that divides them.
        weight: `[out, in]`, with its sharding.
    """
    assert weight.sharding is not None and isinstance(weight.sharding.mesh, Mesh)
    mesh = weight.sharding.mesh
    rows, columns = weight.sharding.spec
    (tokens,) = batch_sharding(mesh, x.shape[0]).spec
    axes = {
        name: LAYOUTS[weight.type].plane_axes(name) if weight.type in LAYOUTS else PLANE_AXES[name]
        for name in weight.planes
    }
    planes = {name: plane_spec(weight.sharding.spec, split) for name, split in axes.items()}

    def share(x: Array, planes: dict[str, Array]) -> Array:
        y = product(x, QTensor(planes, weight.type))
        return y if columns is None else jax.lax.psum(y, columns)

    apply = jax.shard_map(
        share,
        mesh=mesh,
        in_specs=(PartitionSpec(tokens, columns), planes),
        out_specs=PartitionSpec(tokens, rows),
        check_vma=False,  # kernels do not say over which axes they vary
    )
    return apply(x, weight.planes)
