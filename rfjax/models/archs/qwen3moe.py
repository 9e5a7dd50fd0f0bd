"""Qwen 3, mixture of experts: qwen3 with every layer's feed-forward network sparse."""

import dataclasses

from rfjax.models.arch import Mixture
from rfjax.models.archs import qwen3

SPEC = dataclasses.replace(qwen3.SPEC, name="qwen3moe", mixture=Mixture(width="shared_out"))
