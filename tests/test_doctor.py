import sys

import jax
import pytest

from rfjax.doctor import diagnose
from rfjax.ops.dispatch import OPS


@pytest.fixture
def root(tmp_path):
    """A system without any GPU."""
    (tmp_path / "dev").mkdir()
    return tmp_path


def install(folder, name, version):
    """An empty package that the interpreter takes for installed."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.fixture
def without_platform():
    """JAX as it is where nobody chooses a platform."""
    before = jax.config.values["jax_platforms"]
    jax.devices()
    jax.config.update("jax_platforms", None)
    yield
    jax.config.update("jax_platforms", before)


def test_a_machine_that_works(root):
    found = diagnose(root)
    assert found.usable
    assert not found.warnings
    assert found.packages["jax"] == jax.__version__
    assert None not in found.packages.values()
    assert [(device.platform, device.id) for device in found.devices] == [
        ("cpu", i) for i in range(jax.device_count())
    ]
    free = found.devices[0].memory_free
    assert free is None or free > 0
    assert found.dtype == "float32"
    assert found.cache_folder
    assert [choice.op for choice in found.ops] == list(OPS)
    assert any("simulated" in hint for hint in found.hints)
    assert any("rfjax[rocm]" in hint for hint in found.hints)


@pytest.mark.usefixtures("without_platform")
@pytest.mark.parametrize(
    ("file", "extra"), [("dev/kfd", "rfjax[rocm]"), ("dev/nvidiactl", "rfjax[cuda]")]
)
def test_a_gpu_without_a_plugin(root, file, extra):
    (root / file).touch()
    found = diagnose(root)
    assert found.usable
    assert any(f'pip install "{extra}"' in warning for warning in found.warnings)
    assert not any("no GPU is visible" in hint for hint in found.hints)


@pytest.mark.usefixtures("without_platform")
def test_a_gpu_with_a_plugin_that_does_not_find_it(root, monkeypatch):
    (root / "dev/kfd").touch()
    install(root / "site", "jax-rocm7-plugin", jax.__version__)
    monkeypatch.syspath_prepend(root / "site")
    found = diagnose(root)
    assert found.plugins == {"jax-rocm7-plugin": jax.__version__}
    assert any("does not find the device" in warning for warning in found.warnings)


def test_a_gpu_that_the_settings_rule_out(root):
    (root / "dev/nvidiactl").touch()
    found = diagnose(root)
    assert any("told to use 'cpu' only" in warning for warning in found.warnings)


def test_plugins_that_do_not_fit(root, monkeypatch):
    install(root / "site", "jax-rocm7-plugin", "0.1.2")
    monkeypatch.syspath_prepend(root / "site")
    version = root / "opt/rocm/.info/version"
    version.parent.mkdir(parents=True)
    version.write_text("6.4.1-99\n")
    found = diagnose(root)
    assert found.hardware.rocm == "6.4.1-99"
    assert any("is for ROCm 7, and 6.4.1-99 is installed" in text for text in found.warnings)
    assert any("0.1.2 does not fit jax" in text for text in found.warnings)


def test_without_jax(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    found = diagnose(root)
    assert not found.usable
    assert "JAX cannot be imported" in found.problems[0]
    assert (found.devices, found.dtype, found.cache_folder) == ((), None, None)


def test_without_a_device(root, monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'rocm'")

    monkeypatch.setattr(jax, "devices", fail)
    found = diagnose(root)
    assert found.problems == ("JAX finds no usable device: Unable to initialize backend 'rocm'",)


def test_without_a_device_jax_may_fail_an_assertion_of_its_own(root, monkeypatch):
    def fail():
        raise AssertionError

    monkeypatch.setattr(jax, "devices", fail)
    (problem,) = diagnose(root).problems
    assert problem.startswith("JAX finds no usable device: nothing for the platforms asked for")


def test_a_cache_that_cannot_be_written(root, monkeypatch):
    (root / "file").touch()
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(root / "file" / "cache"))
    try:
        found = diagnose(root)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert any("cannot be written" in warning for warning in found.warnings)
