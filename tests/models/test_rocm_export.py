"""Whole prefill and decode steps lower for AMD GPUs, with their kernels in them, without one."""

import collections

import jax
import jax.numpy as jnp
import pytest
from support.rocm import export_for, kernels_in

from rfjax.cache.paged import init_paged_cache
from rfjax.engine.rows import rows_of
from rfjax.engine.steps import decode, prefill
from rfjax.models.random_params import random_params, tensor_types
from rfjax.models.shape import ModelShape

SLOTS, ROWS, CAPACITY, PAGE, LENGTH, LAYERS = 4, 2, 256, 32, 64, 3

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


def abstract_state():
    """A cache, rows, counts and tables of an engine without numbers."""
    n_pages = 1 + SLOTS * CAPACITY // PAGE

    def make():
        cache = init_paged_cache(
            CONFIG.kv_shapes, (0,) * LAYERS, (n_pages,), PAGE, jnp.dtype("bfloat16")
        )
        rows = jax.tree.map(jnp.asarray, rows_of([], SLOTS, CONFIG.vocab_size, 8, 8))
        counts = jnp.zeros((SLOTS, CONFIG.vocab_size), jnp.int32)
        return cache, rows, counts, (jnp.zeros((SLOTS, CAPACITY // PAGE), jnp.int32),)

    return jax.eval_shape(make)


def abstract_params():
    """Packed weights in llama-quantize's mix of types, without numbers."""
    types = tensor_types(CONFIG, "q4_k_m", SHAPE.mix_model())
    return jax.eval_shape(lambda: random_params(CONFIG, types))


def whole_decode(params, cache, rows, counts, tables):
    return decode(
        params,
        cache,
        rows,
        counts,
        tables,
        jnp.arange(ROWS, dtype=jnp.int32),
        jnp.full(ROWS, 8, jnp.int32),
        jnp.int32(8),
        burst=8,
        n_top=20,
        processors=(),
        config=CONFIG,
    )


def whole_prefill(params, cache, rows, counts, tables):
    """Three pieces of prompts, of which two are of one sequence."""
    positions = jnp.arange(3 * LENGTH, dtype=jnp.int32).reshape(3, LENGTH)
    slots = jnp.array([0, 0, 1], jnp.int32)
    _, cache = prefill(params, cache, tables, positions, positions, slots, config=CONFIG)
    return cache


# Projections that share an input are one product: Q, K and V; the output; gate and up; down.
PRODUCTS = 4 * LAYERS + 1
DECODE = {
    "pack_activations": PRODUCTS,
    "quantized_matvec": PRODUCTS,
    "paged_decode_attention": LAYERS,
}
# No logits are computed, and nothing reads what attention gives in the last layer.
PREFILL = {"paged_prefill_attention": LAYERS - 1, "packed_matmul": 4 * (LAYERS - 1) + 1}


@pytest.mark.parametrize("arch", ["gfx942", "gfx1100"])
@pytest.mark.parametrize(
    ("function", "expected"), [(whole_decode, DECODE), (whole_prefill, PREFILL)]
)
def test_a_step_is_exported_with_its_kernels(function, expected, arch):
    exported = export_for(function, abstract_params(), *abstract_state(), arch=arch)
    assert exported.platforms == ("rocm",)
    # A portable artifact, which `kernels_in` reads back.
    assert exported.mlir_module_serialized
    # A product's name ends with the types of its weights.
    names = [kernel.name.partition("_q")[0] for kernel in kernels_in(exported)]
    assert collections.Counter(names) == expected
