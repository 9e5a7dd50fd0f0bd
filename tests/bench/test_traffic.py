"""Bytes and operations, counted by hand for a model small enough."""

import dataclasses

import jax
import pytest

from rfjax.bench.case import Case
from rfjax.bench.traffic import case_bytes, case_flops
from rfjax.models.config import Latent
from rfjax.models.params import param_spec
from rfjax.models.random_params import random_params, tensor_types
from rfjax.models.shape import ExpertsShape, ModelShape

pytestmark = pytest.mark.quick_compile

SHAPE = ModelShape(
    architecture="llama",
    label="x",
    vocab_size=96,
    d_model=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    context_length=64,
    norm_eps=1e-5,
    rope_base=1e4,
    tied_output=False,
    ffn_dim=64,
)
ATTENTION = 32 * 32 * 2 + 2 * 16 * 32  # q and output; k and v
FFN = 3 * 64 * 32


def f32_params(config):
    types = tensor_types(config, "f32", SHAPE.mix_model())
    return random_params(config, types)


@pytest.fixture(scope="module")
def dense():
    config = SHAPE.model_config("float32")
    return config, f32_params(config)


def test_bytes_of_generation(dense):
    config, params = dense
    norms = 2 * 2 * 32 + 32
    weights = 4 * (2 * (ATTENTION + FFN) + norms + 96 * 32)
    keys = 11 + 12 + 13
    cached = keys * 2 * (2 * 2 * 8) * 4
    assert case_bytes(params, config, Case(n_gen=3, n_depth=10)) == 3 * weights + cached
    assert case_bytes(params, config, Case(n_gen=3, n_depth=10, n_seqs=5)) == (
        3 * weights + 5 * cached
    )
    assert case_bytes(params, config, Case(n_prompt=4)) == 0
    assert case_bytes(params, config, Case(n_prompt=4, n_gen=3)) == 0


def test_a_tied_table_is_read_too(dense):
    config, params = dense
    tied = dataclasses.replace(config, tied_output=True)
    case = Case(n_gen=1)
    assert case_bytes(dataclasses.replace(params, output=None), tied, case) == case_bytes(
        params, config, case
    )


def test_only_chosen_experts_are_read():
    shape = dataclasses.replace(
        SHAPE, ffn_dim=0, experts=ExpertsShape(n_experts=4, n_used=2, ffn_dim=16)
    )
    config = shape.model_config("float32")
    params = f32_params(config)
    whole = 4 * 2 * 4 * 3 * 16 * 32  # bytes of all experts
    one, two = (case_bytes(params, config, Case(n_gen=1, n_seqs=n)) for n in (1, 2))
    cached = 2 * 2 * 2 * 8 * 4
    assert two - cached - one == pytest.approx(whole * (3 / 4 - 1 / 2))
    everything = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) - 4 * 96 * 32
    assert one == everything - whole // 2 + cached
    flops = case_flops(config, Case(n_gen=1))
    per_token = 2 * (ATTENTION + 4 * 32 + 2 * 3 * 16 * 32)
    assert flops == 2 * (per_token + 96 * 32 + 2 * 2 * 32)
    assert param_spec(config).blk[0].ffn_up is None


def test_operations_of_prompts_and_scores(dense):
    config, _ = dense
    per_token, head = 2 * (ATTENTION + FFN), 96 * 32
    keys = 10 * 4 + 1 + 2 + 3 + 4
    attention = 2 * 2 * keys * 32
    assert case_flops(config, Case(n_prompt=4, n_depth=10, n_seqs=3)) == 3 * 2 * (
        4 * per_token + head + attention
    )
    attention = 2 * 2 * 36 * 32
    assert case_flops(config, Case(n_score=8)) == 2 * (8 * per_token + 4 * head + attention)


def test_latent_layers_keep_one_vector_a_token(dense):
    config, params = dense
    latent = Latent(0, kv_rank=12, nope_dim=6, rope_dim=2, value_dim=5, split=True)
    layers = tuple(dataclasses.replace(layer, latent=latent) for layer in config.layers)
    config = dataclasses.replace(config, layers=layers)
    few, many = Case(n_gen=1), Case(n_gen=1, n_depth=10)
    assert case_bytes(params, config, many) - case_bytes(params, config, few) == 10 * 2 * 14 * 4
    assert case_flops(config, many) - case_flops(config, few) == 10 * 2 * 2 * 4 * (8 + 5)
