"""Hunyuan, dense: norms of heads behind the rotation, whose base may be stretched."""

from rfjax.models.arch import ArchSpec
from rfjax.models.config import QKNorm

SPEC = ArchSpec(
    name="hunyuan-dense",
    pairing="half",
    qk_norm=QKNorm(after_rope=True),
    keys=frozenset({"rope.scaling.alpha"}),
)
