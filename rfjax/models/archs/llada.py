"""LLaDA, a diffusion model: llama without a mask, every token sees the whole sequence."""

from rfjax.models.arch import DENSE_FFN, QKV, ArchSpec
from rfjax.ops.mask import Mask

SPEC = ArchSpec(
    name="llada",
    pairing="interleaved",
    optional_biases=QKV | DENSE_FFN,
    mask=Mask("bidirectional"),
)
