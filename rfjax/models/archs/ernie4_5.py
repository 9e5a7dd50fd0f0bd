"""ERNIE 4.5, dense: llama's mechanisms."""

from rfjax.models.arch import QKV, ArchSpec

SPEC = ArchSpec(name="ernie4_5", pairing="interleaved", optional_biases=QKV | {"attn_output"})
