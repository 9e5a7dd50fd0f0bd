"""Gemma: embeddings grow by the root of their width, GELU in the gate."""

import math
from collections.abc import Callable

from rfjax.models.arch import ArchSpec, Sizes


def scale_by_width_at(n_layers: int) -> Callable[[Sizes], float]:
    """Scores are scaled by the size of a head; in the one model of so many layers, the 27B of its
    generation, by a head's share of the width."""

    def scale(sizes: Sizes) -> float:
        whole = max(sizes.d_model // sizes.n_heads, 1)
        return (whole if sizes.n_layers == n_layers else sizes.head_dim) ** -0.5

    return scale


SPEC = ArchSpec(
    name="gemma",
    pairing="half",
    activation="gelu",
    embedding_scale=lambda sizes: math.sqrt(sizes.d_model),
    tied_output=True,
)
