"""Gemma: embeddings grow by the root of their width, GELU in the gate."""

import math

from rfjax.models.arch import ArchSpec

SPEC = ArchSpec(
    name="gemma",
    pairing="half",
    activation="gelu",
    embedding_scale=lambda sizes: math.sqrt(sizes.d_model),
    tied_output=True,
)
