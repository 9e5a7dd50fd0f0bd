"""What a GGUF file holds and whether this version can run it, as data.

`inspect_file` reads the header alone, so it works on files without tensor data and on models that
are not supported. No device is touched.
"""

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from rfjax.errors import ModelFormatError, RfjaxError, UnsupportedError
from rfjax.io.gguf import GGUFFile, read_gguf

_SHOWN_ELEMENTS = 8
_SHOWN_CHARACTERS = 200


@dataclasses.dataclass(frozen=True)
class Part:
    """One file of the model, with its size in bytes."""

    path: str
    nbytes: int


@dataclasses.dataclass(frozen=True)
class MetadataEntry:
    """A metadata value.

    `value` is a plain bool, int, float, string or list of these. Of a shortened array it holds
    the first elements, of a shortened string the first characters; `length` is the whole length
    of an array or string, else None.
    """

    type: str
    value: Any
    length: int | None
    shortened: bool


@dataclasses.dataclass(frozen=True)
class TensorReport:
    """A tensor; `shape` is in numpy's order, outermost first; `part` counts from 0."""

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int
    bits_per_weight: float | None
    part: int


@dataclasses.dataclass(frozen=True)
class TypeReport:
    """All tensors of one type."""

    type: str
    n_tensors: int
    n_elements: int
    nbytes: int


@dataclasses.dataclass(frozen=True)
class Check:
    """Whether one aspect of the file is supported; `reason` says why not, or what was found."""

    aspect: str
    supported: bool
    reason: str


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What `rfjax inspect` shows.

    Attributes:
        parts: the files, in order.
        version: of the GGUF format.
        alignment: of tensor data, in bytes.
        architecture: `general.architecture`, None if the file has none.
        name: `general.name`, None if the file has none.
        n_parameters: elements of all tensors.
        tensor_bytes: of all tensors, without padding.
        file_bytes: of all files.
        metadata: values by key, in the file's order.
        types: per tensor type, largest first.
        tensors: the tensor table, in the file's order.
        checks: what this version can do with the file, aspect by aspect.
    """

    parts: tuple[Part, ...]
    version: int
    alignment: int
    architecture: str | None
    name: str | None
    n_parameters: int
    tensor_bytes: int
    file_bytes: int
    metadata: dict[str, MetadataEntry]
    types: tuple[TypeReport, ...]
    tensors: tuple[TensorReport, ...]
    checks: tuple[Check, ...]

    @property
    def supported(self) -> bool:
        """Whether the model can run: every aspect is supported."""
        return all(check.supported for check in self.checks)

    @property
    def bits_per_weight(self) -> float | None:
        """Mean over all tensors; None without any."""
        return _bits(self.tensor_bytes, self.n_parameters)


def inspect_file(path: str | os.PathLike[str], *, shorten: bool = True) -> Inspection:
    """Read a model's header and check what this version can do with it.

    Args:
        path: a GGUF file, or any part of a split one.
        shorten: keep the first elements of long arrays and strings only.

    Raises:
        ModelFormatError: the file is not a well-formed GGUF file.
    """
    gguf = read_gguf(path)
    tensors = tuple(
        TensorReport(
            name=info.name,
            shape=info.shape,
            type=info.type.name,
            nbytes=info.nbytes,
            bits_per_weight=_bits(info.nbytes, info.n_elements),
            part=info.shard,
        )
        for info in gguf.tensors.values()
    )
    parts = tuple(Part(str(part), os.stat(part).st_size) for part in gguf.paths)
    return Inspection(
        parts=parts,
        version=gguf.version,
        alignment=gguf.alignment,
        architecture=_string(gguf, "general.architecture"),
        name=_string(gguf, "general.name"),
        n_parameters=sum(info.n_elements for info in gguf.tensors.values()),
        tensor_bytes=sum(tensor.nbytes for tensor in tensors),
        file_bytes=sum(part.nbytes for part in parts),
        metadata={key: _entry(gguf, key, shorten) for key in gguf.metadata},
        types=_types(tensors),
        tensors=tensors,
        checks=check_support(gguf),
    )


def check_support(gguf: GGUFFile) -> tuple[Check, ...]:
    """What this version can do with a file; the same checks as loading it, without its data."""
    return (
        _check("architecture", _architecture, gguf),
        _check("tensor types", _tensor_types, gguf),
        _check("configuration and tensors", _fit, gguf),
        _check("tokenizer", _tokenizer, gguf),
        _check("data", _data, gguf),
    )


def _check(aspect: str, examine: Callable[[GGUFFile], str], gguf: GGUFFile) -> Check:
    try:
        return Check(aspect, True, examine(gguf))
    except RfjaxError as error:
        return Check(aspect, False, str(error).removeprefix(f"{gguf.path}: "))


def _architecture(gguf: GGUFFile) -> str:
    from rfjax.models.architectures import find_architecture
    from rfjax.models.mechanisms import mechanisms

    spec = find_architecture(gguf.architecture)
    return f"{spec.name}: {', '.join(mechanisms(spec))}"


def _tensor_types(gguf: GGUFFile) -> str:
    from rfjax.quant.formats import FORMATS

    found = dict.fromkeys(info.type for info in gguf.tensors.values())
    unknown = [type.name for type in found if type not in FORMATS]
    if unknown:
        raise UnsupportedError(
            f"{', '.join(unknown)} cannot be decoded; supported: "
            f"{', '.join(type.name for type in FORMATS)}"
        )
    return ", ".join(type.name for type in found) or "no tensors"


def _fit(gguf: GGUFFile) -> str:
    from rfjax.io.load import check_tensors
    from rfjax.models.configure import configure
    from rfjax.models.params import param_spec

    config = configure(gguf)
    if not gguf.tensors:
        raise ModelFormatError("the file has metadata only, no tensors")
    check_tensors(gguf, param_spec(config))
    return (
        f"{len(config.layers)} layers, width {config.d_model}, vocabulary {config.vocab_size}, "
        f"context {config.context_length}"
    )


def _tokenizer(gguf: GGUFFile) -> str:
    from rfjax.io.load import read_tokenizer

    tokenizer = read_tokenizer(gguf)
    if tokenizer is None:
        return "none in the file: it is fed token ids"
    templates = ", ".join(tokenizer.chat_templates) or "none"
    return f"{tokenizer.kind}, {tokenizer.vocab_size} tokens; chat templates: {templates}"


def _data(gguf: GGUFFile) -> str:
    gguf.check_data()
    return "complete"


def _types(tensors: tuple[TensorReport, ...]) -> tuple[TypeReport, ...]:
    names = dict.fromkeys(tensor.type for tensor in tensors)
    groups = {name: [tensor for tensor in tensors if tensor.type == name] for name in names}
    reports = (
        TypeReport(
            type=name,
            n_tensors=len(group),
            n_elements=sum(math.prod(tensor.shape) for tensor in group),
            nbytes=sum(tensor.nbytes for tensor in group),
        )
        for name, group in groups.items()
    )
    return tuple(sorted(reports, key=lambda report: -report.nbytes))


def _bits(nbytes: int, n_elements: int) -> float | None:
    return 8 * nbytes / n_elements if n_elements else None


def _string(gguf: GGUFFile, key: str) -> str | None:
    try:
        return gguf.get_str(key, None)
    except ModelFormatError:
        return None  # of another type; the metadata shows it


def _entry(gguf: GGUFFile, key: str, shorten: bool) -> MetadataEntry:
    value, type_name = gguf.metadata[key], gguf.value_types[key]
    if not isinstance(value, np.ndarray | tuple | str):
        return MetadataEntry(type_name, value, None, False)
    limit = _SHOWN_CHARACTERS if isinstance(value, str) else _SHOWN_ELEMENTS
    shortened = shorten and len(value) > limit
    shown = value[:limit] if shortened else value
    if isinstance(shown, np.ndarray):
        shown = shown.tolist()
    elif isinstance(shown, tuple):
        shown = list(shown)
    return MetadataEntry(type_name, shown, len(value), shortened)
