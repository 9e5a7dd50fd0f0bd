"""Logits of random models equal llama.cpp's, and each mechanism of theirs shows in them."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from support.golden_models import FOLDER, GOLDENS

from rfjax.io.load import load
from rfjax.models.decoder import forward

run = jax.jit(forward, static_argnames="config")


def nmse(found, expected):
    """Squared error over squared size, in f64."""
    expected = np.asarray(expected, np.float64)
    return float(((np.asarray(found) - expected) ** 2).sum() / (expected**2).sum())


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


def rope(**fields):
    return lambda layer: {"rope": dataclasses.replace(layer.rope, **fields)}


def experts(**fields):
    return lambda layer: {"experts": dataclasses.replace(layer.experts, **fields)}


MUTATIONS = {
    "llama": {"base": rope(base=400000.0), "pairing": rope(pairing="half")},
    "llama-yarn": {
        "none": rope(scaling="none"),
        "attention factor": rope(attention_factor=1.0),
        "betas": rope(beta_fast=8.0, beta_slow=2.0),
    },
    "llama-linear-tied": {"none": rope(scaling="none")},
    "qwen3moe": {"normalize": experts(normalize=False)},
    "mistral3": {
        "log multiplier": rope(log_multiplier=0.0),
        "temperature": lambda layer: {"temperature": None},
    },
}


@pytest.mark.parametrize(
    ("name", "what"), [(name, what) for name, table in MUTATIONS.items() for what in table]
)
def test_another_mechanism_gives_other_logits(loaded, name, what):
    """Each golden would notice it."""
    model, tokens, expected = loaded(name)
    layers = tuple(
        dataclasses.replace(layer, **MUTATIONS[name][what](layer)) for layer in model.config.layers
    )
    config = dataclasses.replace(model.config, layers=layers)
    assert nmse(run(model.params, tokens, config=config), expected) > 1e-4


def without(tree, *path):
    """The tree with the leaf or node at that path dropped."""
    if len(path) == 1:
        return dataclasses.replace(tree, **{path[0]: None})
    return dataclasses.replace(tree, **{path[0]: without(getattr(tree, path[0]), *path[1:])})


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("llama", ("rope_freqs",)),
        ("llama", ("blk", "attn_output", "bias")),
        ("llama", ("blk", "ffn_down", "bias")),
        ("qwen2", ("blk", "attn_v", "bias")),
        ("qwen3", ("blk", "attn_q_norm")),
    ],
    ids=lambda value: value if isinstance(value, str) else ".".join(value),
)
def test_a_dropped_tensor_gives_other_logits(loaded, name, path):
    model, tokens, expected = loaded(name)
    params = model.params
    if path[0] == "blk":
        blocks = tuple(without(block, *path[1:]) for block in params.blk)
        params = dataclasses.replace(params, blk=blocks)
    else:
        params = without(params, *path)
    assert nmse(run(params, tokens, config=model.config), expected) > 1e-4
