"""`rfjax archs`: what it prints, and what is supported."""

import dataclasses
import json

import pytest
from typer.testing import CliRunner

from rfjax.cli.app import app
from rfjax.models import catalog as module
from rfjax.models.architectures import ARCHITECTURES
from rfjax.models.catalog import Conformance, find_entry


def run(*args):
    result = CliRunner().invoke(app, ["archs", *args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def without_a_measurement(monkeypatch):
    """The catalog with one architecture that was not compared, and one that failed."""

    def spoiled():
        bad = Conformance("llama.cpp", {"one": 1e-3})
        return (
            dataclasses.replace(find_entry("llama"), conformance=None),
            dataclasses.replace(find_entry("qwen2"), conformance=bad),
            find_entry("qwen3"),
        )

    monkeypatch.setattr(module, "catalog", spoiled)


def test_all():
    code, out, err = run()
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(ARCHITECTURES)]] == list(ARCHITECTURES)
    assert f"{len(ARCHITECTURES)} of {len(ARCHITECTURES)} supported" in out
    assert "unverified" not in out and "Q4_K" in out


@pytest.mark.usefixtures("without_a_measurement")
def test_what_was_not_measured_is_not_supported():
    out = run()[1]
    llama, qwen2, qwen3 = out.splitlines()[1:4]
    assert "unverified" in llama and "unverified" in qwen2 and "unverified" not in qwen3
    assert "1 of 3 supported" in out
    found = json.loads(run("--json")[1])["architectures"]
    assert [(entry["supported"], entry["nmse"]) for entry in found[:2]] == [
        (False, None),
        (False, 1e-3),
    ]


def test_one():
    code, out, err = run("gpt-oss")
    assert (code, err) == (0, "")
    for word in ("attention sinks", "paged_decode_attention", "grouped_matvec", "conformance/"):
        assert word in out
    assert "decode_attention: over dense rows it does not take sinks" in out


def test_as_json():
    found = json.loads(run("--json")[1])["architectures"]
    assert [entry["name"] for entry in found] == list(ARCHITECTURES)
    one = json.loads(run("gemma2", "--json")[1])
    assert one in found
    assert one["supported"] is True and 0 < one["nmse"] <= 1e-8
    assert "attention soft-capping" in one["mechanisms"]
    assert one["conformance"]["errors"]["gemma2"] <= one["nmse"]


def test_an_unknown_one():
    code, _, err = run("lama")
    assert code == 2
    assert "the nearest name is 'llama'" in err
