"""Granite 3 and 4, mixtures of experts: granite's scales, with a shared expert or without."""

import dataclasses

from rfjax.models.archs import granite

SPEC = dataclasses.replace(
    granite.SPEC, name="granitemoe", keys=granite.SPEC.keys - {"rope.scaling.finetuned"}
)
