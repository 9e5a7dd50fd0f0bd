"""MPT: ALiBi or learned positions, Q, K and V may be cut off, LayerNorms with or without biases."""

from rfjax.models.arch import QKV, ArchSpec
from rfjax.models.config import QKNorm

SPEC = ArchSpec(
    name="mpt",
    pairing=None,
    norm="layer",
    qk_norm=QKNorm("all_heads"),
    qk_norm_optional=True,
    optional_biases=QKV
    | {"attn_norm", "attn_output", "attn_q_norm", "attn_k_norm"}
    | {"ffn_norm", "ffn_up", "ffn_down", "output_norm"},
    positions="optional",
    activation="gelu",
    gated=False,
    keys=frozenset({"attention.clamp_kqv", "attention.max_alibi_bias"}),
)
