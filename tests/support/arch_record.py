"""How far every architecture is from llama.cpp: the package's record, and the table in the docs.

`make archs`, or `python -m support.arch_record` in `tests/`, measures all models whose
logits are known (those of the conformance folder where it is there; else their figures stay as
they are) and writes both. Names after it (`make archs ARGS=qwen3`) say which architectures to
measure; the others keep their figures.
"""

import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Collection

import jax
import numpy as np
from support.arch_goldens import GOLDENS, KEPT, stored
from support.mutations import nmse
from support.quick_compile import quick_compile

from rfjax.io.load import load
from rfjax.models.architectures import ARCHITECTURES, find_architecture
from rfjax.models.catalog import LIMIT, Entry, catalog, conformance_record
from rfjax.models.decoder import forward

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECORD = ROOT / "rfjax" / "models" / "archs" / "conformance.json"
DOCUMENT = ROOT / "docs" / "architectures.md"

REFERENCE = "llama.cpp, f32 logits on the CPU"

SHARED = "conformance/"
"""Before the names of the conformance folder's models."""

FACTOR = 10.0
"""By how much an error may differ from the record: compilers and machines round differently."""

LEAST, LEAST_OF_GELU = 1e-10, 1e-9
"""Errors below this are alike: roundings of f32, which another processor sums in another order; or
of f16 in the GELU, where a single number that falls to the other side of the next one outweighs all
else."""

_BEGIN, _END = "<!-- begin: make archs -->\n", "<!-- end: make archs -->\n"

run = jax.jit(forward, static_argnames="config")


def as_recorded(architecture: str, model: str, error: float) -> bool:
    """Whether a model's error is within the limit, and the recorded one as roundings allow."""
    recorded = recorded_errors()[architecture][model]
    least = LEAST_OF_GELU if ARCHITECTURES[architecture].activation == "gelu" else LEAST
    smaller, larger = sorted(max(value, least) for value in (error, recorded))
    return error <= LIMIT and larger <= smaller * FACTOR


def recorded_errors() -> dict[str, dict[str, float]]:
    """The record: errors by architecture and model."""
    return json.loads(RECORD.read_text(encoding="utf-8"))["errors"]


def golden_error(name: str, folder: pathlib.Path) -> float:
    """NMSE of a model of `support.arch_goldens`, which is written into the folder."""
    golden, expected = GOLDENS[name], stored(name)
    model = load(golden.write(folder / f"{name}.gguf"), context=golden.context)
    found = np.asarray(run(model.params, golden.tokens(), config=model.config))[KEPT]
    return nmse(found, expected["logits"])


def shared_error(path: pathlib.Path) -> float:
    """NMSE of a model of the conformance folder."""
    with np.load(path.with_suffix(".npz")) as golden:
        tokens, expected = golden["tokens"], golden["logits"]
    model = load(path)
    return nmse(np.asarray(run(model.params, tokens, config=model.config)), expected)


def measured(names: Collection[str], shared: pathlib.Path | None) -> dict[str, dict[str, float]]:
    """Errors by architecture in the order of the table: of these measured, of others recorded."""
    known = recorded_errors()
    errors = {name: {} if name in names else known.get(name, {}) for name in ARCHITECTURES}
    with quick_compile(), tempfile.TemporaryDirectory() as folder:
        for name, golden in GOLDENS.items():
            if golden.family.name in names:
                errors[golden.family.name][name] = golden_error(name, pathlib.Path(folder))
                jax.clear_caches()
        for path in [] if shared is None else sorted(shared.glob("*.gguf")):
            architecture = path.stem.rpartition("-")[0]
            if architecture in names:
                errors[architecture][SHARED + path.stem] = shared_error(path)
                jax.clear_caches()
    if shared is None:
        for architecture in names:
            of = known.get(architecture, {}).items()
            errors[architecture].update({m: e for m, e in of if m.startswith(SHARED)})
    return {name: of for name, of in errors.items() if of}


def write_record(errors: dict[str, dict[str, float]]) -> None:
    """Writes the package's record, with two digits of each error."""
    rounded = {
        architecture: {name: float(f"{error:.1e}") for name, error in of.items()}
        for architecture, of in errors.items()
    }
    text = json.dumps({"reference": REFERENCE, "errors": rounded}, indent=1)
    RECORD.write_text(text + "\n", encoding="utf-8")


def table(entries: tuple[Entry, ...]) -> str:
    """The document's generated part."""
    supported = [entry for entry in entries if entry.supported]
    worst = max(entry.conformance.nmse for entry in supported if entry.conformance)
    lines = [
        f"{len(supported)} architectures, the worst NMSE {worst:.1e}.",
        "",
        f"Formats of weights, for all of them: {', '.join(entries[0].formats)}.",
        "",
        "| architecture | models | mechanisms | NMSE (models) | fused | without kernel |",
        "|---|---|---|---|---|---|",
    ]
    for entry in entries:
        cells = (
            f"`{entry.name}`",
            entry.models,
            ", ".join(entry.mechanisms),
            verdict(entry),
            ", ".join(entry.fused),
            ", ".join(f"`{kernel}`" for kernel in entry.without),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join((*lines, ""))


def verdict(entry: Entry) -> str:
    """The measured error, or that there is none to count on."""
    if entry.conformance is None or not entry.supported:
        return "unverified"
    return f"{entry.conformance.nmse:.1e} ({len(entry.conformance.errors)})"


def generated(document: str) -> str:
    """The part of the document that is generated."""
    return document.split(_BEGIN)[1].split(_END)[0]


def with_table(document: str, text: str) -> str:
    """The document with its generated part replaced."""
    head, rest = document.split(_BEGIN)
    return head + _BEGIN + text + _END + rest.split(_END)[1]


def main() -> None:
    """Measures, and writes the record and the document."""
    names = [find_architecture(name).name for name in sys.argv[1:]] or list(ARCHITECTURES)
    default = ROOT.parent / "shared" / "conformance"
    folder = pathlib.Path(os.environ.get("RFJAX_CONFORMANCE", default)) / "archs"
    write_record(measured(names, folder if folder.is_dir() else None))
    conformance_record.cache_clear()
    document = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(with_table(document, table(catalog())), encoding="utf-8")


if __name__ == "__main__":
    main()
