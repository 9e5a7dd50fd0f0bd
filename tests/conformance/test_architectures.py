"""All conformance models: llama.cpp's logits, decode steps equal to prefill, mechanisms that show.

Logits are computed operation by operation: all models have the same sizes and so share what XLA
compiles, where a program for each model and each change to it would take minutes.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.mechanisms import mechanisms
from support.mutations import nmse

from rfjax.cache.paged import init_paged_cache
from rfjax.io.load import load
from rfjax.models import feed_forward
from rfjax.models.architectures import ARCHITECTURES
from rfjax.models.attention_inputs import AttentionInputs
from rfjax.models.decoder import forward, hidden_states, project
from rfjax.models.layer_groups import group_of_layers, layer_groups
from rfjax.ops.moe import expert_ffn

pytestmark = pytest.mark.quick_compile

PAGE = 32
SEEN = 64
"""Tokens that a changed model runs over: enough to cross its window, where it is causal."""

NAMES = [
    "bloom-dense",
    "chatglm-dense",
    "cohere2-dense",
    "command-r-dense",
    "deepseek2-moe",
    "ernie4_5-moe",
    "exaone4-dense",
    "falcon-dense",
    "gemma-dense",
    "gemma2-dense",
    "gemma3-dense",
    "glm4-dense",
    "glm4moe-moe",
    "gpt-oss-moe",
    "gpt2-dense",
    "gptneox-dense",
    "granite-dense",
    "granitemoe-moe",
    "hunyuan-dense-dense",
    "internlm2-dense",
    "llada-dense",
    "llama-dense",
    "llama-moe",
    "minicpm-dense",
    "mistral3-dense",
    "mpt-dense",
    "nemotron-dense",
    "olmo-dense",
    "olmo2-dense",
    "olmoe-moe",
    "phi2-dense",
    "phi3-dense",
    "phimoe-moe",
    "qwen-dense",
    "qwen2-dense",
    "qwen2moe-moe",
    "qwen3-dense",
    "qwen3moe-moe",
    "seed_oss-dense",
    "smollm3-dense",
    "stablelm-dense",
    "starcoder2-dense",
]
SUPPORTED = [name for name in NAMES if name.rpartition("-")[0] in ARCHITECTURES]

INVISIBLE = {
    # Without rotation the same for every key, which no softmax shows.
    "bloom-dense": {"no attn_k.bias"},
    "gpt2-dense": {"no attn_k.bias"},
    # Embeddings are sixteen times what attention adds to them: the NMSE is 8.5e-5.
    "gemma-dense": {"parallel"},
    # Scores of order one hardly reach a cap of 50: `tests/models` has a model whose cap is 2.
    "gemma2-dense": {"no softcap"},
    # A softmax over the chosen is normalized already.
    "gpt-oss-moe": {"normalized experts"},
}
"""Mechanisms that a file cannot show."""


@pytest.fixture(scope="module")
def loaded(conformance):
    """Model, tokens and llama.cpp's logits of a file, by name."""

    @functools.cache
    def get(name):
        with np.load(conformance / "archs" / f"{name}.npz") as golden:
            return (
                load(conformance / "archs" / f"{name}.gguf"),
                golden["tokens"],
                golden["logits"],
            )

    return get


def test_every_file_is_among_them(conformance):
    assert sorted(path.stem for path in (conformance / "archs").glob("*.gguf")) == NAMES


@pytest.mark.usefixtures("experts_compiled_once")
@pytest.mark.parametrize("name", SUPPORTED)
def test_logits_equal_llama_cpp(loaded, name):
    model, tokens, expected = loaded(name)
    found = np.asarray(forward(model.params, tokens, config=model.config))
    assert nmse(found, expected) <= 1e-8
    best = np.sort(expected, axis=-1)
    clear = best[:, -1] - best[:, -2] > 1e-4
    assert clear.sum() > 150
    assert (found.argmax(-1) == expected.argmax(-1))[clear].all()


@pytest.fixture
def experts_compiled_once(monkeypatch):
    """Operation by operation, JAX would compile the loop over experts anew at every call."""
    compiled = jax.jit(expert_ffn, static_argnums=6, static_argnames="policy")
    monkeypatch.setattr(feed_forward, "expert_ffn", compiled)


@pytest.mark.usefixtures("experts_compiled_once")
@pytest.mark.parametrize("name", SUPPORTED)
def test_every_mechanism_shows(loaded, name):
    model, tokens, expected = loaded(name)
    seen = SEEN if all(a.mask.kind != "bidirectional" for a in model.config.layers) else len(tokens)
    unseen = set()
    for what, mutate in mechanisms(model.params, model.config).items():
        params, config = mutate(model.params, model.config)
        mutated = forward(params, tokens[:seen], config=config)
        if not nmse(mutated, expected[:seen]) > 1e-4:
            unseen.add(what)
    assert unseen == INVISIBLE.get(name, set())


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


@pytest.mark.parametrize("name", [name for name in SUPPORTED if name != "llada-dense"])
def test_decode_steps_equal_prefill(loaded, name):
    """All steps are rows of one batch: row p reads the pages up to position p.

    There it writes its own key again. As logits and pages are the same bits as before, so are
    those of steps one after the other.
    """
    model, tokens, _ = loaded(name)
    params, config = different_layers(model)
    count = len(tokens)
    at = np.arange(count, dtype=np.int32)
    cache, tables = pages(config, count)
    whole, filled = step(params, tokens, at[None], at[-1:] + 1, cache, tables, config=config)
    rows = tuple(np.repeat(table, count, axis=0) for table in tables)
    steps, left = step(params, tokens, at[:, None], at + 1, filled, rows, config=config)
    np.testing.assert_array_equal(steps, whole)
    jax.tree.map(np.testing.assert_array_equal, left, filled)
