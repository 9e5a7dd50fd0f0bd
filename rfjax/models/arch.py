"""The row type of the architecture table: which mechanisms an architecture has."""

import dataclasses
from typing import Literal

from rfjax.ops.mask import Mask


@dataclasses.dataclass(frozen=True)
class ArchSpec:
    """An architecture as differences from the plain pre-norm RMS/RoPE/SwiGLU decoder.

    Attributes:
        name: the value of `general.architecture`.
        pairing: which elements RoPE rotates together.
        qk_norm: queries and keys pass an RMS norm over each head before RoPE.
        optional_biases: projections whose bias is used if the file has it.
        experts: "never", "optional" (when `expert_count` is set) or "always".
        dense_width_is_expert_width: without `expert_feed_forward_length`, experts are as wide as
            `feed_forward_length`; otherwise that width is shared by the experts used.
        normalize_experts: chosen experts' weights are divided by their sum.
        rope_factors: the tensor `rope_freqs.weight` is used if the file has it.
        output_bias: the output projection's bias is used if the file has it.
        optional_keys: metadata keys of mechanisms that only some architectures have; a key that
            is not listed is not read, as in llama.cpp.
        mask: which keys a query sees.
        activation: of the gated feed-forward network.
    """

    name: str
    pairing: Literal["interleaved", "half"]
    qk_norm: bool = False
    optional_biases: frozenset[str] = frozenset()
    experts: Literal["never", "optional", "always"] = "never"
    dense_width_is_expert_width: bool = True
    normalize_experts: bool = True
    rope_factors: bool = False
    output_bias: bool = False
    optional_keys: frozenset[str] = frozenset()
    mask: Mask = dataclasses.field(default_factory=Mask)
    activation: str = "silu"


QKV = frozenset({"attn_q", "attn_k", "attn_v"})
DENSE_FFN = frozenset({"ffn_gate", "ffn_up", "ffn_down"})
