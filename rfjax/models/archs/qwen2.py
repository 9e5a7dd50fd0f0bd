"""Qwen 2 and 2.5: half-split RoPE and biases on Q, K and V."""

from rfjax.models.arch import QKV, ArchSpec

SPEC = ArchSpec(name="qwen2", pairing="half", optional_biases=QKV | {"output"})
