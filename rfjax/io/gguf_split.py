"""Models split into several GGUF files, named and numbered as llama.cpp's gguf-split does."""

import os
import pathlib
from collections.abc import Sequence

from rfjax.errors import ModelFormatError
from rfjax.io.gguf_header import Header, read_header
from rfjax.io.gguf_tensors import TensorInfo

MAX_SHARDS = 2**16 - 1
"""Most files of one model: llama.cpp counts them in unsigned 16-bit integers."""

_NO, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"


def shard_name(stem: str, index: int, count: int) -> str:
    """File name of shard `index`, from 0, of `count`: `STEM-00001-of-00003.gguf`."""
    return f"{stem}-{index + 1:05d}-of-{count:05d}.gguf"


def read_shards(path: pathlib.Path) -> tuple[Header, ...]:
    """Reads the header of a file and, if it is part of a split model, of all its other parts.

    Args:
        path: A whole model, or any one shard of a split model; the others lie beside it.

    Returns:
        One header a file, in order.

    Raises:
        ModelFormatError: A file cannot be read or is malformed, a shard is missing, or the shards
            do not agree with one another.
    """
    given = read_header(path)
    count = given.get_int(_COUNT, 1)
    if count <= 1:  # a merged model keeps the key, with 0
        return (given,)
    first, *others = _shard_paths(given, count)
    headers = (
        given if given.path == first else read_header(first),
        *(read_header(other, shard) for shard, other in enumerate(others, start=1)),
    )
    for shard, header in enumerate(headers):
        _check_key(header, _NO, shard)
        _check_key(header, _COUNT, count)
    return headers


def join_tensors(headers: Sequence[Header]) -> dict[str, TensorInfo]:
    """Tensors of all shards by name, in order.

    Raises:
        ModelFormatError: A name occurs in two shards, or the total is not what the first shard
            says.
    """
    tensors: dict[str, TensorInfo] = {}
    for header in headers:
        for name, info in header.tensors.items():
            if name in tensors:
                raise ModelFormatError(
                    f"{header.path}: tensor {name!r} occurs here and in shard "
                    f"{headers[tensors[name].shard].path.name}, expected once; "
                    "split or download the model again"
                )
            tensors[name] = info
    if len(headers) > 1 and (expected := headers[0].get_int(_TENSORS)) != len(tensors):
        raise ModelFormatError(
            f"{headers[0].path}: its {len(headers)} shards hold {len(tensors)} tensors, "
            f"expected {expected} ({_TENSORS!r}); split or download the model again"
        )
    return tensors


def _shard_paths(given: Header, count: int) -> list[pathlib.Path]:
    """Paths of all shards, from the name of one; all of them exist."""
    path = given.path
    if count > MAX_SHARDS:
        raise ModelFormatError(
            f"{path}: metadata key {_COUNT!r} is {count}, expected at most {MAX_SHARDS}"
        )
    index = given.get_int(_NO)
    if not 0 <= index < count:
        raise ModelFormatError(
            f"{path}: metadata key {_NO!r} is {index}, expected 0 to {count - 1} "
            f"({_COUNT!r} is {count}); split or download the model again"
        )
    suffix = shard_name("", index, count)
    stem = path.name.removesuffix(suffix)
    if stem in ("", path.name):
        raise ModelFormatError(
            f"{path}: it is shard {index + 1} of {count} of a split model, but its name does not "
            f"end in {suffix!r}, so the others cannot be found; give the files the names that "
            "they had, or merge them into one file with `llama-gguf-split --merge`"
        )
    paths = [path.with_name(shard_name(stem, shard, count)) for shard in range(count)]
    missing = [shard.name for shard in paths if not os.path.exists(shard)]
    if missing:
        named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ModelFormatError(
            f"{path}: {len(missing)} of the model's {count} shards are missing in "
            f"{path.parent}: {named}; put all of them into one folder"
        )
    return paths


def _check_key(header: Header, key: str, expected: int) -> None:
    """Checks that a shard numbers itself as its place in the model demands."""
    if (found := header.get_int(key)) != expected:
        raise ModelFormatError(
            f"{header.path}: metadata key {key!r} is {found}, expected {expected}; "
            "the file is not the shard that its name says: split or download the model again"
        )
