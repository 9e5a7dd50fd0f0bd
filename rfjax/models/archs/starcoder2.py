"""StarCoder 2: LayerNorms, biases everywhere, a network without a gate."""

from rfjax.models.arch import QKV, ArchSpec

SPEC = ArchSpec(
    name="starcoder2",
    pairing="half",
    norm="layer",
    biases=frozenset({"attn_norm", "attn_output", "ffn_norm", "ffn_up", "ffn_down", "output_norm"}),
    optional_biases=QKV,
    activation="gelu",
    gated=False,
)
