"""Falcon: attention and network side by side; the 40B model has a norm for each."""

from rfjax.models.arch import ArchSpec

SPEC = ArchSpec(
    name="falcon",
    pairing="half",
    norm="layer",
    norms=frozenset({"attn_norm"}),
    optional_norms=frozenset({"attn_norm_2"}),
    parallel="always",
    biases=frozenset({"attn_norm", "output_norm"}),
    optional_biases=frozenset({"attn_norm_2"}),
    activation="gelu",
    gated=False,
)
