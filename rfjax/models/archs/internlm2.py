"""InternLM 2: llama's mechanisms under its own name."""

from rfjax.models.arch import ArchSpec

SPEC = ArchSpec(name="internlm2", pairing="interleaved")
