"""Shardings by logical axes, and a model spread over eight devices."""

import logging

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from support.random_model import Shape, random_tokens, save

from rfjax.io.load import load
from rfjax.models.decoder import forward
from rfjax.models.params import named_leaves, param_spec
from rfjax.sharding import leaf_sharding

run = jax.jit(forward, static_argnames="config")


def mesh_of(count, name="model"):
    return Mesh(np.array(jax.devices()[:count]), (name,))


@pytest.mark.parametrize(
    ("shape", "axes", "expected"),
    [
        ((64, 12), ("vocab", "embed"), ("model", None)),
        ((12, 64), ("embed", "heads"), (None, "model")),
        ((64,), ("mlp",), ("model",)),
        ((64,), (None,), (None,)),
        ((8, 64, 12), ("expert", "mlp", "embed"), ("model", None, None)),
        # An axis that does not divide leaves the mesh axis to the next.
        ((6, 64, 12), ("expert", "mlp", "embed"), (None, "model", None)),
        ((12, 12), ("heads", "embed"), (None, None)),
    ],
)
def test_the_first_axis_that_divides_takes_the_mesh(shape, axes, expected):
    sharding = leaf_sharding(mesh_of(8), "w", shape, axes)
    assert sharding.spec == PartitionSpec(*expected)


def test_a_replicated_axis_is_logged_with_its_reason(caplog):
    with caplog.at_level(logging.INFO, logger="rfjax.sharding"):
        leaf_sharding(mesh_of(8), "blk.0.attn_k.weight", (12, 64), ("kv_heads", "embed"))
    assert caplog.messages == [
        "blk.0.attn_k.weight is replicated: its kv_heads axis of 12 does not divide by the 8 "
        "devices of mesh axis 'model'"
    ]
    caplog.clear()
    leaf_sharding(mesh_of(4), "blk.0.attn_k.weight", (12, 64), ("kv_heads", "embed"))
    assert caplog.messages == []


def test_a_mesh_without_a_model_axis_replicates():
    sharding = leaf_sharding(mesh_of(2, "data"), "w", (64, 12), ("vocab", "embed"))
    assert sharding.is_fully_replicated


@pytest.mark.parametrize(
    "shape",
    [
        Shape(width=64, n_heads=8, n_kv_heads=8, ffn_width=64, vocab_size=48),
        Shape(width=64, n_heads=8, n_kv_heads=2, head_dim=6, ffn_width=52, vocab_size=41),
        Shape("qwen3moe", n_heads=8, n_kv_heads=4, n_experts=8, n_used=2),
    ],
    ids=["divides", "ragged", "experts"],
)
def test_eight_devices_give_the_logits_of_one(tmp_path, shape):
    path = save(tmp_path / "model.gguf", shape, seed=3)
    tokens = random_tokens(0, 24, shape.vocab_size)
    alone = load(path)
    mesh = mesh_of(8)
    spread = load(path, mesh=mesh)
    spec = param_spec(spread.config)
    for name, leaf in named_leaves(spread.params).items():
        wanted = named_leaves(spec)[name]
        sharding = leaf_sharding(mesh, name, wanted.shape, wanted.axes, wanted.units)
        assert leaf.sharding == sharding
        assert {s.data.shape for s in leaf.addressable_shards} == {
            sharding.shard_shape(wanted.shape)
        }
    for device in mesh.devices.flat:
        held = sum(
            s.data.nbytes
            for leaf in jax.tree.leaves(spread.params)
            for s in leaf.addressable_shards
            if s.device == device
        )
        assert held == spread.plan.weights
    assert spread.plan.weights < alone.plan.weights
    expected = np.asarray(run(alone.params, tokens, config=alone.config), np.float64)
    found = np.asarray(run(spread.params, tokens, config=spread.config))
    assert ((found - expected) ** 2).sum() / (expected**2).sum() <= 1e-10
