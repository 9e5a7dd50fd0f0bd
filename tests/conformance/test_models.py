"""Logits of the conformance folder's variants equal llama.cpp's; each mechanism shows in them."""

import jax
import numpy as np
import pytest
from support.mutations import experts, in_layers, model, nmse, rope, without
from support.quick_compile import quick_compile

from rfjax.io.load import load
from rfjax.models.decoder import forward
from rfjax.ops.mask import Mask

run = jax.jit(forward, static_argnames="config")
run_mutated = jax.jit(lambda *args, config: forward(*args, config=config), static_argnames="config")

SEEN = 64
"""Tokens that a mutated model runs over: enough, because these models are causal."""


BASE = rope(base=50.0)
HALF = rope(pairing="half")
INTERLEAVED = rope(pairing="interleaved")
UNSCALED = rope(scaling="none")
SCALE = in_layers(lambda layer: {"attention_scale": layer.attention_scale * 1.25})
WINDOW = in_layers(lambda layer: {"mask": Mask("window", 16)})
CHUNKED = in_layers(lambda layer: {"mask": Mask("chunked", 24)})
UNBIASED = without("attn_q", "attn_k", "attn_v", part="bias")
NO_QK_NORM = in_layers(lambda layer: {"qk_norm": None})
UNNORMALIZED = experts(normalize=False)


def fewer_experts(params, config):
    used = config.layers[0].experts.n_used
    return experts(n_used=used - 1)(params, config)


FILES = {
    "variants/llama-gqa": [HALF, WINDOW, BASE],
    "variants/llama-gqa-tied": [SCALE],
    "variants/llama-head-dim": [in_layers(lambda layer: {"attention_scale": 32**-0.5})],
    "variants/llama-odd-vocab": [CHUNKED],
    "variants/llama-rope-linear": [UNSCALED],
    "variants/llama-rope-yarn": [UNSCALED, rope(scaling="linear")],
    "variants/llama3-rope-factors": [model(rope_factors=None)],
    "variants/mistral3-yarn": [rope(beta_slow=4.0), rope(log_multiplier=1.0)],
    "variants/mixtral-8x-top2": [UNNORMALIZED],
    "variants/qwen2-gqa": [UNBIASED, INTERLEAVED],
    "variants/qwen2-gqa-tied": [UNBIASED],
    "variants/qwen3-gqa": [NO_QK_NORM, INTERLEAVED],
    "variants/qwen3moe-16-top4": [fewer_experts],
}


@pytest.mark.parametrize("name", FILES)
def test_logits_equal_llama_cpp_and_notice_every_mechanism(conformance, name):
    golden = np.load(conformance / f"{name}.npz")
    tokens, expected = golden["tokens"], golden["logits"]
    model = load(conformance / f"{name}.gguf")
    found = np.asarray(run(model.params, tokens, config=model.config))
    assert nmse(found, expected) <= 1e-8
    assert (found.argmax(-1) == expected.argmax(-1)).all()
    for number, mutate in enumerate(FILES[name]):
        params, config = mutate(model.params, model.config)
        with quick_compile():
            mutated = run_mutated(params, tokens[:SEEN], config=config)
        assert nmse(mutated, expected[:SEEN]) > 1e-4, f"mutation {number} changes nothing"


def test_every_variant_is_among_them(conformance):
    names = {f"variants/{path.stem}" for path in (conformance / "variants").glob("*.gguf")}
    assert names <= FILES.keys()


@pytest.mark.parametrize("name", ["variants/llama-gqa", "variants/qwen2-gqa"])
def test_a_scrambled_row_is_noticed(conformance, name):
    """The comparison sees one wrong position among 160."""
    golden = np.load(conformance / f"{name}.npz")
    logits = golden["logits"].copy()
    logits[100] = logits[101]
    assert nmse(logits, golden["logits"]) > 1e-4
