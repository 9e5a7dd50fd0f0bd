"""Targets by architecture, and which device counts."""

import types

import jax
import pytest

from rfjax.pallas import target as module
from rfjax.pallas.target import current_device_kind, current_target, shared_memory, target_of


@pytest.mark.parametrize(
    ("capability", "target"),
    [
        ("9.0", "cuda"),
        ("gfx90a", "gfx9"),
        ("gfx942", "gfx9"),
        ("gfx1100", "gfx11"),
        ("gfx1201", "gfx11"),
        ("gfx1030", "unknown"),
    ],
)
def test_the_architecture_decides(capability, target):
    device = types.SimpleNamespace(platform="gpu", compute_capability=capability)
    assert target_of(device) == target


def test_the_default_device_counts():
    device = jax.devices("cpu")[1]
    with jax.default_device(device):
        assert current_target() == "interpret"
        assert current_device_kind() == device.device_kind


@pytest.mark.parametrize(
    ("capability", "kibibytes"), [("9.0", 227), ("10.3", 227), ("8.0", 163), ("8.9", 99), ("", 99)]
)
def test_shared_memory(capability, kibibytes, monkeypatch):
    device = types.SimpleNamespace(platform="gpu", compute_capability=capability)
    monkeypatch.setattr(module, "default_device", lambda: device)
    assert shared_memory("cuda") == kibibytes << 10
    assert shared_memory("gfx9") == shared_memory("gfx11") == 64 << 10
