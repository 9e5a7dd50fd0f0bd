"""Measured settings are found by shape, and never stand in the way."""

import importlib.resources
import json
import pathlib

import pytest

from rfjax.errors import ConfigError
from rfjax.pallas import plain_matvec, quantized_matvec, tuned_config
from rfjax.pallas.tuned_config import Entry, TunedFile, as_text, nearest, parse
from rfjax.pallas.tuned_config import tuned_config as lookup
from rfjax.quant.layout import groups_per_column
from rfjax.user_files import slug

CONFIGS = {
    "quantized_matvec": quantized_matvec.Config,
    "plain_matvec": plain_matvec.Config,
}
TUNED = importlib.resources.files("rfjax") / "pallas" / "tuned"
SHIPPED = sorted(pathlib.Path(str(TUNED)).glob("*.json"))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user without files, and nothing remembered of others."""
    monkeypatch.setattr(pathlib.Path, "home", lambda: tmp_path)
    lookup.cache_clear()
    yield tmp_path
    lookup.cache_clear()


def entry(n=4096, k=4096, m=1, *, type="Q4_0", rows=2, groups=2, columns=16, warps=1):
    config = {"rows": rows, "groups": groups, "columns": columns, "warps": warps}
    return Entry("quantized_matvec", type, n, k, m, config)


def find(entries, n, k, m, type="Q4_0"):
    return nearest(entries, "quantized_matvec", type, n, k, m)


def test_the_nearest_shape_counts():
    small, large = entry(2048), entry(16384)
    entries = [small, large, entry(8192, m=4), entry(8192, 8192), entry(8192, type="Q4_K")]
    assert find(entries, 2048, 4096, 1) == small
    assert find(entries, 5000, 4096, 1) == small
    assert find(entries, 14336, 4096, 1) == large
    assert find(entries, 80000, 4096, 1) == large
    assert find(entries, 128256, 4096, 1) is None
    assert find(entries, 300, 4096, 1) is None
    assert find(entries, 4096, 4096, 2) is None
    assert find(entries, 4096, 4096, 3) == entries[2]
    assert find(entries, 4096, 2048, 1) is None


def test_tiles_larger_than_the_matrix_do_not_count():
    assert find([entry(4, rows=4)], 3, 4096, 1) is None
    assert find([entry(4, 96, groups=2)], 4, 96, 1) is None
    assert find([entry(4, 96, groups=1)], 4, 96, 1) is not None


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_is_shipped_is_whole(path):
    file = parse(json.loads(path.read_text()), str(path))
    assert slug(file.device) == path.stem
    assert file.entries
    for found in file.entries:
        config = CONFIGS[found.kernel](**found.config)
        if found.kernel == "quantized_matvec":
            assert config.groups <= groups_per_column(found.k)
            assert config.groups * config.columns == 32 * config.warps
        assert found.comment
    assert as_text(file) == path.read_text()


def test_the_users_file_comes_first(home):
    device = "NVIDIA H200"
    shape = ("quantized_matvec", "Q4_0", 14336, 4096, 1, device)
    assert lookup(quantized_matvec.Config, *shape) == quantized_matvec.Config(2, 2, 16, 1)
    assert lookup(quantized_matvec.Config, *shape[:-1], "Another") is None
    lookup.cache_clear()
    path = tuned_config.user_file(device)
    assert path is not None and path.is_relative_to(home)
    path.parent.mkdir(parents=True)
    path.write_text(as_text(TunedFile(device, (entry(28672, rows=4),))))
    assert lookup(quantized_matvec.Config, *shape) == quantized_matvec.Config(4, 2, 16, 1)


@pytest.mark.usefixtures("home")
def test_a_damaged_file_is_ignored(caplog):
    device = "Some GPU"
    path = tuned_config.user_file(device)
    assert path is not None
    path.parent.mkdir(parents=True)
    whole = as_text(TunedFile(device, (entry(),)))
    for text in ("", whole[:-9], "[]", '{"entries": [1]}', whole.replace('"rows": 2', '"rows": 3')):
        path.write_text(text)
        caplog.clear()
        lookup.cache_clear()
        assert lookup(quantized_matvec.Config, "quantized_matvec", "Q4_0", 1, 1, 1, device) is None
        assert "ignored" in caplog.text
    # Fields of another kernel.
    path.write_text(whole.replace('"rows": 2', '"lines": 2'))
    lookup.cache_clear()
    shape = ("quantized_matvec", "Q4_0", 4096, 4096, 1, device)
    assert lookup(quantized_matvec.Config, *shape) is None
    assert "a tuned setting of quantized_matvec is ignored" in caplog.text


def test_numbers_are_checked():
    with pytest.raises(ConfigError, match=r"config.rows: got 3, expected a power of two"):
        entry(rows=3)
    with pytest.raises(ConfigError, match="n: got 0"):
        entry(0)
