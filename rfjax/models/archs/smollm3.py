"""SmolLM 3: every fourth layer does not rotate."""

from rfjax.models.arch import ArchSpec

SPEC = ArchSpec(name="smollm3", pairing="interleaved", unrotated_period=4)
