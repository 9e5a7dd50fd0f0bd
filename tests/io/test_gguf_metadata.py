"""Typed getters: what each accepts, defaults, and errors that say key, found and expected."""

import numpy as np
import pytest
from support.gguf_files import Typed, write_gguf

from rfjax.errors import ModelFormatError
from rfjax.io.gguf import GGUFFile, read_gguf
from rfjax.io.gguf_values import ValueType

VALUES = {
    "general.architecture": "llama",
    "int": 7,
    "big": Typed(ValueType.UINT64, 2**63),
    "negative": -3,
    "float": 0.5,
    "double": Typed(ValueType.FLOAT64, 0.1),
    "bool": True,
    "str": "text",
    "ints": [1, 2, 3],
    "i64s": np.array([-1, 5], np.int64),
    "floats": [0.5, 1.5],
    "bools": [True, False],
    "strs": ["a", "b"],
}

GETTERS = {
    "int": (lambda model, key, *default: model.get_int(key, *default), "an integer"),
    "float": (lambda model, key, *default: model.get_float(key, *default), "a number"),
    "bool": (lambda model, key, *default: model.get_bool(key, *default), "a bool"),
    "str": (lambda model, key, *default: model.get_str(key, *default), "a string"),
    "ints": (lambda model, key, *default: model.get_array(key, int, *default), "of integers"),
    "floats": (lambda model, key, *default: model.get_array(key, float, *default), "of floats"),
    "bools": (lambda model, key, *default: model.get_array(key, bool, *default), "of bools"),
    "strs": (lambda model, key, *default: model.get_array(key, str, *default), "of strings"),
    "layers": (
        lambda model, key, *default: model.get_ints(key, 3, *default),
        "array of 3 integers",
    ),
}

ACCEPTED = {
    "int": {"int", "big", "negative"},
    "float": {"int", "big", "negative", "float", "double"},
    "bool": {"bool"},
    "str": {"str", "general.architecture"},
    "ints": {"ints", "i64s"},
    "floats": {"floats"},
    "bools": {"bools"},
    "strs": {"strs"},
    "layers": {"int", "big", "negative", "ints"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> GGUFFile:
    return read_gguf(write_gguf(tmp_path_factory.mktemp("metadata") / "m.gguf", VALUES))


@pytest.mark.parametrize("name", GETTERS)
def test_each_getter_takes_its_types_only(model, name):
    getter, expected = GETTERS[name]
    for key in VALUES:
        if key in ACCEPTED[name]:
            assert getter(model, key) is not None
            assert getter(model, key, None) is not None
            continue
        for default in ((), (None,)):
            with pytest.raises(ModelFormatError, match=expected) as caught:
                getter(model, key, *default)
            assert f"metadata key {key!r} is {model.value_types[key]}" in str(caught.value)


@pytest.mark.parametrize("name", GETTERS)
def test_absent_keys(model, name):
    getter, expected = GETTERS[name]
    with pytest.raises(ModelFormatError, match=f"'llama.absent' is missing, expected .*{expected}"):
        getter(model, "llama.absent")
    for default in (None, 0, 5, "x"):
        assert getter(model, "llama.absent", default) is default


def test_values(model):
    assert model.architecture == "llama"
    assert model.get_int("big") == 2**63
    assert model.get_float("double") == 0.1
    assert type(model.get_float("int")) is float
    assert model.get_array("i64s", int).dtype == np.int64
    assert model.get_array("bools", bool).tolist() == [True, False]
    assert model.get_array("strs", str) == ("a", "b")


def test_one_integer_stands_for_all_layers(model):
    assert model.get_ints("int", 3) == (7, 7, 7)
    assert model.get_ints("ints", 3) == (1, 2, 3)
    assert all(type(value) is int for value in model.get_ints("ints", 3))
    with pytest.raises(ModelFormatError, match=r"'ints' is array\[uint32\] \(3 elements\)"):
        model.get_ints("ints", 4)


@pytest.mark.parametrize("given", [{}, {"general.architecture": 5}])
def test_architecture_that_is_no_string(tmp_path, given):
    model = read_gguf(write_gguf(tmp_path / "m.gguf", given))
    with pytest.raises(ModelFormatError, match=r"'general\.architecture' is .*expected a string"):
        _ = model.architecture


def test_long_values_are_cut_in_messages(tmp_path):
    model = read_gguf(write_gguf(tmp_path / "m.gguf", {"template": "x" * 10_000}))
    with pytest.raises(ModelFormatError) as caught:
        model.get_int("template")
    assert len(str(caught.value)) < 500
