"""Ministral 3: llama with more of YaRN's settings and queries that grow with their position."""

import dataclasses

from rfjax.models.archs import llama

SPEC = dataclasses.replace(
    llama.SPEC,
    name="mistral3",
    keys=frozenset(
        {
            "attention.temperature_scale",
            "rope.scaling.yarn_beta_fast",
            "rope.scaling.yarn_beta_slow",
            "rope.scaling.yarn_log_multiplier",
        }
    ),
)
