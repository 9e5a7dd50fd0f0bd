"""Qwen 3, mixture of experts: qwen3 with every layer's feed-forward network sparse."""

import dataclasses

from rfjax.models import qwen3

SPEC = dataclasses.replace(
    qwen3.SPEC, name="qwen3moe", experts="always", dense_width_is_expert_width=False
)
