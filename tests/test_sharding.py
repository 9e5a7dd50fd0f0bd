"""Shardings by logical axes, and a model spread over eight devices."""

import logging

import chex
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec
from support.gguf_files import RawTensor, write_gguf
from support.random_model import Shape, random_model, random_tokens, save
from support.tiny_model import tiny_llama

import rfjax
from rfjax.engine import steps
from rfjax.errors import ConfigError
from rfjax.io.load import load
from rfjax.models.decoder import forward
from rfjax.models.params import named_leaves, param_spec
from rfjax.quant.layout import LAYOUTS
from rfjax.quant.qtensor import QTensor, dequantize_packed
from rfjax.quant.types import BLOCK_SIZES, GGMLType
from rfjax.sharding import automatic, leaf_sharding, make_mesh, plane_spec

pytestmark = pytest.mark.quick_compile

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
        Shape(n_layers=1, width=64, n_heads=8, n_kv_heads=8, ffn_width=64, vocab_size=48),
        Shape(n_layers=1, width=64, n_heads=8, head_dim=6, ffn_width=52, vocab_size=41),
        Shape("qwen3moe", 1, n_heads=8, n_kv_heads=4, n_experts=8, n_used=2),
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


def held_by(device, params):
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(params)
        for shard in leaf.addressable_shards
        if shard.device == device
    )


def quantized(path, shape, types, seed=0):
    """A random model whose sizes of matrix take turns with `types`, of small scales."""
    metadata, tensors = random_model(shape, seed=seed)
    rng = np.random.default_rng(seed)
    typed = dict(tensors)
    names = [name for name, t in tensors.items() if t.ndim > 1 and "gate_inp" not in name]
    sizes = list(dict.fromkeys(tensors[name].shape for name in names))
    for name in names:
        type = types[sizes.index(tensors[name].shape) % len(types)]
        elements, nbytes = BLOCK_SIZES[type]
        raw = rng.integers(0, 256, (tensors[name].size // elements, nbytes), dtype=np.uint8)
        layout = LAYOUTS[type]
        at = layout.scale_bytes
        scales = rng.uniform(0.001, 0.004, (len(raw), 2 if layout.scale == "dm" else 1))
        scales = scales / (32.0 if layout.block == 256 else 1.0)
        raw[:, at : at + 2 * scales.shape[1]] = scales.astype(np.float16).view(np.uint8)
        typed[name] = RawTensor(type, tensors[name].shape, raw.tobytes())
    return write_gguf(path, metadata, typed)


PACKED = {
    "dense": (
        Shape(
            width=256,
            n_heads=16,
            n_kv_heads=4,
            head_dim=64,
            ffn_width=2048,
            vocab_size=64,
            n_layers=1,
        ),
        [GGMLType.Q4_K, GGMLType.Q6_K, GGMLType.Q8_0],
    ),
    "experts": (
        Shape(
            "qwen3moe",
            width=256,
            n_heads=8,
            n_kv_heads=2,
            head_dim=32,
            n_layers=1,
            n_experts=8,
            n_used=2,
            expert_width=256,
            vocab_size=64,
        ),
        [GGMLType.Q5_0, GGMLType.Q4_K],
    ),
}


@pytest.fixture(scope="module")
def packed_alone(request, tmp_path_factory):
    """A packed model on one device, tokens, and their logits in f64."""
    shape, types = PACKED[request.param]
    path = quantized(tmp_path_factory.mktemp(request.param) / "m.gguf", shape, types)
    tokens = random_tokens(0, 16, shape.vocab_size)
    model = load(path, weights="packed")
    logits = np.asarray(run(model.params, tokens, config=model.config), np.float64)
    assert np.isfinite(logits).all() and logits.std() > 1e-3
    return model, tokens, logits


@pytest.mark.parametrize(
    ("packed_alone", "data", "model"),
    [
        ("dense", 1, 2),
        ("dense", 1, 8),
        ("dense", 2, 4),
        ("experts", 1, 8),
        ("experts", 2, 4),
        ("experts", 8, 1),
    ],
    indirect=["packed_alone"],
)
def test_packed_weights_on_a_mesh(packed_alone, data, model):
    alone, tokens, expected = packed_alone
    mesh = make_mesh(data=data, model=model)
    spread = load(alone.path, weights="packed", mesh=mesh)
    found = np.asarray(run(spread.params, tokens, config=spread.config))
    assert ((found - expected) ** 2).sum() / (expected**2).sum() <= 1e-10
    for device in mesh.devices.flat:
        assert held_by(device, spread.params) == spread.plan.weights
    # Norms and routers are replicated, and what has fewer columns or heads than devices.
    assert spread.plan.weights <= alone.plan.weights * (1 / model + (0.2 if model > 2 else 0.03))


def test_each_device_holds_whole_blocks_of_its_rows_or_columns(tmp_path):
    shape, _ = PACKED["dense"]
    path = quantized(tmp_path / "m.gguf", shape, [GGMLType.Q4_K])
    alone = load(path, weights="packed").params.blk[0]
    spread = load(path, weights="packed", mesh=make_mesh(model=4)).params.blk[0]
    for stem, axis in (("ffn_gate", 0), ("ffn_down", 1)):
        whole, split = getattr(alone, stem).weight, getattr(spread, stem).weight
        assert isinstance(split, QTensor) and split.shape == whole.shape
        part = QTensor(
            {name: plane.addressable_shards[1].data for name, plane in split.planes.items()},
            split.type,
        )
        size = whole.shape[axis] // 4
        cut = [slice(None), slice(None)]
        cut[axis] = slice(size, 2 * size)
        dequantize = jax.jit(dequantize_packed)
        np.testing.assert_array_equal(dequantize(part), dequantize(whole)[tuple(cut)])


def test_what_cannot_be_cut_is_replicated_with_the_reason(tmp_path, caplog):
    shape = Shape(n_layers=1, width=256, n_heads=8, n_kv_heads=2, head_dim=32, ffn_width=256)
    path = quantized(tmp_path / "m.gguf", shape, [GGMLType.Q4_K])
    with caplog.at_level(logging.INFO, logger="rfjax.sharding"):
        load(path, weights="packed", mesh=make_mesh(model=8))
    assert (
        "blk.0.attn_k.weight is replicated: its kv_heads axis of 64 in units of 32 does not divide "
        "by the 8 devices of mesh axis 'model'"
    ) in caplog.messages
    assert (
        "blk.0.ffn_down.weight is replicated: its mlp axis of 256 in units of 256 does not divide "
        "by the 8 devices of mesh axis 'model'"
    ) in caplog.messages
    assert not any("ffn_gate" in message for message in caplog.messages)


def answers(path, weights=None, mesh=None):
    """What a model generates, twice from the same programs, and its perplexity."""
    llm = rfjax.LLM(path, weights=weights, mesh=mesh, compilation_cache=False)
    prompts = [[5, 6, 7], [9], [30, 31, 32, 33]]
    params = rfjax.SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
    outputs = llm.generate(prompts, params)
    assert llm.generate(prompts, params) == outputs
    return outputs, llm.perplexity(list(range(3, 100)), n_ctx=32).perplexity


@pytest.fixture(scope="module")
def answers_alone(tmp_path_factory):
    """A model's file, and its answers on one device."""
    folder = tmp_path_factory.mktemp("answers")
    path = tiny_llama(folder / "m.gguf", width=128, n_layers=1, quantized=True)
    return path, *answers(path)


@pytest.mark.parametrize(("weights", "data", "model"), [("packed", 2, 4), ("dequantized", 2, 2)])
def test_a_mesh_generates_and_scores_as_one_device(
    answers_alone, monkeypatch, weights, data, model
):
    path, expected, perplexity = answers_alone
    chex.clear_trace_counter()
    monkeypatch.setattr(steps, "decode", chex.assert_max_traces(steps.decode, n=1))
    monkeypatch.setattr(steps, "prefill", chex.assert_max_traces(steps.prefill, n=1))
    found, on_mesh = answers(path, weights, make_mesh(data=data, model=model))
    assert [o.token_ids for o in found] == [o.token_ids for o in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
    assert on_mesh == pytest.approx(perplexity, rel=1e-5)


def test_the_state_stays_where_it_starts(tmp_path, caplog):
    """Its shardings after a step are those before it, so the second step compiles nothing."""
    path = tiny_llama(tmp_path / "m.gguf", n_layers=1)
    mesh = make_mesh(data=2, model=2)
    llm = rfjax.LLM(path, mesh=mesh, compilation_cache=False)
    runner = llm.engine._device
    params = rfjax.SamplingParams(max_tokens=100, temperature=0.0, ignore_eos=True)

    def state():
        return runner._cache, runner._rows, runner._counts, runner._tables

    wanted = jax.tree.map(lambda leaf: leaf.sharding, state())
    layer = runner._cache.layers[0].k
    assert layer.sharding.shard_shape(layer.shape)[1] == layer.shape[1] // 2
    with jax.log_compiles():
        llm.generate([[3, 4, 5], [6, 7]], params)
    for leaf, sharding in zip(jax.tree.leaves(state()), jax.tree.leaves(wanted), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    assert sum(text.startswith("Compiling jit(decode)") for text in caplog.messages) == 1


def test_meshes_of_other_names_or_too_many_devices_are_refused():
    with pytest.raises(ConfigError, match=r"got axes x, expected a choice of data, model"):
        automatic(mesh_of(2, "x"))
    with pytest.raises(ConfigError, match=r"data 3 times model 4 is 12 devices, and there are 8"):
        make_mesh(data=3, model=4)
    with pytest.raises(ConfigError, match=r"expected at least 1"):
        make_mesh(model=0)
    explicit = jax.make_mesh((2,), ("model",))
    assert set(automatic(explicit).axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    ("spec", "axes", "expected"),
    [
        (("model", None), ("rows", None, "columns", None), ("model", None, None, None)),
        ((None, "model"), ("rows", None, "columns", None), (None, None, "model", None)),
        (("model", None, None), ("rows", "columns"), ("model", None, None)),
        ((None, None, "model"), ("rows", None, "columns"), (None, None, None, "model")),
    ],
)
def test_planes_are_split_as_their_matrix(spec, axes, expected):
    assert plane_spec(PartitionSpec(*spec), axes) == PartitionSpec(*expected)
