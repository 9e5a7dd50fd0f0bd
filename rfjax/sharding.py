"""Where the parts of an array live: logical axis names, and the one table that maps them."""

import logging

from jax.sharding import Mesh, NamedSharding, PartitionSpec

logger = logging.getLogger(__name__)

MESH_AXES: dict[str, str] = {
    "vocab": "model",
    "heads": "model",
    "kv_heads": "model",
    "mlp": "model",
    "expert": "model",
}
"""Logical axis to mesh axis. Axes not listed here (`embed`, None) are never split."""


def leaf_sharding(
    mesh: Mesh, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...]
) -> NamedSharding:
    """The sharding of one array, replicated where the mesh does not divide it.

    A mesh axis is used once: the first logical axis that maps to it takes it.
    """
    used: set[str] = set()
    parts: list[str | None] = []
    for size, axis in zip(shape, axes, strict=True):
        target = MESH_AXES.get(axis) if axis else None
        if target is None or target not in mesh.axis_names or target in used:
            parts.append(None)
        elif size % mesh.shape[target]:
            logger.info(
                "%s is replicated: its %s axis of %d does not divide by the %d devices of mesh "
                "axis %r",
                name,
                axis,
                size,
                mesh.shape[target],
                target,
            )
            parts.append(None)
        else:
            used.add(target)
            parts.append(target)
    return NamedSharding(mesh, PartitionSpec(*parts))
