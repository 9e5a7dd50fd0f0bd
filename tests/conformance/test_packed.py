"""Packed weights give the logits of plain ones, bit for bit, and decode what prefill computes."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import rfjax
from rfjax.io.load import load
from rfjax.models.decoder import forward

run = jax.jit(forward, static_argnames="config")

FILES = (
    *(f"perplexity/stories260K-{type}" for type in ("IQ4_NL", "Q5_1")),
    "archs/llama-moe",
    "variants/qwen2-gqa-tied",
)


@pytest.mark.parametrize("name", FILES)
def test_packed_logits_are_those_of_plain_weights(conformance, name):
    path = conformance / f"{name}.gguf"
    packed, plain = load(path, weights="packed"), load(path, weights="dequantized")
    assert packed.plan.weights < 0.6 * plain.plan.weights
    tokens = np.arange(24, dtype=np.int32)
    expected = run(plain.params, tokens, config=plain.config)
    assert_array_equal(run(packed.params, tokens, config=packed.config), expected)


def test_packed_prefill_equals_decode_bit_for_bit(conformance):
    path = conformance / "perplexity/stories260K-Q4_0.gguf"
    llm = rfjax.LLM(path, weights="packed", compilation_cache=False)
    greedy = rfjax.SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)
    (whole,) = llm.generate([[1, 300, 40]], greedy)
    # What was decoded so far, as the prompt of another request.
    (rest,) = llm.generate([[1, 300, 40, *whole.token_ids[:12]]], greedy)
    assert rest.token_ids[:8] == whole.token_ids[12:]
    assert rest.logprobs[:8] == whole.logprobs[12:]
