"""Targets by architecture, and which device counts."""

import types

import jax
import pytest

from rfjax.pallas.target import current_device_kind, current_target, target_of


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
