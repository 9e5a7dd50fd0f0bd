"""Qwen 1.5 and 2, mixtures of experts: weights are not normalised, and a gated expert is shared."""

from rfjax.models.arch import ArchSpec, Mixture

SPEC = ArchSpec(
    name="qwen2moe",
    pairing="half",
    mixture=Mixture(
        normalize=False, width="shared_out", shared="by_width_or_dense", shared_gate=True
    ),
)
