"""MiniCPM: granite's scales, with values of its own where a file does not state them."""

import dataclasses
import math

from rfjax.models.arch import Mixture
from rfjax.models.archs import granite

SPEC = dataclasses.replace(
    granite.SPEC,
    name="minicpm",
    mixture=Mixture(when="optional"),
    embedding_scale=12.0,
    residual_scale=lambda sizes: 1.4 / math.sqrt(sizes.n_layers),
    logit_scale=lambda sizes: 256.0 / sizes.d_model,
    keys=frozenset({"embedding_scale", "logit_scale", "residual_scale"}),
    required_keys=frozenset(),
)
