"""The compilation cache never stands in the way of running a model."""

import pathlib

import jax
import pytest

from rfjax.engine.compilation_cache import compilation_cache_folder, enable_compilation_cache

FOLDER = "jax_compilation_cache_dir"
LEAST = "jax_persistent_cache_min_compile_time_secs"


@pytest.fixture
def unset():
    """JAX without a cache folder of its own, and put back as it was."""
    before = {name: jax.config.values[name] for name in (FOLDER, LEAST)}
    jax.config.update(FOLDER, None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.usefixtures("unset")
def test_it_is_in_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(pathlib.Path, "home", lambda: tmp_path)
    enable_compilation_cache()
    assert jax.config.values[FOLDER] == str(tmp_path / ".cache" / "rfjax" / "xla")
    assert (tmp_path / ".cache" / "rfjax" / "xla").is_dir()


@pytest.mark.usefixtures("unset")
def test_a_folder_that_jax_is_given_stays(tmp_path):
    jax.config.update(FOLDER, str(tmp_path))
    enable_compilation_cache()
    assert jax.config.values[FOLDER] == str(tmp_path)
    assert compilation_cache_folder() == tmp_path


@pytest.mark.usefixtures("unset")
def test_without_a_home_there_is_none(monkeypatch):
    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pathlib.Path, "home", fail)
    enable_compilation_cache()
    assert compilation_cache_folder() is None
    assert jax.config.values[FOLDER] is None


@pytest.mark.usefixtures("unset")
def test_where_the_home_cannot_be_written_there_is_none(tmp_path, monkeypatch):
    (tmp_path / "home").touch()  # a file, which stops even the superuser
    monkeypatch.setattr(pathlib.Path, "home", lambda: tmp_path / "home")
    enable_compilation_cache()
    assert jax.config.values[FOLDER] is None
