"""Llama 1 to 3, Mistral, Yi, Mixtral, TinyLlama, SmolLM: experts where a file has them."""

from rfjax.models.arch import DENSE_FFN, QKV, ArchSpec, Mixture

SPEC = ArchSpec(
    name="llama",
    pairing="interleaved",
    optional_biases=QKV | DENSE_FFN | {"attn_output"},
    mixture=Mixture(when="optional"),
    rope_factors=True,
    long_factors="scaling",
)
