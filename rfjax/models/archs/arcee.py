"""Arcee's AFM 4.5B: llama with squared ReLU in a network without a gate."""

from rfjax.models.arch import ArchSpec

SPEC = ArchSpec(
    name="arcee",
    pairing="interleaved",
    rope_factors=True,
    activation="relu_squared",
    gated=False,
)
