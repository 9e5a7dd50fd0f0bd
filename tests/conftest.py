"""Shared fixtures: eight simulated CPU devices, strict JAX semantics, model files."""

import os
import pathlib
from collections.abc import Iterator

# Before JAX is imported: mesh tests need several devices, and the numbers here are the CPU's.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in _flags:
    os.environ["XLA_FLAGS"] = f"{_flags} --xla_force_host_platform_device_count=8".strip()

import jax
import pytest
from support.cheap_tracing import make_tracing_cheap
from support.quick_compile import quick_compile
from support.tiny_model import tiny_llama

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
make_tracing_cheap()


@pytest.fixture(scope="session")
def quickly_compiled() -> list[str]:
    """Files whose programs JAX may still hold, hardly optimized."""
    return []


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly_or_as_users_do(
    request: pytest.FixtureRequest, quickly_compiled: list[str]
) -> Iterator[None]:
    """Files marked `quick_compile` compile quickly; others get nothing that those compiled."""
    if request.node.get_closest_marker("quick_compile"):
        quickly_compiled.append(request.node.nodeid)
        with quick_compile():
            yield
        return
    if quickly_compiled:
        jax.clear_caches()
        quickly_compiled.clear()
    yield


@pytest.fixture(scope="session")
def conformance() -> pathlib.Path:
    """Folder of llama.cpp's numbers; tests that need it are skipped where it is missing."""
    default = pathlib.Path(__file__).resolve().parents[2] / "shared" / "conformance"
    folder = pathlib.Path(os.environ.get("RFJAX_CONFORMANCE", default))
    if not folder.is_dir():
        pytest.skip(f"conformance data not found at {folder}; set RFJAX_CONFORMANCE to its folder")
    return folder


@pytest.fixture(scope="session")
def tiny_llama_path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A llama model with random weights and a vocabulary of bytes, letters and a few pairs."""
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny.gguf", n_layers=1)
