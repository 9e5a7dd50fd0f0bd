"""OLMo 2 and 3: norms behind attention and network only, and over all heads of Q and of K."""

from rfjax.models.arch import POST_NORMS, ArchSpec, Window
from rfjax.models.config import QKNorm

SPEC = ArchSpec(
    name="olmo2",
    pairing="half",
    norms=POST_NORMS,
    qk_norm=QKNorm("all_heads"),
    window=Window(period=4, size=0, extended=False),
)
