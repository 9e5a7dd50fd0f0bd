"""Gemma 2: gemma with norms on both sides, windows in every other layer, and soft caps."""

import dataclasses

from rfjax.models.arch import POST_NORMS, Sizes, Window
from rfjax.models.archs import gemma
from rfjax.models.config import PRE_NORMS

_LAYERS_OF_27B = 46


def attention_scale(sizes: Sizes) -> float:
    """By the size of a head, but in the 27B model by a head's share of the width."""
    whole = max(sizes.d_model // sizes.n_heads, 1)
    return (whole if sizes.n_layers == _LAYERS_OF_27B else sizes.head_dim) ** -0.5


SPEC = dataclasses.replace(
    gemma.SPEC,
    name="gemma2",
    norms=PRE_NORMS | POST_NORMS,
    window=Window(period=2, size=4096),
    attention_scale=attention_scale,
    softcap=50.0,
    final_softcap=30.0,
    keys=frozenset({"attn_logit_softcapping", "final_logit_softcapping", "rope.freq_base_swa"}),
)
