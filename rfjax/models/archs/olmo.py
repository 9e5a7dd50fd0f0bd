"""OLMo: LayerNorms without weights; Q, K and V may be cut off."""

from rfjax.models.arch import ArchSpec

SPEC = ArchSpec(
    name="olmo",
    pairing="interleaved",
    norm="layer",
    norm_weights=False,
    keys=frozenset({"attention.clamp_kqv"}),
)
