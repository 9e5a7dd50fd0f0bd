"""BLOOM: ALiBi, normalised embeddings, LayerNorms, biases everywhere."""

import dataclasses

from rfjax.models.archs import gptneox

SPEC = dataclasses.replace(
    gptneox.SPEC,
    name="bloom",
    pairing=None,
    parallel="never",
    alibi=8.0,
    embedding_norm=True,
    biases=gptneox.SPEC.biases | {"token_embd_norm"},
)
