"""Granite 3 and 4, dense: llama with scales of embeddings, attention, residuals and logits."""

import dataclasses

from rfjax.models.arch import Mixture
from rfjax.models.archs import llama

SPEC = dataclasses.replace(
    llama.SPEC,
    name="granite",
    mixture=Mixture(when="optional", shared="by_width"),
    logit_divisor=True,
    keys=frozenset(
        {
            "attention.scale",
            "embedding_scale",
            "logit_scale",
            "residual_scale",
            "rope.scaling.finetuned",
        }
    ),
    required_keys=frozenset({"logit_scale"}),
)
