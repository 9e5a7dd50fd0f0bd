"""EXAONE 3 and 3.5: llama's mechanisms with half-split RoPE."""

from rfjax.models.arch import ArchSpec

SPEC = ArchSpec(name="exaone", pairing="half", rope_factors=True)
