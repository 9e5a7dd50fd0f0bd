"""Phi 3.5, mixture of experts: RMS norms with biases, biases in attention and output."""

from rfjax.models.arch import QKV, ArchSpec, Mixture

SPEC = ArchSpec(
    name="phimoe",
    pairing="half",
    biases=frozenset({"attn_norm", "ffn_norm", "attn_output", "output_norm", "output"}),
    optional_biases=QKV,
    mixture=Mixture(),
    long_factors="always",
)
