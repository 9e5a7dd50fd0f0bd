"""How each weight lies on its devices: packed or plain, in which dtype, split how. Sizes only."""

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from rfjax.errors import ConfigError
from rfjax.io.gguf_tensors import TensorInfo
from rfjax.models.launches import Matrices
from rfjax.models.params import Params, ParamSpec, named_leaves
from rfjax.quant.layout import GROUP, LAYOUTS, PLANE_AXES, groups_per_column
from rfjax.quant.qtensor import pack
from rfjax.quant.types import BLOCK_SIZES, NATIVE_DTYPES, GGMLType
from rfjax.sharding import leaf_sharding, plane_spec

logger = logging.getLogger(__name__)

Weights = Literal["packed", "dequantized"]
"""What becomes of weight matrices: they stay as the file has them, or become plain numbers of the
model's dtype."""

_CONVERTED = (GGMLType.I8, GGMLType.I16, GGMLType.I32, GGMLType.I64, GGMLType.F64)
"""Types that become f32 whatever else is asked for."""


@dataclasses.dataclass(frozen=True)
class Plane:
    """One array on the devices.

    Attributes:
        shape: of the whole array.
        dtype: by name.
        sharding: over a mesh, or None for one device.
    """

    shape: tuple[int, ...]
    dtype: str
    sharding: NamedSharding | None

    @property
    def nbytes(self) -> int:
        """Bytes on one device: its share."""
        shape = self.shape if self.sharding is None else self.sharding.shard_shape(self.shape)
        return math.prod(shape) * jnp.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Storage:
    """One leaf of a model.

    Attributes:
        name: of the leaf, as the file names it.
        spec: what the leaf is.
        sources: the file's tensors that it is made of, more than one where experts are apart.
        dtype: of plain numbers; None for a packed leaf.
        sharding: of the whole matrix, by rows and columns, or None for one device.
        planes: the arrays by name; a plain leaf has one, "".
    """

    name: str
    spec: ParamSpec
    sources: tuple[TensorInfo, ...]
    dtype: str | None
    sharding: NamedSharding | None
    planes: Mapping[str, Plane]

    @property
    def type(self) -> GGMLType:
        """The GGML type of the first source."""
        return self.sources[0].type

    @property
    def how(self) -> Literal["copied", "packed", "decoded"]:
        """What loading does with the file's bytes: nothing, re-order them, or make numbers."""
        if self.dtype is None:
            return "packed" if self.type in LAYOUTS else "copied"
        same = all(NATIVE_DTYPES.get(info.type) == self.dtype for info in self.sources)
        return "copied" if same else "decoded"

    @property
    def nbytes(self) -> int:
        """Bytes on one device."""
        return sum(plane.nbytes for plane in self.planes.values())


def resolve_weights(weights: str | None) -> Weights | None:
    """The same, checked.

    Raises:
        ConfigError: neither None nor a name of `Weights`.
    """
    for known in (None, *get_args(Weights)):
        if weights == known:
            return known
    raise ConfigError(
        f"weights: got {weights!r}, expected one of {', '.join(get_args(Weights))}, or None"
    )


def store(
    spec: Params,
    sources: Mapping[str, tuple[TensorInfo, ...]],
    weights: Weights,
    dtype: str,
    mesh: Mesh | AbstractMesh | None,
) -> dict[str, Storage]:
    """How every leaf of a model is held.

    Packed, quantized matrices keep their blocks' bits, and F32, F16 and BF16 ones the file's type;
    dequantized, both become `dtype`. Norms, biases and routers are f32 in either.

    Args:
        spec: of `rfjax.models.params.param_spec`.
        sources: of `rfjax.io.load.check_tensors`.
        weights: packed or dequantized.
        dtype: of the model.
        mesh: devices to spread over, or None for one.
    """
    return {
        name: _store(name, leaf, sources[name], weights, dtype, mesh)
        for name, leaf in named_leaves(spec).items()
    }


def _store(
    name: str,
    spec: ParamSpec,
    sources: tuple[TensorInfo, ...],
    weights: Weights,
    dtype: str,
    mesh: Mesh | AbstractMesh | None,
) -> Storage:
    types = {info.type for info in sources}
    type = sources[0].type
    if spec.wide or types.intersection(_CONVERTED):
        dtype = "float32"
    elif len(types) > 1:
        listed = ", ".join(sorted(t.name for t in types))
        if weights == "packed":
            logger.info("%s is dequantized: its experts have several types, %s", name, listed)
    elif weights == "packed":
        if type not in NATIVE_DTYPES:
            return _packed(name, spec, sources, mesh)
        dtype = NATIVE_DTYPES[type]
    sharding = None
    if mesh is not None:
        sharding = leaf_sharding(mesh, name, spec.shape, spec.axes, spec.units)
    plane = Plane(spec.shape, dtype, sharding)
    return Storage(name, spec, sources, dtype, sharding, {"": plane})


def _packed(
    name: str, spec: ParamSpec, sources: tuple[TensorInfo, ...], mesh: Mesh | AbstractMesh | None
) -> Storage:
    type = sources[0].type
    sharding = None
    if mesh is not None:
        *units, columns = spec.units or (1,) * len(spec.shape)
        units.append(math.lcm(columns, column_elements(type, spec.shape[-1])))
        sharding = leaf_sharding(mesh, name, spec.shape, spec.axes, units)
    planes = {}
    for plane, (shape, dtype) in plane_shapes(type, spec.shape).items():
        split = None
        if mesh is not None and sharding is not None:
            split = NamedSharding(mesh, plane_spec(sharding.spec, plane_axes(type, plane)))
        planes[plane] = Plane(shape, dtype, split)
    return Storage(name, spec, sources, None, sharding, planes)


def matrices_of(storages: Mapping[str, Storage]) -> Matrices:
    """Type and shape of every matrix and stack as it lies on one device."""
    plain = {dtype: type for type, dtype in NATIVE_DTYPES.items()}
    return {
        name: (
            storage.type if storage.dtype is None else plain[storage.dtype],
            storage.spec.shape
            if storage.sharding is None
            else storage.sharding.shard_shape(storage.spec.shape),
        )
        for name, storage in storages.items()
        if len(storage.spec.shape) > 1
    }


def column_elements(type: GGMLType, k: int) -> int:
    """Elements of a row of `k` that stay together where a packed matrix is split."""
    return GROUP * groups_per_column(k) if type in LAYOUTS else BLOCK_SIZES[type][0]


def plane_axes(type: GGMLType, plane: str) -> tuple[str | None, ...]:
    """What the axes of a packed type's plane stand for (see `rfjax.quant.layout`)."""
    return LAYOUTS[type].plane_axes(plane) if type in LAYOUTS else PLANE_AXES[plane]


@functools.cache
def plane_shapes(
    type: GGMLType, shape: tuple[int, ...]
) -> Mapping[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every plane of a packed matrix or stack."""
    elements, nbytes = BLOCK_SIZES[type]
    raw = jax.ShapeDtypeStruct((*shape[:-1], shape[-1] // elements, nbytes), jnp.uint8)
    packed = jax.eval_shape(lambda raw: pack(raw, type), raw)
    return {name: (plane.shape, plane.dtype.name) for name, plane in packed.planes.items()}
