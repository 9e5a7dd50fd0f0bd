"""Logits of random models equal llama.cpp's, and each mechanism of theirs shows in them."""

import functools

import jax
import numpy as np
import pytest
from support.golden_models import FOLDER, GOLDENS
from support.mutations import experts, in_layers, model, nmse, rope, without
from support.quick_compile import quick_compile

from rfjax.io.load import load
from rfjax.models.decoder import forward

run = jax.jit(forward, static_argnames="config")
run_mutated = jax.jit(lambda *args, config: forward(*args, config=config), static_argnames="config")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Model, tokens and llama.cpp's logits of a golden, by name."""

    @functools.cache
    def get(name):
        golden = GOLDENS[name]
        stored = np.load(FOLDER / f"{name}.npz")
        assert golden.checksum() == stored["checksum"], "the goldens belong to other weights"
        model = load(golden.write(tmp_path_factory.mktemp("goldens") / f"{name}.gguf"))
        return model, golden.tokens(), stored["logits"]

    return get


@pytest.mark.parametrize("name", GOLDENS)
def test_logits_equal_llama_cpp(loaded, name):
    model, tokens, expected = loaded(name)
    found = np.asarray(run(model.params, tokens, config=model.config))
    assert found.dtype == np.float32
    assert nmse(found, expected) <= 1e-10
    assert (found.argmax(-1) == expected.argmax(-1)).all()


MUTATIONS = {
    "llama": {
        "base": rope(base=400000.0),
        "pairing": rope(pairing="half"),
        "no rope_freqs": model(rope_factors=None),
        "no attn_output.bias": without("attn_output", part="bias"),
        "no ffn_down.bias": without("ffn_down", part="bias"),
    },
    "llama-yarn": {
        "none": rope(scaling="none"),
        "attention factor": rope(attention_factor=1.0),
        "betas": rope(beta_fast=8.0, beta_slow=2.0),
    },
    "llama-linear-tied": {"none": rope(scaling="none")},
    "qwen2": {"no attn_v.bias": without("attn_v", part="bias")},
    "qwen3": {"no norms of heads": in_layers(lambda layer: {"qk_norm": None})},
    "qwen3moe": {"normalize": experts(normalize=False)},
    "mistral3": {
        "log multiplier": rope(log_multiplier=0.0),
        "temperature": in_layers(lambda layer: {"temperature": None}),
    },
}


@pytest.mark.parametrize(
    ("name", "what"), [(name, what) for name, table in MUTATIONS.items() for what in table]
)
def test_another_mechanism_gives_other_logits(loaded, name, what):
    """Each golden would notice it."""
    model, tokens, expected = loaded(name)
    params, config = MUTATIONS[name][what](model.params, model.config)
    with quick_compile():
        mutated = run_mutated(params, tokens, config=config)
    assert nmse(mutated, expected) > 1e-4
