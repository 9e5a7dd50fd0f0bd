"""Qwen, the first: half-split RoPE, biases on Q, K and V, a width that counts two matrices."""

from rfjax.models.arch import QKV, ArchSpec

SPEC = ArchSpec(name="qwen", pairing="half", biases=QKV, ffn_share=2)
