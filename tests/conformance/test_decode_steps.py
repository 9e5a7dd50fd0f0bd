"""Decode steps of conformance models give the bits that prefill gives."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.cache.paged import init_paged_cache
from rfjax.io.load import load
from rfjax.models.attention_inputs import AttentionInputs
from rfjax.models.decoder import hidden_states, project
from rfjax.models.layer_groups import group_of_layers, layer_groups

PAGE = 32

NAMES = (
    "bloom-dense",  # ALiBi, layer norms, biases, normalised embeddings
    "cohere2-dense",  # parallel, a window, layers without rotation
    "deepseek2-moe",  # latent attention, biased choices
    "falcon-dense",  # two norms beside each other
    "gemma2-dense",  # caps, norms on both sides
    "gpt-oss-moe",  # sinks, biased experts
    "gpt2-dense",  # learned positions
    "granitemoe-moe",  # scales, a shared expert
    "hunyuan-dense-dense",  # heads normalised after rotation
    "mpt-dense",  # clamped
    "nemotron-dense",  # squared ReLU
    "olmo2-dense",  # all heads normalised together
    "qwen2moe-moe",  # a shared expert with a gate
    "stablelm-dense",  # every head with a norm of its own
)
"""Those that have every mechanism between them: two optimized programs take two seconds each."""


@functools.partial(jax.jit, static_argnames="config")
def step(params, tokens, positions, lengths, cache, tables, *, config):
    """Logits [T, V] of rows of tokens [B, L], and the pages after them."""
    inputs = AttentionInputs(positions, lengths, tables)
    hidden, cache = hidden_states(params, tokens, inputs, cache, config=config)
    return project(params, hidden, config=config), cache


def pages(config, length):
    """Empty pages for one sequence, and its table in every group."""
    groups = layer_groups(config)
    count = -(-length // PAGE)
    cache = init_paged_cache(
        config.kv_shapes,
        group_of_layers(groups),
        (count + 2,) * len(groups),
        PAGE,
        jnp.dtype("float32"),
    )
    return cache, (np.arange(2, count + 2, dtype=np.int32)[None, :],) * len(groups)


def different_layers(model):
    """The model with one layer of every kind: others repeat what these show."""
    config, params = model.config, model.params
    kept = [config.layers.index(layer) for layer in dict.fromkeys(config.layers)]
    layers, blocks = ([of[i] for i in kept] for of in (config.layers, params.blk))
    # Several architectures are the same but for the name, and share programs without it.
    config = dataclasses.replace(config, architecture="any", layers=tuple(layers))
    return dataclasses.replace(params, blk=tuple(blocks)), config


@pytest.mark.parametrize("name", NAMES)
def test_decode_steps_equal_prefill(conformance, name):
    """Steps are rows of one batch: the row of position p reads the pages up to there.

    At p it writes its own key again. As logits and pages are the same bits as before, so are
    those of steps one after the other.
    """
    path = conformance / "archs" / f"{name}.gguf"
    tokens = np.load(path.with_suffix(".npz"))["tokens"]
    params, config = different_layers(load(path))
    count = len(tokens)
    at = np.arange(count, dtype=np.int32)
    cache, tables = pages(config, count)
    whole, filled = step(params, tokens, at[None], at[-1:] + 1, cache, tables, config=config)
    some = at[::-4]
    rows = tuple(np.repeat(table, len(some), axis=0) for table in tables)
    steps, left = step(params, tokens[some], some[:, None], some + 1, filled, rows, config=config)
    np.testing.assert_array_equal(steps, np.asarray(whole)[some])
    jax.tree.map(np.testing.assert_array_equal, left, filled)
