"""Llama 1 to 3, and what declares itself so: Mistral, Yi, Mixtral, TinyLlama, SmolLM."""

from rfjax.models.arch import DENSE_FFN, QKV, ArchSpec

SPEC = ArchSpec(
    name="llama",
    pairing="interleaved",
    optional_biases=QKV | DENSE_FFN | {"attn_output"},
    experts="optional",
    rope_factors=True,
)
