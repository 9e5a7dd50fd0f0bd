"""What installing and importing rfjax promises: the lock, the extras, cheap imports."""

import pathlib
import pkgutil
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import rfjax.tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = ("3.11", "3.12", "3.13")

# Imported where they are used, so that `import rfjax` and its public names stay cheap.
HEAVY = ("fastapi", "gguf", "jinja2", "lm_eval", "matplotlib", "optax", "orbax", "google.protobuf")
HEAVY += ("sentencepiece", "tensorstore", "tokenizers", "typer", "uvicorn")


def locked(python: str) -> dict[str, str]:
    """Package to pinned version for one Python on Linux."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.lstrip().startswith("#")]
    where = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
    }
    chosen = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(where)]
    versions = {canonicalize_name(pin.name): str(pin.specifier) for pin in chosen}
    assert len(versions) == len(chosen), f"a package is pinned twice for Python {python}"
    return versions


def imported(code: str) -> set[str]:
    """The modules loaded by a fresh interpreter that runs the code."""
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(run.stdout.split())


def test_the_lock_names_no_index_and_no_path():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert not re.findall(r"://|--[a-z]+|\S@ |/(?:home|root|tmp|work)/", text)


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_holds_every_dependency_within_its_range(python):
    pins = locked(python)
    extras = PROJECT["optional-dependencies"]
    for line in [*PROJECT["dependencies"], *extras["test"], *extras["lint"]]:
        wanted = Requirement(line)
        pin = pins.get(canonicalize_name(wanted.name))
        assert pin is not None, f"{line}: not in requirements.lock; run `make lock`"
        assert wanted.specifier.contains(pin.removeprefix("==")), f"{line}: locked at {pin}"


def test_the_lock_holds_the_jax_that_the_rocm_plugin_wants():
    for package in ("jax", "jaxlib"):
        assert [locked(python)[package] for python in PYTHONS] == [
            "==0.10.2",
            "==0.12.0",
            "==0.12.0",
        ]


def test_importing_rfjax_loads_nothing_heavy():
    loaded = imported("import rfjax; [getattr(rfjax, n) for n in getattr(rfjax, '__all__', ())]")
    assert not [name for name in HEAVY if name in loaded]


def test_what_needs_no_arrays_imports_no_jax():
    tokenizer = pkgutil.walk_packages(rfjax.tokenizer.__path__, "rfjax.tokenizer.")
    names = ["rfjax.config", "rfjax.engine.scheduler", "rfjax.io.gguf", "rfjax.quant.types"]
    names += sorted(module.name for module in tokenizer)
    loaded = imported("\n".join(f"import {name}" for name in names))
    assert not {"jax", "jaxlib", "flax"} & loaded
