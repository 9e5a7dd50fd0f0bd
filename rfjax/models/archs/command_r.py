"""Command R and R+: attention and network side by side on one LayerNorm without bias."""

from rfjax.models.arch import ArchSpec
from rfjax.models.config import QKNorm

SPEC = ArchSpec(
    name="command-r",
    pairing="interleaved",
    norm="layer",
    norms=frozenset({"attn_norm"}),
    parallel="always",
    qk_norm=QKNorm("each_head"),
    qk_norm_from=64,
    tied_output=True,
    keys=frozenset({"logit_scale"}),
)
