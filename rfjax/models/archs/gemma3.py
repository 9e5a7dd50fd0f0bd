"""Gemma 3: norms on both sides and on heads, five windowed layers to a full one, two RoPE bases."""

import dataclasses

from rfjax.models.arch import POST_NORMS, Sizes, Window
from rfjax.models.archs import gemma
from rfjax.models.config import PRE_NORMS, QKNorm

_LAYERS_OF_27B = 62


def attention_scale(sizes: Sizes) -> float:
    """By the size of a head, but in the 27B model by a head's share of the width."""
    whole = max(sizes.d_model // sizes.n_heads, 1)
    return (whole if sizes.n_layers == _LAYERS_OF_27B else sizes.head_dim) ** -0.5


SPEC = dataclasses.replace(
    gemma.SPEC,
    name="gemma3",
    norms=PRE_NORMS | POST_NORMS,
    qk_norm=QKNorm(),
    window=Window(period=6, size=0, base=10000.0, extended=False),
    attention_scale=attention_scale,
    tied_output=False,
    keys=frozenset({"final_logit_softcapping", "rope.freq_base_swa"}),
)
