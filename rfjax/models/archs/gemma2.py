"""Gemma 2: gemma with norms on both sides, windows in every other layer, and soft caps."""

import dataclasses

from rfjax.models.arch import POST_NORMS, Window
from rfjax.models.archs import gemma
from rfjax.models.config import PRE_NORMS

_LAYERS_OF_27B = 46

SPEC = dataclasses.replace(
    gemma.SPEC,
    name="gemma2",
    norms=PRE_NORMS | POST_NORMS,
    window=Window(period=2, size=4096),
    attention_scale=gemma.scale_by_width_at(_LAYERS_OF_27B),
    softcap=50.0,
    final_softcap=30.0,
    keys=frozenset({"attn_logit_softcapping", "final_logit_softcapping", "rope.freq_base_swa"}),
)
