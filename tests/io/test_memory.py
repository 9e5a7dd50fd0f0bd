"""The memory plan: bytes of the weights, and the refusal of what does not fit."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from support.random_model import Shape, save
from support.tiny_model import tiny_llama

from rfjax.errors import CapacityError
from rfjax.io import load as load_module
from rfjax.io import memory
from rfjax.io.gguf import read_gguf
from rfjax.io.load import load, plan_load
from rfjax.io.memory import (
    LEAST_CONTEXT,
    exhaustion_as_capacity_error,
    free_bytes,
    largest_fitting,
)
from rfjax.models.config import Experts
from rfjax.models.configure import configure
from rfjax.models.feed_forward import feed_forward
from rfjax.models.params import ParamSpec, param_spec
from rfjax.ops.dispatch import KernelPolicy
from rfjax.quant.qtensor import QTensor
from rfjax.sharding import make_mesh


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return save(tmp_path_factory.mktemp("memory") / "m.gguf", Shape(vocab_size=48))


@pytest.fixture(scope="module")
def config(file):
    return configure(read_gguf(file), dtype="float32")


def planned(file, config, **options):
    return plan_load(read_gguf(file), config, **options)[1]


def mesh_of(model=1, data=1):
    return make_mesh(model=model, data=data)


def give(monkeypatch, free):
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)


def test_weight_bytes_count_wide_tensors_in_f32(file, config):
    leaves = jax.tree.leaves(param_spec(config))
    wide = sum(int(np.prod(leaf.shape)) for leaf in leaves if leaf.wide)
    narrow = sum(int(np.prod(leaf.shape)) for leaf in leaves if not leaf.wide)
    assert wide and narrow
    assert planned(file, config).weights == 4 * (wide + narrow)
    half = dataclasses.replace(config, dtype="bfloat16")
    assert planned(file, half).weights == 4 * wide + 2 * narrow
    assert planned(file, half, weights="packed").weights == 4 * (wide + narrow)  # an F32 file


def test_a_mesh_holds_shares(file, config):
    whole, share = planned(file, config), planned(file, config, mesh=mesh_of(2))
    assert whole.weights / 2 < share.weights < whole.weights * 0.6
    assert share.cache == whole.cache / 2
    assert planned(file, config, mesh=mesh_of(2, 2)).weights == share.weights


def test_the_cache_is_planned_for_the_context_asked_for(file, config):
    few, many = planned(file, config), planned(file, config, context=128)
    assert few.context == LEAST_CONTEXT and many.context == 128
    assert many.cache == 2 * few.cache and many.workspace > few.workspace
    assert planned(file, config, context=10**9).context == config.context_length


def test_what_does_not_fit_is_refused_before_anything_is_allocated(file, config, monkeypatch):
    needed = planned(file, config).needed
    give(monkeypatch, needed)
    load(file)
    give(monkeypatch, needed - 1)
    before = len(jax.live_arrays())
    with pytest.raises(CapacityError) as caught:
        load(file)
    assert len(jax.live_arrays()) == before
    message = str(caught.value)
    assert message.startswith(f"{file}: with dequantized weights in float32 it takes ")
    assert "weights" in message and "cache" in message and "free" in message
    assert "What would fit: dtype='bfloat16'" in message
    load(file, dtype="bfloat16")
    give(monkeypatch, 10)
    with pytest.raises(CapacityError, match="Take a smaller model"):
        load(file)


def test_the_refusal_names_the_context_that_would_fit(file, config, monkeypatch):
    give(monkeypatch, planned(file, config, context=100).needed)
    with pytest.raises(CapacityError, match="a context of 64 tokens"):
        load(file, context=128)


def test_weights_stay_packed_where_only_that_fits(tmp_path, monkeypatch, caplog):
    path = tiny_llama(tmp_path / "q.gguf", width=128, ffn_width=256, quantized=True)
    config = configure(read_gguf(path), dtype="float32")
    plain = planned(path, config)
    packed = planned(path, config, weights="packed")
    assert packed.needed < plain.needed
    give(monkeypatch, packed.needed)
    model = load(path)
    assert isinstance(model.params.blk[0].attn_q.weight, QTensor)
    assert model.plan == dataclasses.replace(packed, memory=model.plan.memory)
    assert any("weights stay packed, which is slower here" in text for text in caplog.messages)
    with pytest.raises(CapacityError, match="What would fit: weights='packed'"):
        load(path, weights="dequantized")


def test_simulated_devices_share_the_memory_of_the_host(file, config):
    alone, spread = planned(file, config), planned(file, config, mesh=mesh_of(2))
    assert spread.memory.sharers == 2 and alone.memory.sharers == 1
    share = spread.weights + max(spread.loading, spread.cache + spread.workspace)
    assert spread.needed == 2 * share
    assert "2 simulated devices" in str(spread)


def test_a_refusal_says_how_many_devices_would_do(file, config, monkeypatch):
    """Of accelerators, which have memory of their own."""
    plan = planned(file, config, weights="packed")
    shares = planned(file, config, weights="packed", mesh=mesh_of(2))
    room = memory.Memory((plan.needed + shares.needed // 2) // 2, 1, "gpu:0")
    monkeypatch.setattr(load_module, "memory_of", lambda devices: room)
    with pytest.raises(CapacityError, match="a mesh of 2 such devices"):
        load(file, weights="packed")


def test_where_nobody_knows_the_free_memory_loading_goes_on(file, config, monkeypatch):
    give(monkeypatch, None)
    assert planned(file, config).fits
    assert "an unknown rest free" in str(planned(file, config))


def test_the_device_with_least_room_counts(monkeypatch):
    room = {"a": 70, "b": 30, "c": None}
    devices = [types.SimpleNamespace(platform="gpu", name=name) for name in room]
    monkeypatch.setattr(memory, "free_bytes", lambda device: room[device.name])
    assert memory.memory_of(devices) == memory.Memory(30, 1, "each of 3 devices")
    assert memory.memory_of(devices[2:]).free is None


def test_exhaustion_becomes_a_capacity_error():
    with (
        pytest.raises(CapacityError, match=r"generating: a device ran out of memory .*Do less"),
        exhaustion_as_capacity_error("generating", "Do less"),
    ):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating\n trace")
    with (
        pytest.raises(jax.errors.JaxRuntimeError),
        exhaustion_as_capacity_error("generating", "Do less"),
    ):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


@pytest.mark.parametrize(
    ("most", "limit", "expected"), [(100, 40, 32), (64, 64, 64), (1, 1, 1), (8, 0, 0)]
)
def test_the_largest_power_of_two_that_fits(most, limit, expected):
    found = largest_fitting(lambda n: types.SimpleNamespace(fits=n <= limit), most)
    assert found == expected


def device(stats, platform="gpu"):
    return types.SimpleNamespace(memory_stats=lambda: stats, platform=platform)


@pytest.mark.parametrize(
    ("stats", "expected"),
    [
        ({"bytes_limit": 100, "bytes_in_use": 30}, 70),
        ({"bytes_limit": 100}, 100),
        ({}, None),
        (None, None),
    ],
)
def test_an_accelerator_reports_its_allocators_limit(stats, expected):
    assert free_bytes(device(stats)) == expected


def test_the_cpu_reports_the_memory_of_the_host():
    free = free_bytes(jax.devices()[0])
    assert free is None or free > 1 << 20


def test_scores_are_planned_for_where_plain_jax_runs_attention(file, config, monkeypatch):
    narrow = dataclasses.replace(config, dtype="bfloat16")

    def workspace(policy):
        asked = dataclasses.replace(narrow, kernels=policy)
        return memory.workspace_bytes(asked, 0, 4, 4096, 512)

    everywhere = workspace(KernelPolicy())
    monkeypatch.setattr(memory, "current_target", lambda: "cuda")
    by_kernels = workspace(KernelPolicy())
    assert by_kernels < everywhere / 2
    assert workspace(KernelPolicy("xla")) == everywhere
    for name in ("prefill_attention", "decode_attention"):
        assert workspace(KernelPolicy(disabled=((name, "failed"),))) == everywhere
    narrow = dataclasses.replace(config, dtype="float32")  # whose prefill no kernel takes here
    assert workspace(KernelPolicy()) > by_kernels * 2


def test_a_step_holds_what_tokens_are_for_each_of_their_experts(file, config):
    """Several times what XLA counts of the copies was missing once; a shared network counts too."""
    experts = Experts(16, 4, 16, normalize=True, shared_dim=512)
    layer = dataclasses.replace(config.layers[0], experts=experts, ffn_dim=0)
    sparse = dataclasses.replace(config, layers=(layer,), d_model=128)
    make = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float32)  # noqa: E731
    block = jax.tree.map(
        make, param_spec(sparse).blk[0], is_leaf=lambda leaf: isinstance(leaf, ParamSpec)
    )

    @jax.jit
    def network(block, x):
        return feed_forward(block, x, None, x, layer, sparse)

    def held(tokens):
        x = jax.ShapeDtypeStruct((tokens, sparse.d_model), np.float32)
        analysis = network.lower(block, x).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    def counted(tokens):
        return memory.step_bytes(sparse, 0, tokens=tokens, sequences=1, keys=1)

    few, many = 256, 1024
    assert held(many) - held(few) < counted(many) - counted(few) < 4 * (held(many) - held(few))
