"""Command R7B and A: command-r with three windowed layers to a full one, which does not rotate."""

import dataclasses

from rfjax.models.arch import Window
from rfjax.models.archs import command_r

SPEC = dataclasses.replace(
    command_r.SPEC,
    name="cohere2",
    qk_norm=None,
    qk_norm_from=0,
    window=Window(period=4),
    rotated="windowed",
    required_keys=frozenset({"logit_scale"}),
)
