"""StableLM: LayerNorms, norms of each head; side by side in layers without ffn_norm."""

from rfjax.models.arch import QKV, ArchSpec
from rfjax.models.config import QKNorm

SPEC = ArchSpec(
    name="stablelm",
    pairing="half",
    norm="layer",
    norms=frozenset({"attn_norm"}),
    optional_norms=frozenset({"ffn_norm"}),
    parallel="without_ffn_norm",
    qk_norm=QKNorm("each_head"),
    qk_norm_optional=True,
    biases=frozenset({"attn_norm", "output_norm"}),
    optional_biases=QKV | {"ffn_norm"},
)
