"""A result that `rfjax eval` wrote, as what is to be run again. No JAX, and no lm-eval."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from rfjax.errors import RequestError
from rfjax.evals.records.result_file import read_result

_NONE = type(None)
_ENTRIES: Mapping[str, tuple[type, ...]] = {
    "provenance.weights": (dict,),
    "provenance.settings": (dict,),
    "results": (dict,),
    "rfjax": (dict,),
    "rfjax.model": (str,),
    "rfjax.arguments": (dict,),
    "rfjax.options": (dict,),
    "rfjax.options.dtype": (str, _NONE),
    "rfjax.options.weights": (str, _NONE),
    "rfjax.options.tensor_parallel": (int,),
    "rfjax.options.data_parallel": (int,),
    "rfjax.options.implementation": (str,),
    "rfjax.options.selfcheck": (bool, _NONE),
    "rfjax.options.max_context": (int, _NONE),
    "rfjax.batch_invariant": (bool,),
    "rfjax.bootstrap_iters": (int,),
}
_BY_TASK = ("results", "groups", "versions", "n-shot", "n-samples", "n_truncated")
_WORDS = {
    dict: "an object",
    str: "a text",
    int: "an integer",
    bool: "true or false",
    _NONE: "null",
}


@dataclasses.dataclass(frozen=True)
class LmEvalResult:
    """What was evaluated, and what came out.

    Attributes:
        results: all of the file.
        run: what the command was told.
        sha256: of the file.
    """

    results: dict[str, Any]
    run: dict[str, Any]
    sha256: str


def read_lm_eval_result(path: str | os.PathLike[str]) -> LmEvalResult:
    """A result of `--output_path`, with everything that running it again needs.

    Raises:
        RequestError: it is a folder (its newest result is named), no result of `rfjax eval`, or
            damaged: the entry that is missing or wrong is named.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise RequestError(f"{path} is a folder: expected one result in it{_newest(path)}")
    results = read_result(path)
    if not results.get("rfjax"):
        raise RequestError(f"{path}: expected a result that rfjax eval wrote with --output_path")
    for wrong in _mistakes(results):
        raise RequestError(
            f"{path} is damaged: {wrong}. It cannot be checked; take it as rfjax eval wrote it"
        )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return LmEvalResult(results, results["rfjax"], sha256)


def _newest(folder: pathlib.Path) -> str:
    """lm-eval puts the time into the name."""
    found = max(folder.rglob("results_*.json"), key=lambda path: path.name, default=None)
    return ", and it has none" if found is None else f", of which the newest is {found}"


def _mistakes(results: Mapping[str, Any]) -> Iterator[str]:
    for name, kinds in _ENTRIES.items():
        value: Any = results
        for key in name.split("."):
            if key not in value:
                yield f"it has no {name}"
                return  # nor what would be in it
            value = value[key]
        if type(value) not in kinds:
            yield _wrong(name, value, *kinds)
            return
    for name in _BY_TASK:
        if not isinstance(results.get(name, {}), dict):
            yield _wrong(name, results[name], dict)
    for name in ("results", "groups"):
        for task, figures in results.get(name, {}).items():
            if not isinstance(figures, dict):
                yield _wrong(f"{name}.{task}", figures, dict)


def _wrong(name: str, value: Any, *kinds: type) -> str:
    expected = " or ".join(_WORDS[kind] for kind in kinds)
    return f"{name} is {json.dumps(value)[:60]}, expected {expected}"
