"""Phi 3 and 4: fused gate and up, frequency factors for short and for long contexts.

Its sliding window is not applied, as in llama.cpp: files state one that the models do not follow.
"""

from rfjax.models.arch import ArchSpec

SPEC = ArchSpec(name="phi3", pairing="half", fused_gate_up=True, long_factors="always")
