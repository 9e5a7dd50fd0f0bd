"""The size of the cache follows from the room there is."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rfjax
from rfjax.cache.paged import init_paged_cache
from rfjax.engine.cache_plan import plan_cache, plan_in
from rfjax.engine.config import EngineConfig
from rfjax.errors import CapacityError, ConfigError, UnsupportedError
from rfjax.io.memory import Memory
from rfjax.models.config import Latent
from rfjax.models.layer_groups import group_of_layers, layer_groups
from rfjax.ops.mask import Mask
from rfjax.sharding import make_mesh


@pytest.fixture(scope="module")
def model(tiny_llama_path):
    return rfjax.load(tiny_llama_path)


@pytest.fixture(scope="module")
def mixed(model):
    """Layers of full attention and of a window."""
    masks = Mask(), Mask("window", 40), Mask()
    layers = tuple(dataclasses.replace(model.config.layers[0], mask=mask) for mask in masks)
    return dataclasses.replace(model.config, layers=layers, context_length=100_000)


def planned(model, config, engine, free, share=1.0, sharers=1):
    return plan_in(model.params, config, engine, Memory(free, sharers, "a device"), share)


def allocated(plan, config, engine):
    """Bytes of the cache that a plan asks for, counted by its arrays."""
    cache = jax.eval_shape(
        lambda: init_paged_cache(
            config.kv_shapes,
            group_of_layers(layer_groups(config)),
            tuple(group.n_pages for group in plan.sizes.groups),
            plan.sizes.page_size,
            jnp.dtype(engine.kv_dtype or config.dtype),
        )
    )
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    megabytes=st.integers(100, 4000),
    slots=st.sampled_from([1, 3, 32]),
    page_size=st.sampled_from([16, 64]),
    kv_dtype=st.sampled_from([None, "bfloat16", "int8"]),
    context=st.sampled_from([None, 300, 5000]),
)
def test_a_plan_fits_in_its_room(model, mixed, megabytes, slots, page_size, kv_dtype, context):
    engine = EngineConfig(
        max_batch_size=slots, page_size=page_size, kv_dtype=kv_dtype, max_context=context
    )
    free = megabytes << 20
    plan = planned(model, mixed, engine, free, 0.9)
    assert plan.cache + plan.rows + plan.workspace <= 0.9 * free
    assert plan.cache == allocated(plan, mixed, engine)
    assert plan.sizes.max_context <= (context or mixed.context_length)
    assert [group.window for group in plan.sizes.groups] == [None, 40]
    # The window's pages do not grow with the context.
    assert plan.sizes.groups[1].n_pages <= 1 + slots * (-(-(40 + 512 + 64) // page_size) + 1)


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_latent_layers_are_planned_by_what_they_keep(model, mixed, kv_dtype):
    latent = Latent(0, kv_rank=24, nope_dim=12, rope_dim=4, value_dim=16, split=True)
    layers = tuple(dataclasses.replace(layer, latent=latent) for layer in mixed.layers)
    config = dataclasses.replace(mixed, layers=layers)
    engine = EngineConfig(max_batch_size=2, max_context=1000, kv_dtype=kv_dtype)
    plan = planned(model, config, engine, 1 << 30)
    assert plan.cache == allocated(plan, config, engine)
    assert plan.cache < planned(model, mixed, engine, 1 << 30).cache
    assert plan.workspace > planned(model, mixed, engine, 1 << 30).workspace


def test_more_memory_is_more_pages_until_every_slot_has_a_whole_context(model, mixed):
    engine = EngineConfig(max_batch_size=4, max_context=2000)
    pages = [
        planned(model, mixed, engine, mib << 20).sizes.groups[0].n_pages for mib in (32, 34, 8000)
    ]
    assert pages[0] < pages[1] < pages[2] == 1 + 4 * -(-2000 // 32)


def test_a_context_that_does_not_fit_is_cut_or_refused(model, mixed, caplog):
    engine = EngineConfig(max_batch_size=2)
    with caplog.at_level(logging.WARNING):
        cut = planned(model, mixed, engine, 60 << 20).sizes
    assert 64 <= cut.max_context < mixed.context_length
    assert f"cut to {cut.max_context}" in caplog.text
    asked = dataclasses.replace(engine, max_context=mixed.context_length)
    with pytest.raises(CapacityError, match=f"would fit: max_context={cut.max_context};"):
        planned(model, mixed, asked, 60 << 20)
    with pytest.raises(CapacityError, match="nothing would fit"):
        planned(model, mixed, engine, 1 << 20)
    with pytest.raises(ConfigError, match="the model's context holds 100000"):
        planned(model, mixed, dataclasses.replace(engine, max_context=100_001), 60 << 20)


def test_where_nobody_knows_the_room_all_slots_get_a_context(model):
    plan = planned(model, model.config, EngineConfig(max_batch_size=3), None)
    assert plan.sizes.groups[0].n_pages == 1 + 3 * model.config.context_length // 32
    assert "an unknown rest free" in str(plan)


def test_devices_that_share_a_memory_share_the_room(model, mixed):
    engine = EngineConfig(max_batch_size=4)
    alone = planned(model, mixed, engine, 100 << 20)
    shared = planned(model, mixed, engine, 400 << 20, sharers=4)
    assert shared.sizes == alone.sizes


def test_pages_of_8_bits_keep_out_of_what_kernels_decline(model, mixed):
    """Between 2 and 4 GiB of keys in a layer."""
    layer = mixed.layers[0]
    of_page = 32 * layer.n_kv_heads * layer.head_dim
    engine = EngineConfig(max_batch_size=1024, kv_dtype="int8", token_budget=2048)
    sizes = []
    for gib in range(2, 60, 3):
        long = dataclasses.replace(mixed, context_length=1 << 20)
        plan = planned(model, long, engine, gib << 30)
        sizes.append(plan.sizes.groups[0].n_pages * of_page)
        assert plan.cache == allocated(plan, long, engine)
    assert not any((1 << 31) < size <= (1 << 32) for size in sizes)
    assert sizes[0] < 1 << 31 < 1 << 32 < sizes[-1]
    assert sizes == sorted(sizes)


def test_a_plan_is_made_of_this_machine(model):
    plan = plan_cache(model.params, model.config, EngineConfig())
    assert plan.memory.free and plan.sizes.max_context == model.config.context_length
    assert "cache" in str(plan) and "(full) pages of 32 tokens" in str(plan)
    spread = plan_cache(model.params, model.config, EngineConfig(), make_mesh(model=2))
    assert spread.cache == plan.cache / 2


def test_tokens_that_see_those_behind_them_are_not_generated(model):
    layers = tuple(
        dataclasses.replace(layer, mask=Mask("bidirectional")) for layer in model.config.layers
    )
    config = dataclasses.replace(model.config, layers=layers)
    with pytest.raises(UnsupportedError, match="llama generates no token after another"):
        plan_cache(model.params, config, EngineConfig())
