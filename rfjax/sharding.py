"""Where the parts of an array live: logical axis names, and the one table that maps them."""

import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from rfjax.errors import ConfigError

logger = logging.getLogger(__name__)

MESH_AXES: Mapping[str, str] = MappingProxyType(
    {
        "vocab": "model",
        "heads": "model",
        "kv_heads": "model",
        "mlp": "model",
        "expert": "model",
        "batch": "data",
    }
)
"""Logical axis to mesh axis. Axes not listed here (`embed`, None) are never split."""


def make_mesh(*, data: int = 1, model: int = 1) -> Mesh:
    """A mesh of the first `data * model` devices.

    Args:
        data: groups of devices that hold all weights and share the sequences of a batch.
        model: devices of a group, which share the weights (tensor parallel).

    Raises:
        ConfigError: sizes below 1, or more devices than there are.
    """
    import jax

    if data < 1 or model < 1:
        raise ConfigError(f"mesh: got data {data} and model {model}, expected at least 1 each")
    devices = jax.devices()
    if data * model > len(devices):
        raise ConfigError(
            f"mesh: data {data} times model {model} is {data * model} devices, and there are "
            f"{len(devices)}: {', '.join(map(str, devices[:8]))}"
        )
    chosen = np.array(devices[: data * model]).reshape(data, model)
    return Mesh(chosen, ("data", "model"))


def automatic(mesh: Mesh) -> Mesh:
    """The same devices and names with axes whose shardings the compiler propagates.

    Raises:
        ConfigError: an axis has another name than those of `MESH_AXES`, so it would be ignored.
    """
    known = sorted(set(MESH_AXES.values()))
    unknown = [str(name) for name in mesh.axis_names if name not in known]
    if unknown:
        raise ConfigError(
            f"mesh: got axes {', '.join(map(str, mesh.axis_names))}, expected a choice of "
            f"{', '.join(known)}: 'model' splits the weights, 'data' the batch"
        )
    return Mesh(mesh.devices, mesh.axis_names)


def leaf_sharding(
    mesh: Mesh | AbstractMesh,
    name: str,
    shape: Sequence[int],
    axes: Sequence[str | None],
    units: Sequence[int] | None = None,
) -> NamedSharding:
    """The sharding of one array, replicated where the mesh does not divide it.

    A mesh axis is used once: the first logical axis that maps to it and divides takes it.

    Args:
        mesh: the devices.
        name: of the array, for the log.
        shape: of the array.
        axes: logical name of every dimension; None is never split.
        units: elements of every dimension that stay together, such as a head or a column of a
            packed tensor; None is 1 everywhere.
    """
    used: set[str] = set()
    parts: list[str | None] = []
    refused: list[str] = []
    for size, axis, unit in zip(shape, axes, units or [1] * len(shape), strict=True):
        target = MESH_AXES.get(axis) if axis else None
        count = mesh.shape[target] if target in mesh.axis_names else 1
        if target is None or count == 1 or target in used:
            parts.append(None)
        elif size % (unit * count):
            what = f"{size}" if unit == 1 else f"{size} in units of {unit}"
            refused.append(
                f"its {axis} axis of {what} does not divide by the {count} devices of mesh axis "
                f"{target!r}"
            )
            parts.append(None)
        else:
            used.add(target)
            parts.append(target)
    if refused and not used:
        logger.info("%s is replicated: %s", name, "; ".join(refused))
    return NamedSharding(mesh, PartitionSpec(*parts))


def batch_sharding(mesh: Mesh, rows: int) -> NamedSharding:
    """Of arrays whose first axis is the batch: spread over "data" where that divides it."""
    return leaf_sharding(mesh, "the batch", (rows,), ("batch",))


def plane_spec(spec: PartitionSpec, axes: Sequence[str | None]) -> PartitionSpec:
    """The split of one plane of a packed matrix or stack that is split as `spec`.

    Args:
        spec: of the matrix: `(rows, columns)`, or `(experts, rows, columns)`.
        axes: what the plane's axes stand for, see `rfjax.quant.layout`.
    """
    *leading, rows, columns = spec
    target = {"rows": rows, "columns": columns, None: None}
    return PartitionSpec(*leading, *(target[axis] for axis in axes))
