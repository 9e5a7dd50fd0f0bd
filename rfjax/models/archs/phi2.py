"""Phi 1, 1.5 and 2: attention and network side by side on one LayerNorm, biases everywhere."""

from rfjax.models.arch import QKV, ArchSpec

SPEC = ArchSpec(
    name="phi2",
    pairing="half",
    norm="layer",
    norms=frozenset({"attn_norm"}),
    parallel="always",
    biases=frozenset({"attn_norm", "attn_output", "ffn_up", "ffn_down", "output_norm", "output"}),
    optional_biases=QKV,
    activation="gelu",
    gated=False,
)
