"""Settings from defaults, TOML and flags: precedence, types, messages."""

import dataclasses
import pathlib
from typing import Literal

import pytest

from rfjax.config import from_mapping, from_toml
from rfjax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Engine:
    page_size: int = 16
    headroom: float = 0.1
    kernels: Literal["xla", "pallas"] | None = None
    buckets: tuple[int, ...] = (1, 2, 4)
    window: tuple[int, int] = (0, 0)
    mesh: dict[str, int] = dataclasses.field(default_factory=dict)
    cache_dir: pathlib.Path | None = None
    verbose: bool = False

    def __post_init__(self):
        if self.page_size < 1:
            raise ConfigError(f"page_size: got {self.page_size}, expected at least 1")


@dataclasses.dataclass(frozen=True)
class Preset:
    name: str
    engine: Engine = dataclasses.field(default_factory=Engine)
    scoring: Engine | None = None


def write(tmp_path: pathlib.Path, text: str) -> pathlib.Path:
    path = tmp_path / "preset.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_then_toml_then_flags(tmp_path):
    path = write(
        tmp_path,
        'name = "small"\n[engine]\npage_size = 32\nheadroom = 1\nbuckets = [8, 16]\n'
        'cache_dir = "pages"\nmesh = {data = 2, model = 4}\n[scoring]\nkernels = "xla"\n',
    )
    preset = from_toml(
        Preset,
        path,
        {"name": None, "engine": {"page_size": 64, "headroom": None}, "scoring": {"verbose": True}},
    )
    engine, scoring = preset.engine, preset.scoring
    assert preset.name == "small"
    assert engine.page_size == 64  # the flag's
    assert engine.headroom == 1.0  # the file's, since the flag was not given
    assert isinstance(engine.headroom, float)
    assert engine.buckets == (8, 16)
    assert engine.cache_dir == pathlib.Path("pages")
    assert engine.mesh == {"data": 2, "model": 4}
    assert scoring is not None
    assert (scoring.kernels, scoring.verbose) == ("xla", True)
    assert scoring.page_size == Engine.page_size  # the default


def test_no_file_and_no_flags_are_the_defaults():
    assert from_toml(Engine, None) == Engine()
    assert from_toml(Preset, None, {"name": "x", "scoring": {"verbose": None}}) == Preset("x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('nam = "x"', r"unknown key 'nam'; did you mean 'name'\?"),
        ("zzz = 1", r"unknown key 'zzz'; known keys: name, engine, scoring"),
        ('name = "x"\n[engine]\npagesize = 1', r"engine: unknown key 'pagesize'.*'page_size'"),
        ("[engine]\npage_size = 16", r"missing name"),
        ("name = 3", r"name: got 3 \(int\), expected str"),
        ('name = "x"\nengine = 3', r"engine: got 3 \(int\), expected a table"),
        ('name = "x"\n[engine]\npage_size = true', r"page_size: got True \(bool\), expected int"),
        ('name = "x"\n[engine]\npage_size = 1.5', r"page_size: got 1.5 \(float\), expected int"),
        ('name = "x"\n[engine]\npage_size = 0', r"engine: page_size: got 0, expected at least 1"),
        ('name = "x"\n[engine]\nkernels = "cuda"', r"expected one of 'xla', 'pallas' or None"),
        ('name = "x"\n[engine]\nbuckets = [1, "2"]', r"buckets\[1\]: got '2' \(str\)"),
        ('name = "x"\n[engine]\nbuckets = 4', r"buckets: got 4 \(int\), expected a list of int"),
        ('name = "x"\n[engine]\nwindow = [1]', r"window: got \[1\] \(list\), .* list of 2 values"),
        ('name = "x"\n[engine.mesh]\ndata = "2"', r"mesh.data: got '2' \(str\), expected int"),
        ("name = ", r"not a TOML file"),
    ],
)
def test_errors_name_the_file_and_the_key(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        from_toml(Preset, path)
    assert str(path) in str(caught.value)


def test_a_wrong_flag_is_not_blamed_on_the_file(tmp_path):
    with pytest.raises(ConfigError, match=r"^flags: engine: page_size: got 'x' \(str\)"):
        from_toml(Preset, write(tmp_path, 'name = "x"'), {"engine": {"page_size": "x"}})


def test_a_missing_file_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read .*expected a TOML file"):
        from_toml(Preset, tmp_path / "absent.toml")


def test_a_file_that_is_not_text_is_a_config_error(tmp_path):
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a TOML file"):
        from_toml(Preset, path)


def test_from_mapping_names_its_source():
    assert from_mapping(Engine, {"window": [1, 2]}).window == (1, 2)
    with pytest.raises(ConfigError, match=r"^the request: unknown key 'windw'"):
        from_mapping(Engine, {"windw": [1, 2]}, source="the request")
