"""Results as files: what is read again, and what counts as the same result."""

import copy
import json
import math
import os
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfjax.errors import RequestError
from rfjax.evals.records.difference import MISSING, differences
from rfjax.evals.records.result_file import (
    compare_results,
    must_be_identical,
    read_result,
    write_result,
)

pytestmark = pytest.mark.quick_compile

PROVENANCE = {
    "weights": {"file": "a.gguf", "hash": "sha256:1", "kind": "plain", "held": {"float32": 3}},
    "tokenizer": {"hash": "sha256:2", "chat_template": None},
    "settings": {"n_ctx": 512, "batch_invariant": True},
    "versions": {"rfjax": "0.2", "jax": "0.10.2"},
    "source": "sha256:3",
    "jax": {"jax_enable_x64": False},
    "device": {"kind": "some processor"},
    "dtype": "float32",
    "mesh": None,
    "kernels": {"choices": {"linear": "xla"}, "digest": "4"},
}
FIGURES = {"ppl": 5.25, "n_tokens": 255, "running": [5.5, 5.25], "seconds": 1.5, "file": "x/a.txt"}
RESULT = FIGURES | {"provenance": PROVENANCE}


def changed(path: str, value: object) -> dict:
    """`RESULT` with another value at a path."""
    result = copy.deepcopy(RESULT)
    *outer, last = path.split(".")
    inner = result
    for key in outer:
        inner = inner[key]
    inner[last] = value
    return result


def found(old: dict, new: dict, **options) -> list[tuple[str, str]]:
    return [(d.kind, d.what) for d in compare_results(old, new, **options)]


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(json_values, json_values)
def test_nothing_differs_exactly_where_values_are_one(a, b):
    assert not differences(a, copy.deepcopy(a))
    as_text = [json.dumps(value, sort_keys=True) for value in (a, b)]
    assert bool(differences(a, b)) == (as_text[0] != as_text[1])


def test_a_file_gives_what_was_written(tmp_path):
    path = tmp_path / "deeper" / "result.json"
    write_result(path, FIGURES | {"error": math.inf, "third": 1 / 3}, PROVENANCE)
    assert read_result(path) == RESULT | {"error": None, "third": 1 / 3}
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["error"] is None
    write_result(path, {"ppl": 1}, PROVENANCE)
    assert read_result(path) == {"ppl": 1, "provenance": PROVENANCE}
    assert os.listdir(path.parent) == ["result.json"]


def test_others_may_read_a_result(tmp_path):
    os.umask(before := os.umask(0o022))
    write_result(tmp_path / "result.json", FIGURES, PROVENANCE)
    mode = stat.S_IMODE((tmp_path / "result.json").stat().st_mode)
    assert mode == 0o666 & ~before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"\xff", "is no JSON"),
        (b'{"a": ', "is no JSON"),
        (b"[1]", "no entry 'provenance'"),
        (b'{"ppl": 1}', "no entry 'provenance'"),
    ],
)
def test_what_is_no_result(tmp_path, content, message):
    path = tmp_path / "result.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RequestError, match=message):
        read_result(path)


def test_the_same_result_has_no_differences():
    assert compare_results(RESULT, copy.deepcopy(RESULT), tolerance=0) == ()


@pytest.mark.parametrize(
    "path", ["seconds", "file", "provenance.weights.file", "provenance.source", "provenance.dtype"]
)
def test_other_times_files_and_circumstances_alone_do_not_count(path):
    assert not found(RESULT, changed(path, "other"))


@pytest.mark.parametrize("path", ["weights.hash", "tokenizer.hash", "settings.n_ctx"])
def test_what_was_measured_counts_whatever_came_out(path):
    assert found(RESULT, changed(f"provenance.{path}", "other")) == [("measured", path)]


def test_one_bit_is_a_difference_in_the_same_circumstances():
    other = changed("ppl", math.nextafter(5.25, 6))
    assert must_be_identical(RESULT, other)
    (difference,) = compare_results(RESULT, other, tolerance=1)
    assert (difference.what, difference.old, difference.new) == ("ppl", 5.25, other["ppl"])
    assert str(difference) == "ppl: 5.25, now 5.250000000000001"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("settings.batch_invariant", False),
        ("versions.jax", "0.12.0"),
        ("device.kind", "another"),
        ("kernels.choices.linear", "pallas"),
        ("weights.held.float32", 2),
        ("mesh", {"data": 2}),
    ],
)
def test_elsewhere_the_tolerance_holds(path, value):
    old = changed(f"provenance.{path}", value)
    assert not must_be_identical(old, RESULT)
    near, far = changed("ppl", 5.25 * (1 + 0.9e-3)), changed("ppl", 5.25 * (1 + 1.1e-3))
    measured = [("measured", path)] if path.startswith("settings") else []
    assert found(old, near, tolerance=1e-3) == measured
    explained = [] if measured else [("circumstance", path)]
    assert found(old, far, tolerance=1e-3) == [*measured, ("figure", "ppl"), *explained]


def test_counts_are_exact_everywhere_and_shapes_too():
    old = changed("provenance.settings.batch_invariant", False)
    for path, value in (("n_tokens", 256), ("running", [5.5]), ("ppl", None), ("ppl", "5.25")):
        new = changed(path, value) | {"provenance": old["provenance"]}
        assert found(old, new, tolerance=0.5) == [("figure", path)]
    gone = {key: value for key, value in old.items() if key != "ppl"}
    (difference,) = compare_results(old, gone)
    assert (difference.what, difference.new) == ("ppl", MISSING)


def test_more_can_be_ignored():
    assert not found(RESULT, changed("running", []), ignore=["running"])
    assert found(RESULT, changed("running", [])) == [("figure", "running")]


@pytest.mark.parametrize("tolerance", [-1, math.nan, math.inf])
def test_tolerances_that_make_no_sense(tolerance):
    with pytest.raises(RequestError, match="tolerance"):
        compare_results(RESULT, RESULT, tolerance=tolerance)
