"""Whole prefill and decode steps lower for AMD GPUs, with their kernels in them, without one."""

import collections

import jax
import jax.numpy as jnp
import pytest
from support.rocm import export_for, kernels_in

from rfjax.cache.dense import DenseCache, LayerCache
from rfjax.engine.state import DecodeState, decode_step, prefill
from rfjax.models.random_params import random_params, tensor_types
from rfjax.models.shape import ModelShape
from rfjax.ops.sampling import greedy

BATCH, CAPACITY, LENGTH, LAYERS = 2, 256, 64, 3

SHAPE = ModelShape(
    architecture="llama",
    label="tiny",
    vocab_size=512,
    d_model=512,
    n_layers=LAYERS,
    n_heads=8,
    n_kv_heads=2,
    head_dim=64,
    ffn_dim=1024,
    context_length=CAPACITY,
    norm_eps=1e-5,
    rope_base=10000.0,
    tied_output=False,
)
CONFIG = SHAPE.model_config("bfloat16")


def array(*shape: int, dtype) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def abstract_state() -> DecodeState:
    """A batch's state without numbers."""
    row = {"dtype": jnp.int32}
    numbers = {"dtype": jnp.float32}
    layers = tuple(
        LayerCache(
            k=array(BATCH, n_kv, CAPACITY, head_dim, dtype=jnp.bfloat16),
            v=array(BATCH, n_kv, head_dim, CAPACITY, dtype=jnp.bfloat16),
        )
        for n_kv, head_dim in CONFIG.kv_shapes
    )
    return DecodeState(
        cache=DenseCache(layers),
        tokens=array(BATCH, CAPACITY, **row),
        logprobs=array(BATCH, CAPACITY, **numbers),
        lengths=array(BATCH, **row),
        limits=array(BATCH, **row),
        stop_ids=array(BATCH, 8, **row),
        finished=array(BATCH, dtype=jnp.bool_),
        sampling=jax.eval_shape(lambda: greedy(BATCH, CONFIG.vocab_size, n_bias=2, n_stop=8)),
        counts=array(BATCH, CONFIG.vocab_size, **row),
    )


def abstract_params():
    """Packed weights in llama-quantize's mix of types, without numbers."""
    types = tensor_types(CONFIG, "q4_k_m", SHAPE.mix_model())
    return jax.eval_shape(lambda: random_params(CONFIG, types))


def whole_decode_step(params, state):
    return decode_step(params, state, config=CONFIG)


def whole_prefill(params, state):
    return prefill(params, state, jnp.int32(0), length=LENGTH, config=CONFIG)


# Projections that share an input are one product: Q, K and V; the output; gate and up; down.
PRODUCTS = 4 * LAYERS + 1
DECODE = {"pack_activations": PRODUCTS, "quantized_matvec": PRODUCTS, "decode_attention": LAYERS}
# No logits are computed, and nothing reads what attention gives in the last layer.
PREFILL = {"prefill_attention": LAYERS - 1}


@pytest.mark.parametrize("arch", ["gfx942", "gfx1100"])
@pytest.mark.parametrize(
    ("function", "expected"), [(whole_decode_step, DECODE), (whole_prefill, PREFILL)]
)
def test_a_step_is_exported_with_its_kernels(function, expected, arch):
    exported = export_for(function, abstract_params(), abstract_state(), arch=arch)
    assert exported.platforms == ("rocm",)
    # A portable artifact, which `kernels_in` reads back.
    assert exported.mlir_module_serialized
    # A product's name ends with the types of its weights.
    names = [kernel.name.partition("_q")[0] for kernel in kernels_in(exported)]
    assert collections.Counter(names) == expected
