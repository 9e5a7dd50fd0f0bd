"""A decode step of whole models through interpreted kernels stays near that of plain JAX."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.cache.dense import init_cache
from rfjax.models.attention_inputs import AttentionInputs
from rfjax.models.decoder import hidden_states, project
from rfjax.models.params import named_leaves, param_spec
from rfjax.models.random_params import random_params
from rfjax.models.shape import ExpertsShape, ModelShape
from rfjax.ops.dispatch import KernelPolicy
from rfjax.quant.types import GGMLType

pytestmark = pytest.mark.quick_compile

BATCH, CAPACITY = 2, 32

DENSE = ModelShape(
    architecture="llama",
    label="tiny",
    vocab_size=131,
    d_model=32,
    n_layers=1,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    ffn_dim=320,
    context_length=CAPACITY,
    norm_eps=1e-5,
    rope_base=10000.0,
    tied_output=False,
)
SPARSE = dataclasses.replace(DENSE, ffn_dim=0, experts=ExpertsShape(6, 2, 64))


@functools.partial(jax.jit, static_argnames="config")
def step(params, cache, tokens, inputs, *, config):
    hidden, cache = hidden_states(params, tokens, inputs, cache, config=config)
    return project(params, hidden, config=config), cache


@pytest.mark.parametrize(
    ("shape", "packed", "kernels"),
    [
        # Q, K and V packed; the output, gate and up, down and the logits plain.
        (DENSE, ("attn_q.", "attn_k.", "attn_v."), {"quantized": 1, "plain": 4, "grouped": 0}),
        # Gate and up, down; Q, K and V, the output, the router and the logits plain.
        (SPARSE, ("_exps.",), {"quantized": 0, "plain": 4, "grouped": 2}),
    ],
    ids=["dense", "mixture"],
)
def test_a_decode_step_through_kernels_is_near_plain_jax(shape, packed, kernels):
    config = shape.model_config("float32")
    types = {
        name: GGMLType.Q8_0 if any(part in name for part in packed) else GGMLType.F32
        for name in named_leaves(param_spec(config))
    }
    params = random_params(config, types)
    positions = jnp.asarray([[0], [0]], jnp.int32)
    inputs = AttentionInputs(positions, jnp.asarray([1, 1], jnp.int32))
    cache = init_cache(config.kv_shapes, BATCH, CAPACITY, jnp.dtype("float32"))
    tokens = jnp.asarray([3, 130], jnp.int32)

    def run(policy):
        with_policy = dataclasses.replace(config, kernels=policy)
        return functools.partial(step, config=with_policy), (params, cache, tokens, inputs)

    function, args = run(KernelPolicy(interpret=True))
    text = str(jax.make_jaxpr(function)(*args))
    assert {name: text.count(f"name={name}_matvec_") for name in kernels} == kernels
    found = jax.tree.leaves(function(*args))
    function, args = run(KernelPolicy("xla"))
    for a, b in zip(found, jax.tree.leaves(function(*args)), strict=True):
        assert np.linalg.norm(a - b) <= 1e-3 * np.linalg.norm(b)
