"""GLM 4: norms on both sides, fused gate and up."""

from rfjax.models.arch import POST_NORMS, ArchSpec
from rfjax.models.config import PRE_NORMS

SPEC = ArchSpec(
    name="glm4",
    pairing="interleaved",
    norms=PRE_NORMS | POST_NORMS,
    sections=True,
    fused_gate_up=True,
)
