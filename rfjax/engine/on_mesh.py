"""Where a step's arrays are kept on a mesh, so that the next step needs no other program."""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rfjax.cache.paged import PagedCache, pages_sharding
from rfjax.sharding import batch_sharding


@dataclasses.dataclass(frozen=True)
class OnMesh:
    """Constraints for traced code; without a mesh, none.

    Attributes:
        mesh: the devices, or None for one.
    """

    mesh: Mesh | None

    def pinned(self, cache: PagedCache) -> PagedCache:
        """Pages where they were."""
        if self.mesh is None:
            return cache
        layers = tuple(
            jax.lax.with_sharding_constraint(layer, pages_sharding(self.mesh, layer.k.shape[1]))
            for layer in cache.layers
        )
        return PagedCache(layers, cache.groups)

    def everywhere(self, tree: Any) -> Any:
        """Arrays whole on every device."""
        if self.mesh is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, NamedSharding(self.mesh, PartitionSpec()))

    def by_rows(self, *arrays: Any) -> Any:
        """Rows of a step over "data"."""
        if self.mesh is None:
            return arrays
        sharding = batch_sharding(self.mesh, jax.tree.leaves(arrays)[0].shape[0])
        return jax.lax.with_sharding_constraint(arrays, sharding)
