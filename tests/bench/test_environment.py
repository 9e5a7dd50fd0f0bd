"""What the report says of the machine."""

import importlib.metadata

import jax

from rfjax.bench import environment


def test_of_this_machine():
    found = environment.find_environment()
    assert found.backends == "CPU"
    assert found.gpu_info == ""
    assert found.jax_version == jax.__version__
    assert found.build_commit == importlib.metadata.version("rfjax")
    assert found.cpu_info
