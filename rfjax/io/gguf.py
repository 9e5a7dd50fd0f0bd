"""Reading GGUF files: metadata and tensor table checked at once, tensor data mapped into memory.

Nothing is trusted before it is checked, and the limits are stated where they are applied:
`gguf_cursor` (bytes of a header), `gguf_values` (metadata), `gguf_tensors` (tensor table) and
`gguf_split` (shards). Needs no JAX.
"""

import mmap
import os
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from rfjax.errors import ModelFormatError
from rfjax.io.gguf_header import Header
from rfjax.io.gguf_metadata import Metadata
from rfjax.io.gguf_split import join_tensors, read_shards
from rfjax.io.gguf_tensors import TensorInfo as TensorInfo
from rfjax.io.gguf_values import text_bytes as text_bytes

__all__ = ["GGUFFile", "TensorInfo", "read_gguf", "text_bytes"]


@dataclass(frozen=True, eq=False)
class GGUFFile(Metadata):
    """An open model: one GGUF file, or all shards of a split one read as one.

    Metadata is read with the getters of `Metadata`; that of a split model is its first shard's.

    Attributes:
        path: The file, or the first shard.
        paths: All files, in order.
        version: Version of the format (of the first shard), 2 or 3.
        alignment: Alignment of tensor data in bytes (of the first shard).
        tensors: Tensors by name in the order of the files; read-only.
    """

    paths: tuple[pathlib.Path, ...]
    version: int
    alignment: int
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    _headers: tuple[Header, ...] = field(repr=False)

    def check_data(self) -> None:
        """Checks that the files hold the data of all tensors, the padding of the last included.

        Raises:
            ModelFormatError: A file is too short; the message names the first tensor concerned.
        """
        for header in self._headers:
            size = _file_size(header)
            if header.data_end <= size:
                continue
            for info in header.tensors.values():
                if info.offset + info.nbytes > size:
                    raise self._truncated(info, size)
            raise ModelFormatError(
                f"{header.path}: the padding behind its last tensor is not whole: the file has "
                f"{size} bytes, expected {header.data_end} (alignment {header.alignment}). "
                "The download is incomplete: fetch the file again"
            )

    def raw(self, tensor: str | TensorInfo) -> np.ndarray:
        """The bytes of a tensor, as they stand in the file.

        Args:
            tensor: Its name; or an entry of the table, or one that describes a part of a tensor.

        Returns:
            Read-only uint8 array [nbytes], mapped into memory: pages are read when touched. It
            stays valid for as long as it is held; the file must not be shortened meanwhile.

        Raises:
            ModelFormatError: There is no such tensor, or the file ends before its data does.
        """
        info = self.tensors.get(tensor) if isinstance(tensor, str) else tensor
        if info is None:
            raise ModelFormatError(
                f"{self.path}: there is no tensor {tensor!r} among its {len(self.tensors)} tensors"
            )
        if info.nbytes == 0:
            return np.frombuffer(b"", np.uint8)
        header = self._headers[info.shard]
        if info.offset + info.nbytes > (size := _file_size(header)):
            raise self._truncated(info, size)
        return np.frombuffer(header.data, np.uint8, info.nbytes, info.offset)

    def release(self, tensor: str | TensorInfo) -> None:
        """Tells the system that a tensor's pages are not needed for now.

        They no longer count as this process's memory; arrays of `raw` stay valid, and their pages
        are read again when touched. Does nothing where the system has no such call.
        """
        info = self.tensors[tensor] if isinstance(tensor, str) else tensor
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        # Whole pages only: what a neighbour begins or ends with stays.
        first = -(-info.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = (info.offset + info.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if stop > first:
            self._headers[info.shard].data.madvise(mmap.MADV_DONTNEED, first, stop - first)

    def _truncated(self, info: TensorInfo, size: int) -> ModelFormatError:
        """The error for a tensor whose data is not wholly in its file of `size` bytes."""
        return ModelFormatError(
            f"{self.paths[info.shard]}: the data of tensor {info.name!r} is not whole: it takes "
            f"bytes {info.offset} to {info.offset + info.nbytes}, but the file has {size} bytes. "
            "The download is incomplete: fetch the file again"
        )


def read_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Reads and checks the header of a GGUF model, without its data.

    Args:
        path: A GGUF file of version 2 or 3, little-endian; or any shard of a split model
            (`NAME-00001-of-00003.gguf`), whose other shards lie beside it.

    Returns:
        The model's metadata and tensor table. Whether the tensor data is all there is for
        `GGUFFile.check_data` to say.

    Raises:
        ModelFormatError: The file is missing, unreadable, malformed, or of another version or byte
            order, or a shard is missing or does not belong.
    """
    headers = read_shards(pathlib.Path(path))
    first = headers[0]
    return GGUFFile(
        path=first.path,
        metadata=first.metadata,
        value_types=first.value_types,
        paths=tuple(header.path for header in headers),
        version=first.version,
        alignment=first.alignment,
        tensors=MappingProxyType(join_tensors(headers)),
        _headers=headers,
    )


def _file_size(header: Header) -> int:
    """Bytes that can be read now: a file shortened after it was mapped must not be touched."""
    return min(len(header.data), header.data.size())
