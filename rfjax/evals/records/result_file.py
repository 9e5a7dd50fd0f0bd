"""Results as files, and whether a new result is the old one again."""

import json
import math
import os
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from rfjax.errors import RequestError
from rfjax.evals.records.difference import Difference, differences, identical
from rfjax.evals.records.jsonable import jsonable
from rfjax.user_files import write_atomically

PROVENANCE = "provenance"
"""The key of a result under which its provenance stands."""

TOLERANCE = 1e-4
"""Relative difference of figures that other devices and versions may make, where none is named."""

_NO_FIGURES = frozenset({PROVENANCE, "seconds", "tokens_per_second", "model", "file"})
"""Keys of results, at any depth, that say how long it took and where the files were."""

_CIRCUMSTANCES = ("versions", "jax", "device", "dtype", "mesh", "kernels")
"""Entries of a provenance that must be the same for figures to have the same bits."""


def write_result(
    path: str | os.PathLike[str], result: Mapping[str, Any], provenance: Mapping[str, Any]
) -> None:
    """Write a result with its provenance as one JSON object, whole or not at all.

    Args:
        path: the file; its folder is made if it is missing.
        result: figures by name, of anything that `jsonable` takes.
        provenance: what `rfjax.evals.records.provenance` gave for them.

    Raises:
        TypeError: the result has a value that JSON cannot hold.
        OSError: the file cannot be written.
    """
    values = jsonable(result) | {PROVENANCE: jsonable(provenance)}
    write_atomically(pathlib.Path(path), json.dumps(values, indent=1, allow_nan=False) + "\n")


def read_result(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A result with its provenance, as `write_result` or a command with `--json` wrote it.

    Raises:
        RequestError: there is no such file, it is damaged, or it has no provenance.
    """
    try:
        values = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RequestError(f"{path} is no JSON: {error}. Expected a result of rfjax") from error
    if not isinstance(values, dict) or not isinstance(values.get(PROVENANCE), dict):
        raise RequestError(
            f"{path} has no entry {PROVENANCE!r}: expected a JSON object that rfjax wrote. Other "
            "results cannot be checked"
        )
    return values


def compare_results(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    *,
    tolerance: float = TOLERANCE,
    ignore: Collection[str] = (),
) -> tuple[Difference, ...]:
    """Whether a result was reproduced: where it was, nothing is returned.

    Figures must have the same bits where both results come from the batch-invariant mode (the
    setting `batch_invariant`) and device, versions, dtype, mesh and kernels are the same; else
    numbers with a fraction may differ by the tolerance. Integers, words and truth values must be
    the same always.

    Args:
        old, new: results with their provenance, as of `read_result` or `with_provenance`.
        tolerance: the largest difference of two numbers, relative to the larger one.
        ignore: keys, at any depth, that are no figures, besides those of times and files.

    Returns:
        First, what else was measured: weights, tokenizer or settings that are not the same (kind
        "measured"). Then the figures that differ ("figure"), and if there are any, all of the
        provenance that differs and may explain it ("circumstance").

    Raises:
        RequestError: the tolerance is no number of at least 0.
    """
    if not tolerance >= 0 or math.isinf(tolerance):
        raise RequestError(f"tolerance: got {tolerance!r}, expected a number of at least 0")
    ours, theirs = _provenance(old), _provenance(new)
    measured = differences(_measured(ours), _measured(theirs), kind="measured")
    same = identical if must_be_identical(old, new) else _within(tolerance)
    ignored = _NO_FIGURES | frozenset(ignore)
    figures = differences(_figures(old, ignored), _figures(new, ignored), same=same)
    others = differences(_circumstances(ours), _circumstances(theirs), kind="circumstance")
    return (*measured, *figures, *(others if figures else ()))


def must_be_identical(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two results' figures are to have the same bits: see `compare_results`."""
    ours, theirs = _provenance(old), _provenance(new)
    invariant = (p.get("settings", {}).get("batch_invariant") is True for p in (ours, theirs))
    return all(invariant) and not differences(
        *({key: p.get(key) for key in _CIRCUMSTANCES} | {"held": _held(p)} for p in (ours, theirs))
    )


def _provenance(result: Mapping[str, Any]) -> Mapping[str, Any]:
    return jsonable(result.get(PROVENANCE, {}))


def _held(provenance: Mapping[str, Any]) -> Any:
    return provenance.get("weights", {}).get("held")


def _measured(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What a result is about."""
    return {
        "weights.hash": provenance.get("weights", {}).get("hash"),
        "tokenizer": provenance.get("tokenizer"),
        "settings": provenance.get("settings"),
    }


def _circumstances(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """All of a provenance but what a result is about, and the names of files."""
    others = {key: value for key, value in provenance.items() if key not in _measured({})}
    kept = ("kind", "held")
    weights = provenance.get("weights", {})
    return others | {"weights": {key: weights[key] for key in kept if key in weights}}


def _figures(result: Any, ignored: Collection[str]) -> Any:
    """A result without what is no figure."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(item) for key, item in value.items() if key not in ignored}
        return [without(item) for item in value] if isinstance(value, list) else value

    return without(jsonable(result))


def _within(tolerance: float) -> Callable[[Any, Any], bool]:
    def same(old: Any, new: Any) -> bool:
        numbers = (int, float)
        fraction = isinstance(old, float) or isinstance(new, float)
        if fraction and type(old) in numbers and type(new) in numbers:
            return abs(old - new) <= tolerance * max(abs(old), abs(new))
        return identical(old, new)

    return same
