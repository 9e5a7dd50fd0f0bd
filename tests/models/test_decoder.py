"""The decoder as a function: gradients, vmap, causality, and what its inputs may be."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from support.random_model import Shape, random_tokens, save

from rfjax.io.load import load
from rfjax.models.attention_inputs import whole_rows
from rfjax.models.decoder import forward, hidden_states, output_projection, project
from rfjax.models.params import named_leaves
from rfjax.ops.mask import Mask

pytestmark = pytest.mark.quick_compile

LENGTH = 9

run = jax.jit(forward, static_argnames="config")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    shape = Shape(width=16, n_heads=2, n_kv_heads=1, ffn_width=24, vocab_size=19, tied=True)
    return load(save(tmp_path_factory.mktemp("decoder") / "m.gguf", shape, seed=21))


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    shape = Shape("qwen3moe", 1, width=16, n_heads=2, vocab_size=19, n_experts=3, n_used=2)
    return load(save(tmp_path_factory.mktemp("decoder") / "m.gguf", shape, seed=22))


TOKENS = random_tokens(3, LENGTH, 19)


def test_logits_are_f32_of_the_vocabulary(model):
    logits = run(model.params, TOKENS, config=model.config)
    assert logits.shape == (LENGTH, 19) and logits.dtype == jnp.float32


def test_a_token_sees_nothing_behind_itself(model):
    whole = np.asarray(run(model.params, TOKENS, config=model.config))
    changed = TOKENS.copy()
    changed[5] = (changed[5] + 1) % 19
    other = np.asarray(run(model.params, changed, config=model.config))
    assert_array_equal(other[:5], whole[:5])
    assert (np.abs(other[5:] - whole[5:]).max(axis=1) > 1e-3).all()


def test_a_bidirectional_mask_does(model):
    layers = tuple(
        dataclasses.replace(layer, mask=Mask("bidirectional")) for layer in model.config.layers
    )
    config = dataclasses.replace(model.config, layers=layers)
    changed = TOKENS.copy()
    changed[-1] = (changed[-1] + 1) % 19
    first = [np.asarray(run(model.params, t, config=config))[0] for t in (TOKENS, changed)]
    assert np.abs(first[0] - first[1]).max() > 1e-3


def test_vmap_over_sequences(model):
    batch = np.stack([random_tokens(seed, LENGTH, 19) for seed in range(3)])
    one = functools.partial(forward, config=model.config)
    found = jax.jit(jax.vmap(one, in_axes=(None, 0)))(model.params, batch)
    for tokens, logits in zip(batch, found, strict=True):
        assert_allclose(logits, run(model.params, tokens, config=model.config), atol=1e-5)


@pytest.mark.parametrize("kind", ["model", "sparse"])
def test_gradients_match_finite_differences(request, kind):
    """Along a random direction through all weights at once, and along each tensor's gradient."""
    model = request.getfixturevalue(kind)

    @jax.jit
    def loss(params):
        logits = forward(params, TOKENS, config=model.config)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:-1]), TOKENS[1:, None], axis=-1)
        return -chosen.mean()

    weights = jax.tree.map(np.asarray, model.params)
    gradient = jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(weights))
    leaves, tree = jax.tree.flatten(gradient)
    for name, leaf in named_leaves(gradient).items():
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, name

    def slope(parts, size):
        direction = jax.tree.unflatten(tree, parts)

        def at(distance):
            return loss(jax.tree.map(lambda p, d: p + np.float32(distance) * d, weights, direction))

        return float(at(size) - at(-size)) / (2 * size)

    rng = np.random.default_rng(4)
    for _ in range(3):
        # Signs: no tensor of large gradient hides an error in a small one.
        parts = [rng.choice([-1.0, 1.0], leaf.shape).astype(np.float32) for leaf in leaves]
        expected = sum(float((a * b).sum()) for a, b in zip(parts, leaves, strict=True))
        assert slope(parts, 2e-4) == pytest.approx(expected, rel=0.03, abs=0.02)
    for i, leaf in enumerate(leaves):
        norm = float(np.sqrt((leaf * leaf).sum()))
        parts = [np.zeros_like(other) for other in leaves]
        parts[i] = leaf / norm
        assert slope(parts, 3e-3) == pytest.approx(norm, rel=0.03, abs=2e-3)


def test_tied_output_is_the_embedding_itself(model):
    assert model.params.output is None
    assert output_projection(model.params) is model.params.token_embd


def test_hidden_states_without_the_projection(model):
    @jax.jit
    def two_parts(params, tokens):
        inputs = whole_rows(jnp.full((1,), LENGTH, jnp.int32), LENGTH)
        hidden, cache = hidden_states(params, tokens, inputs, None, config=model.config)
        assert cache is None and hidden.shape == (LENGTH, 16)
        return project(params, hidden, config=model.config)

    logits = two_parts(model.params, TOKENS)
    assert_allclose(logits, run(model.params, TOKENS, config=model.config), atol=1e-5)


def test_one_compiled_program_for_equal_configurations(model):
    counted = jax.jit(lambda p, t, config: forward(p, t, config=config), static_argnames="config")
    counted(model.params, TOKENS, config=model.config)
    counted(model.params, TOKENS, config=dataclasses.replace(model.config))
    assert counted._cache_size() == 1


def test_an_id_outside_the_vocabulary_shows(model):
    tokens = TOKENS.copy()
    tokens[4] = 19
    logits = np.asarray(run(model.params, tokens, config=model.config))
    assert np.isnan(logits[4]).all()
