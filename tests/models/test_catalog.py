"""What is known of every architecture: complete, current, and supported only where measured."""

import json
import tomllib

import jax
import jax.numpy as jnp
import pytest
from support.arch_goldens import GOLDENS
from support.arch_record import (
    DOCUMENT,
    FACTOR,
    RECORD,
    ROOT,
    SHARED,
    as_recorded,
    generated,
    recorded_errors,
    table,
)

from rfjax.errors import UnsupportedError
from rfjax.models import catalog as module
from rfjax.models.architectures import ARCHITECTURES
from rfjax.models.catalog import LIMIT, catalog, find_entry
from rfjax.ops.dispatch import KERNELS
from rfjax.ops.scores import ScoreTerms
from rfjax.pallas import decode_attention
from rfjax.quant.formats import FORMATS


def test_every_architecture_is_there():
    entries = catalog()
    assert [entry.name for entry in entries] == list(ARCHITECTURES)
    for entry in entries:
        assert entry.mechanisms and entry.models and ":" not in entry.models
        assert entry.formats == tuple(type.name for type in FORMATS)


def test_every_architecture_was_measured():
    for entry in catalog():
        assert entry.supported, entry.name
        assert entry.conformance is not None and 0 < entry.conformance.nmse <= LIMIT


def test_the_record_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["rfjax"]
    assert any(RECORD.relative_to(ROOT / "rfjax").match(pattern) for pattern in patterns)


def test_every_golden_is_recorded():
    """That the record is right is for the tests that compare with the goldens to say."""
    errors = recorded_errors()
    found = {
        (architecture, name)
        for architecture, of in errors.items()
        for name in of
        if not name.startswith(SHARED)
    }
    assert found == {(golden.family.name, name) for name, golden in GOLDENS.items()}
    assert set(errors) == set(ARCHITECTURES)


@pytest.mark.parametrize(
    "record", [{}, {"llama": {"bad": 2e-8}}, {"llama": {"good": 1e-12, "bad": 1e-3}}]
)
def test_without_a_good_measurement_nothing_is_supported(tmp_path, monkeypatch, record):
    (tmp_path / "conformance.json").write_text(json.dumps({"reference": "x", "errors": record}))
    monkeypatch.setattr(module.importlib.resources, "files", lambda package: tmp_path)
    module.conformance_record.cache_clear()
    try:
        entry = find_entry("llama")
    finally:
        module.conformance_record.cache_clear()
    assert not entry.supported
    assert (entry.conformance is None) == (not record)


@pytest.mark.parametrize(
    ("name", "factor", "same"),
    [
        ("deepseek2-yarn", FACTOR, True),
        ("deepseek2-yarn", 1 / FACTOR, True),
        ("deepseek2-yarn", 5e3, False),
        ("exaone4-64", 2 * FACTOR, True),
        ("exaone4-64", 20 * FACTOR, False),
        ("exaone4-64", float("nan"), False),
        ("gpt2", 15.0, True),
        ("gpt2", 1e3, False),
    ],
)
def test_an_error_is_the_recorded_one_within_a_factor(name, factor, same):
    architecture = GOLDENS[name].family.name
    error = recorded_errors()[architecture][name] * factor
    assert as_recorded(architecture, name, error) == same


def test_the_document_is_current():
    text = table(catalog())
    assert generated(DOCUMENT.read_text(encoding="utf-8")) == text
    assert "unverified" not in text


def test_kernels():
    known = {kernel for kernels in KERNELS.values() for kernel in kernels}
    for entry in catalog():
        assert set(entry.without) <= known
        assert not set(entry.without) & set(entry.kernels)
        experts = ARCHITECTURES[entry.name].mixture is not None
        assert ("grouped_matvec" in entry.kernels) == experts
        assert set(entry.kernels) | set(entry.without) | {"grouped_matvec"} == known
    assert "paged_decode_attention" in find_entry("gpt-oss").kernels
    assert "paged_decode_attention" in find_entry("deepseek2").without


def test_fused_products():
    assert find_entry("llama").fused == ("norm+products", "QKV", "gate+up")
    assert find_entry("phimoe").fused == ("QKV", "gate+up")  # its norms have biases
    assert find_entry("gpt2").fused == ("QKV",)
    assert find_entry("exaone4").fused == ("QKV", "gate+up")  # no norm before
    assert find_entry("deepseek2").fused == ("norm+products", "gate+up")


@pytest.mark.parametrize("name", ["gemma2", "gpt-oss", "bloom", "llama"])
def test_what_the_kernel_of_dense_rows_declines(name):
    spec = ARCHITECTURES[name]
    terms = ScoreTerms(
        sinks=jnp.zeros(4) if spec.sinks else None,
        slopes=jnp.ones(4) if spec.alibi else None,
        softcap=spec.softcap,
    )
    shaped = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)  # noqa: E731
    k, v = shaped(1, 2, 256, 64), shaped(1, 2, 64, 256)
    reason = decode_attention.declines(shaped(1, 4, 64), k, v, 32, 0.125, terms)
    assert (reason is not None) == ("decode_attention" in find_entry(name).without)


def test_an_unknown_name():
    with pytest.raises(UnsupportedError, match="nearest name is 'qwen'"):
        find_entry("qwen4")
