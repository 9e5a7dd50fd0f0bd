"""Gradients through packed weights, experts and latent attention, by finite differences.

Through all plain weights at once `test_decoder` checks them, those of kernels `tests/ops`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from support.random_gguf import FAMILIES, Sizes, save_gguf
from support.random_model import random_tokens

from rfjax.io.load import load
from rfjax.models.decoder import forward
from rfjax.models.params import named_leaves, param_spec
from rfjax.models.random_params import random_params
from rfjax.models.shape import ExpertsShape, ModelShape
from rfjax.ops.activation import activate
from rfjax.quant.qtensor import has_packed
from rfjax.quant.types import BLOCK_SIZES, GGMLType

pytestmark = pytest.mark.quick_compile

LENGTH = 6

NARROW = ModelShape(
    architecture="llama",
    label="tiny",
    vocab_size=40,
    d_model=64,
    n_layers=1,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    ffn_dim=64,
    context_length=32,
    norm_eps=1e-5,
    rope_base=10000.0,
    tied_output=False,
)
WIDE = dataclasses.replace(NARROW, d_model=256, ffn_dim=256)
SPARSE = dataclasses.replace(NARROW, ffn_dim=0, experts=ExpertsShape(4, 2, 64))
LATENT = Sizes(
    width=64,
    ffn=64,
    expert_ffn=32,
    shared_ffn=32,
    q_rank=32,
    kv_rank=32,
    nope_dim=32,
    value_dim=32,
)


def latent_config(folder):
    """Of a small DeepSeek-V2: latent attention, and experts in the second of its layers."""
    return load(save_gguf(folder / "m.gguf", FAMILIES["deepseek2"], LATENT, seed=1)).config


def packed_params(config, types):
    """Random weights whose matrices take turns with `types` where their rows are whole blocks."""
    turns = 0
    chosen = {}
    for name, leaf in named_leaves(param_spec(config)).items():
        chosen[name] = GGMLType.F32
        type = types[turns % len(types)]
        if not leaf.wide and leaf.shape[-1] % BLOCK_SIZES[type][0] == 0:
            chosen[name], turns = type, turns + 1
    return random_params(config, chosen)


@functools.partial(jax.jit, static_argnames="config")
def slopes(params, shift, *, config):
    """Mean log-probability of the tokens, and its gradients by the weights and by a shift of the
    embeddings [T, D]."""
    tokens = jnp.asarray(random_tokens(1, LENGTH, config.vocab_size))

    def mean(params, shift):
        logits = forward(params, tokens, config=config, edits={"token_embd": lambda x: x + shift})
        logprobs = jax.nn.log_softmax(logits[:-1])
        return jnp.take_along_axis(logprobs, tokens[1:, None], axis=1).mean()

    return jax.value_and_grad(mean, (0, 1), allow_int=True)(params, shift)


@pytest.mark.parametrize(
    ("kind", "types"),
    [
        (WIDE, [GGMLType.Q4_K, GGMLType.Q6_K, GGMLType.IQ4_XS]),
        (SPARSE, [GGMLType.Q8_0, GGMLType.Q4_0]),
        (LATENT, [GGMLType.Q8_0, GGMLType.Q5_1]),
    ],
    ids=["dense", "experts", "latent"],
)
def test_gradients_through_packed_weights(tmp_path, kind, types):
    """By the embeddings in their gradient's direction and in others, and by every other weight."""
    config = latent_config(tmp_path) if kind is LATENT else kind.model_config("float32")
    params = packed_params(config, types)
    assert has_packed(params)
    still = np.zeros((LENGTH, config.d_model), np.float32)
    value = lambda params, shift: float(slopes(params, shift, config=config)[0])  # noqa: E731
    _, (by_weights, by_shift) = slopes(params, still, config=config)
    step = 2e-3

    by_shift = np.asarray(by_shift)
    norm = float(np.linalg.norm(by_shift))
    rng = np.random.default_rng(0)
    others = rng.standard_normal((2, *still.shape), np.float32)
    for direction in (by_shift, *others):
        direction = direction / np.linalg.norm(direction)
        found = (value(params, step * direction) - value(params, -step * direction)) / (2 * step)
        assert found == pytest.approx(float((by_shift * direction).sum()), abs=3e-3 * norm)

    # Every f32 leaf a unit along its own gradient: norms, routers, plain matrices.
    leaves, tree = jax.tree.flatten(params)
    gradients = [
        np.asarray(gradient) if leaf.dtype == jnp.float32 else None
        for leaf, gradient in zip(leaves, jax.tree.leaves(by_weights), strict=True)
    ]
    norms = [0.0 if g is None else float(np.linalg.norm(g)) for g in gradients]
    assert len([norm for norm in norms if norm > 0]) >= 3

    def moved(distance):
        parts = [
            leaf if n == 0.0 else leaf + np.float32(distance / n) * g
            for leaf, g, n in zip(leaves, gradients, norms, strict=True)
        ]
        return value(jax.tree.unflatten(tree, parts), still)

    assert (moved(step) - moved(-step)) / (2 * step) == pytest.approx(sum(norms), rel=0.01)


@pytest.mark.parametrize("size", [1.0, 1e-6, 1e6])
def test_the_gradient_of_gelu_is_not_rounded_to_halves(size):
    """Although its values are: neither small arguments nor small cotangents get lost."""
    x = np.asarray([-9.9, -3.0, -1.0, 1e-5, 3e-5, 0.3, 5.0, 11.0], np.float32)
    found = jax.grad(lambda x: size * activate(x, "gelu").sum())(x) / size
    wide = x.astype(np.float64)
    share = (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3))) / 2
    slope = np.sqrt(8 / np.pi) * (1 + 3 * 0.044715 * wide**2)
    expected = share + wide * share * (1 - share) * slope
    assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
