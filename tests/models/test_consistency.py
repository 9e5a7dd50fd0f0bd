"""The same tokens give the same logits, however they are cut into steps and batches.

In f32 on the CPU they are equal bit for bit (see `rfjax.ops.reduce`) as long as the cache has one
capacity; attention over another number of keys sums in another order, and is held to 1e-5.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from support.quick_compile import quick_compile
from support.random_model import Shape, random_tokens, save

from rfjax.cache.dense import init_cache
from rfjax.cache.paged import init_paged_cache
from rfjax.io.load import load
from rfjax.models.attention_inputs import AttentionInputs, whole_rows
from rfjax.models.decoder import forward, hidden_states, project
from rfjax.models.layer_groups import group_of_layers, layer_groups
from rfjax.ops.mask import Mask

LENGTH, CAPACITY, PAGE = 48, 64, 16
CHUNKS = (23, 23, 1, 1)
"""Of no size that divides anything, but for single tokens, whose program others have compiled."""

SHAPES = {
    "llama": (Shape(width=64, n_heads=4, n_kv_heads=2, head_dim=16, ffn_width=80), {}),
    "qwen2": (Shape("qwen2", 1, width=48, n_heads=6, n_kv_heads=1, head_dim=8, tied=True), {}),
    "qwen3": (Shape("qwen3", 1, width=64, n_heads=4, n_kv_heads=4, head_dim=24), {}),
    "mistral3": (
        Shape("mistral3", 1, width=64, head_dim=16),
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 16,
            "attention.temperature_scale": 0.2,
        },
    ),
    "mixtral": (Shape(n_layers=1, width=64, head_dim=16, n_experts=8, n_used=2), {}),
}


@functools.partial(jax.jit, static_argnames="config")
def step(params, cache, tokens, positions, tables=(), *, config):
    """Logits [B, L, V] of one step of B rows, and the cache after it."""
    batch, length = tokens.shape
    lengths = positions.max(axis=1) + 1
    inputs = AttentionInputs(positions, lengths, tables)
    hidden, cache = hidden_states(params, tokens.reshape(-1), inputs, cache, config=config)
    return project(params, hidden, config=config).reshape(batch, length, -1), cache


def roughly(function):
    """The function for what is held to a tolerance only, whatever XLA makes of it."""

    # A function of its own: JAX would give the same one the code that others have compiled.
    @functools.partial(jax.jit, static_argnames="config")
    def own(*args, **options):
        return function(*args, **options)

    def run(*args, **options):
        with quick_compile():
            return own(*args, **options)

    return run


run = roughly(forward)
"""Logits [T, V] without a cache."""

rough_step = roughly(step.__wrapped__)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    @functools.cache
    def get(name):
        shape, metadata = SHAPES[name]
        path = tmp_path_factory.mktemp("models") / f"{name}.gguf"
        return load(save(path, shape, seed=11, metadata=metadata))

    return get


def dense_cache(config, batch):
    return init_cache(config.kv_shapes, batch, CAPACITY, jnp.dtype("float32")), ()


def paged_cache(config, batch):
    """Pages in which NaN stands so far, and random tables of which two entries more are null."""
    groups = layer_groups(config)
    n_own = batch * CAPACITY // PAGE
    cache = init_paged_cache(
        config.kv_shapes,
        group_of_layers(groups),
        (n_own + 3,) * len(groups),
        PAGE,
        jnp.dtype("float32"),
    )
    rng = np.random.default_rng(0)
    pages = np.arange(2, n_own + 2, dtype=np.int32)
    tables = tuple(
        np.pad(rng.permutation(pages).reshape(batch, -1), ((0, 0), (0, 2))) for _ in groups
    )
    return jax.tree.map(lambda pages: jnp.full_like(pages, jnp.nan), cache), tables


@pytest.fixture(scope="module")
def in_steps(loaded):
    """Logits [B, LENGTH, V] of rows of tokens, run in steps of the given sizes."""

    def get(name, tokens, sizes, *, paged=False):
        model = loaded(name)
        make = paged_cache if paged else dense_cache
        cache, tables = make(model.config, len(tokens))
        parts, start = [], 0
        for size in sizes:
            at = np.arange(start, start + size, dtype=np.int32)
            logits, cache = step(
                model.params,
                cache,
                tokens[:, start : start + size],
                np.broadcast_to(at, (len(tokens), size)),
                tables,
                config=model.config,
            )
            parts.append(np.asarray(logits))
            start += size
        return np.concatenate(parts, axis=1)

    return get


def rows(count, vocab=40):
    return np.stack([random_tokens(seed, LENGTH, vocab) for seed in range(count)])


@pytest.mark.parametrize("name", SHAPES)
def test_prefill_equals_decode_steps(in_steps, name):
    whole = in_steps(name, rows(1), [LENGTH])
    assert_array_equal(in_steps(name, rows(1), [1] * LENGTH), whole)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_pages_equal_rows_of_keys(in_steps, name):
    whole = in_steps(name, rows(1), [LENGTH])
    assert_array_equal(in_steps(name, rows(1), [LENGTH], paged=True), whole)
    together = in_steps(name, rows(3), CHUNKS, paged=True)
    assert_array_equal(together[:1], whole)


def test_chunked_prefill_equals_the_whole(in_steps):
    whole = in_steps("llama", rows(1), [LENGTH])
    assert_array_equal(in_steps("llama", rows(1), CHUNKS), whole)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_a_row_in_a_batch_equals_the_row_alone(in_steps, name):
    alone = in_steps(name, rows(1), [LENGTH])
    batch = in_steps(name, rows(3), [LENGTH])
    assert_array_equal(batch[:1], alone)
    mixed = in_steps(name, rows(3), [40] + [1] * 8)
    assert_array_equal(mixed, batch)


@pytest.mark.parametrize("name", SHAPES)
def test_the_cache_changes_nothing(loaded, in_steps, name):
    model = loaded(name)
    plain = np.asarray(run(model.params, rows(1)[0], config=model.config))
    assert_allclose(in_steps(name, rows(1), [LENGTH])[0], plain, rtol=1e-5, atol=1e-5)


def test_rows_of_different_lengths(loaded):
    """Padding marked by -1 takes no part, wherever the other rows are."""
    model = loaded("llama")
    config = model.config
    tokens = rows(2)
    cache = init_cache(config.kv_shapes, 2, CAPACITY, jnp.dtype("float32"))
    positions = np.stack([np.arange(LENGTH), np.arange(LENGTH)]).astype(np.int32)
    positions[1, 30:] = -1
    ragged, cache = rough_step(model.params, cache, tokens, positions, config=config)
    alone = np.asarray(run(model.params, tokens[1, :30], config=config))
    assert_allclose(ragged[1, :30], alone, atol=1e-5)
    # The next tokens of both rows, at positions 48 and 30.
    following = np.array([[5], [6]], np.int32)
    after, _ = rough_step(
        model.params, cache, following, np.array([[LENGTH], [30]], np.int32), config=config
    )
    for row, length in ((0, LENGTH), (1, 30)):
        sequence = np.append(tokens[row, :length], following[row])
        expected = run(model.params, sequence, config=config)[-1]
        assert_allclose(after[row, 0], expected, atol=1e-5)


def test_long_prompts_are_cut_without_a_trace(loaded):
    """From 256 tokens on, attention without a cache runs in segments."""
    model = loaded("llama")
    tokens = random_tokens(1, 300, 40)
    plain = np.asarray(run(model.params, tokens, config=model.config))
    short = np.asarray(run(model.params, tokens[:200], config=model.config))
    assert_allclose(plain[:200], short, atol=1e-5)
    cache = init_cache(model.config.kv_shapes, 1, 300, jnp.dtype("float32"))
    positions = np.arange(300, dtype=np.int32)[None]
    cached, _ = rough_step(model.params, cache, tokens[None], positions, config=model.config)
    assert_allclose(cached[0], plain, atol=1e-5)


def test_whole_rows_mark_their_padding():
    inputs = whole_rows(jnp.asarray([3, 0, 2], jnp.int32), 3)
    assert_array_equal(inputs.positions, [[0, 1, 2], [-1, -1, -1], [0, 1, -1]])
    assert_array_equal(inputs.key_lengths, [3, 0, 2])
    assert_array_equal(inputs.flat_positions, [0, 1, 2, 0, 0, 0, 0, 1, 0])


def test_positions_reach_the_logits(loaded):
    """The same tokens at other distances give other logits; all shifted alike, the same ones.

    Bidirectional, so that positions act through the rotation alone.
    """
    model = loaded("llama")
    mask = Mask("bidirectional")
    layers = tuple(dataclasses.replace(layer, mask=mask) for layer in model.config.layers)
    config = dataclasses.replace(model.config, layers=layers)

    @jax.jit
    def at(positions):
        inputs = AttentionInputs(positions[None], jnp.full((1,), 12, jnp.int32))
        hidden, _ = hidden_states(model.params, rows(1)[0, :12], inputs, None, config=config)
        return project(model.params, hidden, config=config)

    plain = np.asarray(at(jnp.arange(12, dtype=jnp.int32)))
    assert_allclose(at(jnp.arange(700, 712, dtype=jnp.int32)), plain, atol=2e-3)
    spread = np.asarray(at(jnp.arange(0, 24, 2, dtype=jnp.int32)))
    backwards = np.asarray(at(jnp.arange(11, -1, -1, dtype=jnp.int32)))
    for moved in (spread, backwards):
        assert np.abs(moved - plain).max() > 0.1
