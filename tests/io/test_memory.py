"""The memory plan: bytes of the weights, and the refusal of what does not fit."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from support.random_model import Shape, save

from rfjax.errors import CapacityError
from rfjax.io import memory
from rfjax.io.gguf import read_gguf
from rfjax.io.load import load
from rfjax.io.memory import check_fits, free_bytes, transient_bytes, weight_bytes
from rfjax.models.configure import configure
from rfjax.models.params import param_spec


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return save(tmp_path_factory.mktemp("memory") / "m.gguf", Shape(vocab_size=48))


@pytest.fixture(scope="module")
def spec(file):
    return param_spec(configure(read_gguf(file)))


def test_weight_bytes_count_wide_tensors_in_f32(spec):
    leaves = jax.tree.leaves(spec)
    wide = sum(int(np.prod(leaf.shape)) for leaf in leaves if leaf.wide)
    narrow = sum(int(np.prod(leaf.shape)) for leaf in leaves if not leaf.wide)
    assert wide and narrow
    assert weight_bytes(spec, "float32", None) == 4 * (wide + narrow)
    assert weight_bytes(spec, "bfloat16", None) == 4 * wide + 2 * narrow


def test_a_mesh_holds_shares(spec):
    mesh = Mesh(np.array(jax.devices()[:2]), ("model",))
    whole, share = weight_bytes(spec, "float32", None), weight_bytes(spec, "float32", mesh)
    assert whole / 2 < share < whole * 0.6


def test_what_does_not_fit_is_refused_before_anything_is_allocated(file, spec, monkeypatch):
    needed = weight_bytes(spec, "float32", None) + transient_bytes(spec)
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed)
    check_fits(read_gguf(file), spec, "float32", None)
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed - 1)
    before = len(jax.live_arrays())
    with pytest.raises(CapacityError) as caught:
        load(file)
    assert len(jax.live_arrays()) == before
    message = str(caught.value)
    assert message.startswith(f"{file}: loading takes ")
    assert "GiB free" in message and "narrower dtype" in message and "mesh" in message
    load(file, dtype="bfloat16")  # half of it does fit


def test_simulated_devices_share_the_memory_of_the_host(file, spec, monkeypatch):
    mesh = Mesh(np.array(jax.devices()[:2]), ("model",))
    needed = 2 * weight_bytes(spec, "float32", mesh) + transient_bytes(spec)
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed - 1)
    with pytest.raises(CapacityError, match="GiB free"):
        check_fits(read_gguf(file), spec, "float32", mesh)
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed)
    check_fits(read_gguf(file), spec, "float32", mesh)


def test_where_nobody_knows_the_free_memory_loading_goes_on(file, spec, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)
    check_fits(read_gguf(file), spec, "float32", None)


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
