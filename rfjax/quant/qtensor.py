"""Quantized weights as they stay on a device: packed planes, and the type that gives them sense."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import NamedSharding

from rfjax.quant.layout import GROUP, LAYOUTS
from rfjax.quant.packing import pack_planes, unpack_planes
from rfjax.quant.types import BLOCK_SIZES, GGMLType
from rfjax.typing import Array, Float, Int, UInt8


@struct.dataclass
class QTensor:
    """A matrix `[N, K]`, or a stack of them `[E, N, K]`, in one GGML type.

    A pytree whose leaves are the planes: jit, shard_map and donation treat it like any other
    group of arrays. The shape follows from the planes, so that a shard of a tensor is a tensor.
    """

    planes: dict[str, Array]
    """Plane by name (see `rfjax.quant.layout`)."""

    type: GGMLType = struct.field(pytree_node=False)

    sharding: NamedSharding | None = struct.field(pytree_node=False, default=None)
    """How the matrix is spread over a mesh, by rows and columns; None on one device, and for a
    share, an expert or rows of a tensor that is spread."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`[N, K]` or `[E, N, K]`."""
        if self.type not in LAYOUTS:
            *leading, blocks, _ = self.planes["raw"].shape
            return (*leading, blocks * BLOCK_SIZES[self.type][0])
        name = LAYOUTS[self.type].low
        shape = self.planes[name].shape
        if name == "q8":
            *leading, groups, _, columns, _ = shape
        else:
            *leading, groups, columns, _ = shape
            groups = 2 * groups if name == "q2" else groups
        return (*leading, groups * columns * GROUP)

    @property
    def ndim(self) -> int:
        """Number of dimensions of the matrix or stack."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all planes."""
        return sum(plane.size * plane.dtype.itemsize for plane in self.planes.values())

    def __getitem__(self, index) -> "QTensor":
        """An expert of a stack, or rows of a matrix: the leading axis of every plane, indexed."""
        return QTensor({name: plane[index] for name, plane in self.planes.items()}, self.type)


Weight = Array | QTensor
"""A weight matrix: plain numbers, or packed."""


def packed_leaves(tree: Any) -> list[QTensor]:
    """The packed tensors of a tree of weights."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, QTensor))
    return [leaf for leaf in leaves if isinstance(leaf, QTensor)]


def has_packed(tree: Any) -> bool:
    """Whether a tree of weights holds packed tensors."""
    return bool(packed_leaves(tree))


def pack(raw: UInt8[Array, "*N blocks bytes"], type: GGMLType) -> QTensor:
    """Re-order a tensor's blocks into planes; traceable, and jitted by callers.

    Args:
        raw: uint8 `[..., N, blocks of a row, bytes of a block]`, as they stand in the file.
        type: its GGML type, any quantized one.
    """
    with jax.named_scope(f"pack_{type.name.lower()}"):
        return QTensor(pack_planes(raw, type, jnp), type)


def pack_numpy(raw: np.ndarray, type: GGMLType) -> QTensor:
    """`pack` on the host, with NumPy; the planes are NumPy arrays."""
    return QTensor(pack_planes(raw, type, np), type)


def dequantize_packed(weight: QTensor, dtype: jnp.dtype = jnp.float32) -> Float[Array, "*N K"]:
    """The values of a packed tensor: exactly ggml's in float32, rounded from that to `dtype`."""
    with jax.named_scope(f"dequantize_{weight.type.name.lower()}"):
        return unpack_planes(weight.planes, weight.type, jnp).astype(dtype)


def take_rows(weight: Weight, ids: Int[Array, " T"], dtype: jnp.dtype) -> Float[Array, "T K"]:
    """Rows of a matrix, only those dequantized. Ids outside `[0, N)` give rows of NaN."""
    get = lambda plane, fill: plane.at[ids].get(  # noqa: E731
        mode="fill", fill_value=fill, wrap_negative_indices=False
    )
    if not isinstance(weight, QTensor):
        return get(weight, jnp.nan).astype(dtype)
    rows = QTensor({name: get(plane, 0) for name, plane in weight.planes.items()}, weight.type)
    known = (ids >= 0) & (ids < weight.shape[0])
    values = dequantize_packed(rows, dtype)
    return jnp.where(known[:, None], values, jnp.asarray(jnp.nan, dtype))
