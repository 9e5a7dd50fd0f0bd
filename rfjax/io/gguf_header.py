"""The header of one GGUF file: magic, version, metadata, alignment and tensor table."""

import mmap
import os
import pathlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from rfjax.errors import ModelFormatError
from rfjax.io.gguf_cursor import Cursor, malformed
from rfjax.io.gguf_metadata import Metadata
from rfjax.io.gguf_tensors import TensorInfo, read_tensors
from rfjax.io.gguf_values import Value, read_pairs

MAGIC = b"GGUF"
"""First four bytes of every GGUF file."""

SUPPORTED_VERSIONS = (2, 3)
"""Versions of the format that are read; they differ only in that 3 also allows big-endian."""

DEFAULT_ALIGNMENT = 32
"""Alignment of tensor data in bytes where `general.alignment` does not say."""

_FOREIGN_STARTS = {
    b"ggml": "a GGML file from before GGUF: convert the model to GGUF",
    b"tjgg": "a GGJT file from before GGUF: convert the model to GGUF",
    b"lmgg": "a GGML file from before GGUF: convert the model to GGUF",
    b"vers": "perhaps a git-lfs pointer: fetch the file itself with `git lfs pull`",
    b"PK\x03\x04": "a zip archive or PyTorch checkpoint: convert the model to GGUF",
}
"""Starts of files that are often given by mistake, and what to do about each."""


@dataclass(frozen=True, eq=False)
class Header(Metadata):
    """A validated header with the file mapped into memory.

    Attributes:
        version: Version of the format, 2 or 3.
        alignment: Alignment of tensor data in bytes, a power of two.
        tensors: Tensors by name in the file's order; read-only.
        data_end: Least size in bytes of a file that holds all of its data and padding.
        data: The whole file, read-only; pages are read when touched.
    """

    version: int
    alignment: int
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    data_end: int
    data: mmap.mmap = field(repr=False)


def read_header(path: pathlib.Path, shard: int = 0) -> Header:
    """Maps a file and reads its header.

    Args:
        path: A GGUF file.
        shard: Index of the file in a split model, for its tensors.

    Raises:
        ModelFormatError: The file cannot be read or its header breaks the format or a limit.
    """
    cursor = Cursor(path, _map(path))
    version = _read_version(cursor)
    n_tensors = _read_count(cursor, "tensors")
    n_pairs = _read_count(cursor, "metadata pairs")
    values, types = read_pairs(cursor, n_pairs)
    alignment = _alignment(path, values, types)
    tensors, data_end = read_tensors(cursor, n_tensors, alignment, shard)
    return Header(
        path=path,
        metadata=MappingProxyType(values),
        value_types=MappingProxyType(types),
        version=version,
        alignment=alignment,
        tensors=MappingProxyType(tensors),
        data_end=data_end,
        data=cursor.data,
    )


def _map(path: pathlib.Path) -> mmap.mmap:
    """Maps a regular, non-empty file into memory, read-only."""
    try:
        status = os.stat(path)  # before opening: that of a pipe would wait for a writer
        regular = stat.S_ISREG(status.st_mode)
        if regular and status.st_size:
            with path.open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise ModelFormatError(
            f"{path}: there is no such file; check the path of the .gguf file"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise ModelFormatError(
            f"{path}: the file cannot be read ({error}); "
            "check its path, its permissions and that its disk is reachable"
        ) from error
    if regular:
        raise malformed(path, "the file is empty")
    kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
    raise ModelFormatError(f"{path}: it is {kind}; give the path of a .gguf file")


def _read_version(cursor: Cursor) -> int:
    """Reads the magic and the version; refuses other formats, versions and byte orders by name."""
    magic = cursor.take(len(MAGIC), "the magic")
    if magic != MAGIC:
        hint = _FOREIGN_STARTS.get(magic, "it is not a GGUF file")
        raise ModelFormatError(
            f"{cursor.path}: it starts with {magic!r}, expected {MAGIC!r}; {hint}"
        )
    version = cursor.u32("the version")
    if version in SUPPORTED_VERSIONS:
        return version
    supported = "expected version 2 or 3, little-endian; convert the model again"
    if version and version & 0xFFFF == 0:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        raise ModelFormatError(
            f"{cursor.path}: it is a big-endian GGUF file (version {swapped}), {supported}"
        )
    raise ModelFormatError(f"{cursor.path}: it has GGUF version {version}, {supported}")


def _read_count(cursor: Cursor, what: str) -> int:
    """Reads a count, which the format calls unsigned and ggml signed."""
    count = cursor.u64(f"the number of {what}")
    if count >= 2**63:
        raise malformed(cursor.path, f"it claims {count} {what}, expected fewer than 2^63")
    return count


def _alignment(path: pathlib.Path, values: Mapping[str, Value], types: Mapping[str, str]) -> int:
    """The alignment that the metadata declares, or the default."""
    key = "general.alignment"
    if key not in values:
        return DEFAULT_ALIGNMENT
    value = values[key]
    if types[key] != "uint32" or not isinstance(value, int):
        raise malformed(path, f"metadata key {key!r} is {types[key]}, expected uint32")
    if value < 1 or value & (value - 1):
        raise malformed(path, f"metadata key {key!r} is {value}, expected a power of two")
    return value
