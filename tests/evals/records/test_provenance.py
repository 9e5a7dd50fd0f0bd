"""What results say of where they come from."""

import dataclasses
import enum
import importlib.metadata
import json
import math
import pathlib
import types

import numpy as np
import pytest
from support.tiny_model import tiny_llama

import rfjax
from rfjax.errors import ModelFormatError
from rfjax.evals.records.jsonable import jsonable
from rfjax.evals.records.provenance import _kernels, provenance, text_hash, with_provenance
from rfjax.io.gguf import read_gguf
from rfjax.io.model_hash import tokenizer_hash, weights_hash
from rfjax.ops.dispatch import KernelPolicy
from rfjax.sharding import make_mesh

pytestmark = pytest.mark.quick_compile


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model") / "q8.gguf", n_layers=1, quantized=True)


@pytest.fixture(scope="module")
def model(path):
    return rfjax.load(path)


def test_all_that_counts_is_there(model, path):
    found = provenance(model, {"n_ctx": 32, "text": text_hash("x")}, packages=("pytest",))
    gguf = read_gguf(path)
    assert found["weights"]["hash"] == weights_hash(gguf)
    assert found["tokenizer"]["hash"] == tokenizer_hash(gguf)
    assert found["settings"] == {"n_ctx": 32, "text": text_hash(b"x")}
    versions = {name: importlib.metadata.version(name) for name in ("rfjax", "numpy", "pytest")}
    assert found["versions"].items() >= versions.items()
    assert found["versions"].keys() >= {"python", "jax", "jaxlib"}
    assert found["device"]["platform"] == "cpu" != found["device"]["kind"]
    assert found["kernels"]["choices"] == dict.fromkeys(
        ("linear", "attention", "expert_ffn"), "xla"
    )
    assert (found["dtype"], found["mesh"]) == ("float32", None)
    assert (found["weights"]["kind"], found["weights"]["held"]) == ("plain", {"float32": 12})


def test_it_is_json_and_names_no_folder(model, path):
    text = json.dumps(provenance(model, {"file": path}), allow_nan=False)
    assert json.loads(text) == provenance(model, {"file": path})
    assert str(path.parent) not in text
    assert json.loads(text)["settings"] == {"file": path.name}


def test_how_weights_are_held_and_spread(path):
    kernels = KernelPolicy("xla", (("plain_matvec", "failed"), ("plain_matvec", "again")))
    mesh = make_mesh(data=1, model=2)
    model = rfjax.load(path, dtype="bfloat16", weights="packed", mesh=mesh, kernels=kernels)
    found = provenance(model, {})
    assert found["weights"]["kind"] == "packed"
    assert found["weights"]["held"] == {"Q8_0": 4, "float32": 8}
    assert (found["dtype"], found["mesh"]) == ("bfloat16", {"data": 1, "model": 2})
    assert found["device"]["count"] == 2
    assert found["kernels"]["disabled"]["plain_matvec"] == "failed"


@pytest.mark.parametrize(
    ("architecture", "policy", "taken"),
    [
        ("9.0", KernelPolicy(), "pallas"),
        ("gfx942", KernelPolicy(), "pallas"),
        ("gfx1036", KernelPolicy("xla"), "xla"),
        ("gfx1036", KernelPolicy(), "xla"),
    ],
)
def test_what_operations_with_kernels_take_on_gpus(architecture, policy, taken):
    device = types.SimpleNamespace(platform="gpu", compute_capability=architecture)
    assert set(_kernels(policy, device)["choices"].values()) == {taken}


def test_without_a_tokenizer_and_without_a_file(tmp_path, model):
    found = provenance(dataclasses.replace(model, tokenizer=None), {})
    assert found["tokenizer"] is None
    with pytest.raises(ModelFormatError):
        provenance(dataclasses.replace(model, path=str(tmp_path / "gone.gguf")), {})


def test_beside_figures(model):
    found = with_provenance({"ppl": np.float32(2.5)}, model, {"n_ctx": 8})
    assert found == {"ppl": 2.5, "provenance": provenance(model, {"n_ctx": 8})}


class Choice(enum.StrEnum):
    FIRST = "one"


@dataclasses.dataclass(frozen=True)
class Figures:
    values: tuple[float, ...]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Figures((0.1, math.inf, math.nan)), {"values": [0.1, None, None]}),
        (np.array([[1, 2]], np.int32), [[1, 2]]),
        ({np.float64(0.5): np.bool_(True)}, {"0.5": True}),
        (np.array([np.nan, 0.1], np.float32), [None, float(np.float32(0.1))]),
        ([Choice.FIRST, {"b", "a"}], ["one", ["a", "b"]]),
        (pathlib.Path("/some/where/model.gguf"), "model.gguf"),
    ],
)
def test_values_as_json_has_them(value, expected):
    assert jsonable(value) == expected
    assert json.loads(json.dumps(jsonable(value))) == expected


def test_what_json_cannot_say():
    with pytest.raises(TypeError, match="function is not part of a result"):
        jsonable({"f": jsonable})
