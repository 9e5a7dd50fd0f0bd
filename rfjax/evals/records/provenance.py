"""Where a result comes from: all that it depends on, as JSON."""

import hashlib
import importlib.metadata
import importlib.resources
import pathlib
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from typing import Any

import jax

from rfjax.compile_threads import n_processors
from rfjax.evals.records.jsonable import jsonable
from rfjax.io.gguf import read_gguf
from rfjax.io.load import Model
from rfjax.io.model_hash import template_hash, tokenizer_hash, weights_hash
from rfjax.models.params import Params
from rfjax.ops.dispatch import KERNELS, KernelPolicy
from rfjax.pallas.target import target_of
from rfjax.processor import processor_name
from rfjax.quant.qtensor import QTensor, has_packed
from rfjax.selfcheck.record import current_identity

_PACKAGES = ("rfjax", "jax", "jaxlib", "numpy")


def provenance(
    model: Model, settings: Mapping[str, Any], *, packages: Sequence[str] = ()
) -> dict[str, Any]:
    """All that a result of this model depends on, ready for `json.dumps`.

    Reads the model's file once more, to hash it.

    Args:
        model: as loaded.
        settings: everything else that was chosen, such as `n_ctx` and `batch_invariant`, and
            what was evaluated, such as the `text_hash` of a text. Of paths the name is kept.
        packages: other packages whose versions matter, such as "lm-eval".

    Returns:
        Entries `weights`, `tokenizer` (None where ids are given), `settings`, `versions`,
        `source` (a digest of rfjax's own), `jax` (its settings), `device`, `dtype`, `mesh`,
        `kernels`; see "Reproducing a result" in `docs/evaluation.md`.

    Raises:
        ModelFormatError: the model's file is gone or damaged.
        TypeError: a setting has no form in JSON.
    """
    gguf = read_gguf(model.path)
    tokenizer = None
    if model.tokenizer is not None:
        tokenizer = {"hash": tokenizer_hash(gguf), "chat_template": template_hash(gguf)}
    device = _device_of(model)
    names = dict.fromkeys((*_PACKAGES, *packages))
    versions = {name: importlib.metadata.version(name) for name in names}
    return {
        "weights": {
            "file": pathlib.Path(model.path).name,
            "hash": weights_hash(gguf),
            "kind": "packed" if has_packed(model.params) else "plain",
            "held": _held(model.params),
        },
        "tokenizer": tokenizer,
        "settings": jsonable(settings),
        "versions": {"python": platform.python_version(), **versions},
        "source": _source_digest(),
        "jax": {
            name: jsonable(getattr(jax.config, name))
            for name in ("jax_default_matmul_precision", "jax_enable_x64")
        },
        "device": _described(device, model),
        "dtype": model.config.dtype,
        "mesh": None if model.mesh is None else {str(k): n for k, n in model.mesh.shape.items()},
        "kernels": _kernels(model.config.kernels, device),
    }


def with_provenance(
    result: Mapping[str, Any],
    model: Model,
    settings: Mapping[str, Any],
    *,
    packages: Sequence[str] = (),
) -> dict[str, Any]:
    """A result as JSON has it, with its `provenance` beside its figures.

    This is what `rfjax.evals.records.result_file` writes and compares. Arguments as of
    `provenance`.
    """
    return jsonable(result) | {"provenance": provenance(model, settings, packages=packages)}


def text_hash(text: str | bytes) -> str:
    """SHA-256 of what was evaluated: `sha256:` and 64 hexadecimal digits."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _device_of(model: Model) -> Any:
    """The `jax.Device` that holds the weights, or the first of those that do."""
    leaf = jax.tree.leaves(model.params)[0]
    return min(leaf.devices(), key=lambda device: device.id)


def _described(device: Any, model: Model) -> dict[str, Any]:
    on_cpu = device.platform == "cpu"
    return {
        "platform": device.platform,
        "kind": processor_name() if on_cpu else device.device_kind,
        "runtime": device.client.platform_version,
        "count": 1 if model.mesh is None else model.mesh.size,
        "processors": n_processors() if on_cpu else None,
    }


def _held(params: Params) -> dict[str, int]:
    """How many tensors are held in each type: GGML's where they are packed, else a dtype."""
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, QTensor))
    types = (leaf.type.name if isinstance(leaf, QTensor) else leaf.dtype.name for leaf in leaves)
    return dict(sorted(Counter(types).items()))


def _kernels(policy: KernelPolicy, device: Any) -> dict[str, Any]:
    """What operations with kernels run, which are not used and why, and what kernels there are."""
    target = target_of(device)
    possible = target not in ("interpret", "unknown") or policy.interpret
    taken = policy.implementation or ("pallas" if possible else "xla")
    return {
        "implementation": policy.implementation,
        "interpret": policy.interpret,
        "choices": dict.fromkeys(KERNELS, taken),
        "disabled": dict(reversed(policy.disabled)),  # of one kernel the first reason counts
        "digest": current_identity().kernels,  # sources and tuned settings, the user's included
    }


def _source_digest() -> str:
    """SHA-256 of rfjax's own modules, which tells changes between releases."""
    digest = hashlib.sha256()
    for name, file in sorted(_modules(importlib.resources.files("rfjax"), "")):
        data = file.read_bytes()
        digest.update(f"{name} {len(data)}\n".encode() + data)
    return f"sha256:{digest.hexdigest()}"


def _modules(folder: Traversable, prefix: str) -> list[tuple[str, Traversable]]:
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _modules(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".py"):
            found.append((prefix + entry.name, entry))
    return found
