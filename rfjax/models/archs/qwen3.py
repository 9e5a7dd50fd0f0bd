"""Qwen 3, dense: half-split RoPE, an RMS norm on every head of Q and K, no biases."""

from rfjax.models.arch import ArchSpec
from rfjax.models.config import QKNorm

SPEC = ArchSpec(name="qwen3", pairing="half", qk_norm=QKNorm())
