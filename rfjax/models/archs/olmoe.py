"""OLMoE: experts' weights are not normalised; norms over all heads of Q and of K."""

from rfjax.models.arch import ArchSpec, Mixture
from rfjax.models.config import QKNorm

SPEC = ArchSpec(
    name="olmoe",
    pairing="half",
    qk_norm=QKNorm("all_heads"),
    mixture=Mixture(normalize=False),
)
