"""ERNIE 4.5, dense: llama's mechanisms."""

from rfjax.models.arch import ArchSpec

SPEC = ArchSpec(name="ernie4_5", pairing="interleaved")
