"""Nemotron and Minitron: LayerNorms, partial RoPE, squared ReLU without a gate."""

from rfjax.models.arch import QKV, ArchSpec

SPEC = ArchSpec(
    name="nemotron",
    pairing="half",
    norm="layer",
    biases=frozenset({"attn_norm", "ffn_norm", "output_norm"}),
    optional_biases=QKV | {"attn_output", "ffn_up", "ffn_down"},
    activation="relu_squared",
    gated=False,
)
