"""GPT-NeoX and Pythia: fused Q, K and V, partial RoPE, side by side or not as the file says."""

from rfjax.models.arch import QKV, ArchSpec

SPEC = ArchSpec(
    name="gptneox",
    pairing="half",
    norm="layer",
    parallel="by_key",
    biases=QKV | {"attn_norm", "attn_output", "ffn_norm", "ffn_up", "ffn_down", "output_norm"},
    optional_biases=frozenset(),
    activation="gelu",
    gated=False,
)
