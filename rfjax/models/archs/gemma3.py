"""Gemma 3: norms on both sides and on heads, five windowed layers to a full one, two RoPE bases."""

import dataclasses

from rfjax.models.arch import POST_NORMS, Window
from rfjax.models.archs import gemma
from rfjax.models.config import PRE_NORMS, QKNorm

_LAYERS_OF_27B = 62

SPEC = dataclasses.replace(
    gemma.SPEC,
    name="gemma3",
    norms=PRE_NORMS | POST_NORMS,
    qk_norm=QKNorm(),
    window=Window(period=6, size=0, base=10000.0, extended=False),
    attention_scale=gemma.scale_by_width_at(_LAYERS_OF_27B),
    tied_output=False,
    keys=frozenset({"final_logit_softcapping", "rope.freq_base_swa"}),
)
