"""Two models in one program, token by token."""

import functools

import jax
import numpy as np
import pytest
from support.tiny_model import tiny_llama

import rfjax
from rfjax.evals.kl.divergence import (
    divergences,
    divergences_of_states,
    head,
    many_divergences,
    scored_states,
)
from rfjax.ops.divergence import row_divergences

pytestmark = pytest.mark.quick_compile

CONFIGS = ("first", "base_config", "config")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base, the same with another seed's weights, and a deeper one."""
    folder = tmp_path_factory.mktemp("models")
    sizes = {"base": {}, "other": {"seed": 1}, "deep": {"n_layers": 2, "width": 32}}
    return {
        name: rfjax.load(tiny_llama(folder / f"{name}.gguf", **{"n_layers": 1, **more}))
        for name, more in sizes.items()
    }


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(3, 300, (2, 16)).astype(np.int32)


def test_every_token_is_that_of_forward(models, tokens):
    base, other = models["base"], models["deep"]
    forward = jax.jit(rfjax.forward, static_argnames="config")
    compiled = jax.jit(divergences, static_argnames=CONFIGS)
    found = compiled(
        base.params, other.params, tokens, first=7, base_config=base.config, config=other.config
    )
    for row in range(2):
        logits = [
            forward(model.params, tokens[row], config=model.config)[7:-1] for model in (base, other)
        ]
        expected = row_divergences(*logits, tokens[row, 8:])
        for value, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert value.shape == (2, 8)
            np.testing.assert_allclose(value[row], wanted, rtol=2e-5, atol=2e-5)


def test_several_models_in_one_program_and_a_model_beside_itself(models, tokens):
    base, other = models["base"], models["other"]
    compiled = jax.jit(many_divergences, static_argnames=("first", "base_config", "configs"))
    itself, apart = compiled(
        base.params,
        (base.params, other.params),
        tokens,
        first=7,
        base_config=base.config,
        configs=(base.config, other.config),
    )
    assert (np.asarray(itself.kld) == 0).all() and np.asarray(itself.same_top).all()
    assert (np.asarray(itself.nll) == np.asarray(apart.nll_base)).all()
    assert np.asarray(apart.kld).min() > 0.01


def test_states_kept_in_between_give_the_same(models, tokens):
    base, other = models["base"], models["other"]
    whole = jax.jit(divergences, static_argnames=CONFIGS)(
        base.params, other.params, tokens, first=7, base_config=base.config, config=other.config
    )
    jitted_states = jax.jit(scored_states, static_argnames=("first", "config"))
    kept = [
        jitted_states(model.params, tokens, first=7, config=model.config) for model in (base, other)
    ]
    heads = [head(model.params, model.config) for model in (base, other)]
    found = jax.jit(divergences_of_states)(*heads, *kept, tokens[:, 8:])
    for value, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=2e-5, atol=2e-5)


def test_the_mean_divergence_has_a_gradient_in_the_weights(models, tokens):
    """It points where the divergence falls."""
    base, other = models["base"], models["other"]
    same = functools.partial(divergences, first=7, base_config=base.config, config=other.config)
    mean = jax.jit(jax.value_and_grad(lambda p: same(base.params, p, tokens).kld.mean()))
    before, gradient = mean(other.params)
    after, _ = mean(jax.tree.map(lambda w, g: w - 0.3 * g, other.params, gradient))
    assert 0 < float(after) < float(before)
