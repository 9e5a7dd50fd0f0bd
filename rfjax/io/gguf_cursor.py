"""A bounds-checked reading position in the header of a memory-mapped GGUF file."""

import mmap
import pathlib
import struct

from rfjax.errors import ModelFormatError

MAX_HEADER_BYTES = 2**26
"""Most bytes that metadata and tensor table may take together.

The largest known vocabularies (260k tokens with their merges) need about 20 MB. The limit bounds
the time and memory that a hostile file can cost: everything kept is at most a small multiple of it.
"""

_U32 = struct.Struct("<I")
_I32 = struct.Struct("<i")
_U64 = struct.Struct("<Q")


def malformed(path: pathlib.Path, problem: str) -> ModelFormatError:
    """The error for a file that breaks the format, with the usual way out."""
    return ModelFormatError(
        f"{path}: {problem}. The file is damaged, incomplete or not written as GGUF asks: "
        "download or convert it again"
    )


class Cursor:
    """Reads little-endian fields one after the other and never past the end.

    Attributes:
        path: File being read, for messages.
        data: The whole file.
        end: Bytes that may be read: the file's size or `MAX_HEADER_BYTES`, whichever is less.
        position: Offset of the next field in bytes.
    """

    def __init__(self, path: pathlib.Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.end = min(len(data), MAX_HEADER_BYTES)
        self.position = 0

    @property
    def remaining(self) -> int:
        """Bytes left to read."""
        return self.end - self.position

    def need(self, nbytes: int, what: str) -> None:
        """Checks that `nbytes` more bytes can be read.

        Raises:
            ModelFormatError: They would pass the end of the file or the limit on headers.
        """
        if nbytes > self.remaining:
            raise self.too_short(nbytes, what)

    def too_short(self, nbytes: int, what: str) -> ModelFormatError:
        """The error for `what` needing `nbytes` bytes that the header does not have."""
        if self.end < len(self.data):
            return malformed(
                self.path,
                f"{what} at byte {self.position} needs {nbytes} bytes, which passes the limit of "
                f"{MAX_HEADER_BYTES} bytes for a header (MAX_HEADER_BYTES)",
            )
        return malformed(
            self.path,
            f"{what} at byte {self.position} needs {nbytes} bytes, "
            f"but only {self.remaining} are left in the file",
        )

    def take(self, nbytes: int, what: str) -> bytes:
        """The next `nbytes` bytes, copied."""
        self.need(nbytes, what)
        start = self.position
        self.position += nbytes
        return self.data[start : self.position]

    def u32(self, what: str) -> int:
        """The next unsigned 32-bit integer."""
        return _U32.unpack(self.take(4, what))[0]

    def i32(self, what: str) -> int:
        """The next signed 32-bit integer."""
        return _I32.unpack(self.take(4, what))[0]

    def u64(self, what: str) -> int:
        """The next unsigned 64-bit integer."""
        return _U64.unpack(self.take(8, what))[0]

    def text(self, what: str, max_bytes: int = MAX_HEADER_BYTES) -> str:
        """The next string: a 64-bit length in bytes, then UTF-8.

        Bytes that are not UTF-8 become lone surrogates (`surrogateescape`), so that the exact
        bytes can be had back: real vocabularies hold such tokens.
        """
        length = self.u64(f"length of {what}")
        if length > max_bytes:
            raise malformed(
                self.path, f"{what} claims {length} bytes, expected at most {max_bytes}"
            )
        return self.take(length, what).decode("utf-8", "surrogateescape")

    def texts(self, count: int, what: str) -> tuple[str, ...]:
        """The next `count` strings, as `text` reads one; written for speed (400k strings)."""
        self.need(8 * count, f"{count} string lengths of {what}")
        data, position, end = self.data, self.position, self.end
        unpack, strings = _U64.unpack_from, []
        for index in range(count):
            start = position + 8
            if start > end:
                self.position = position
                raise self.too_short(8, f"length of string {index} of {what}")
            position = start + unpack(data, position)[0]
            if position > end:
                self.position = start
                raise self.too_short(position - start, f"string {index} of {what}")
            strings.append(data[start:position].decode("utf-8", "surrogateescape"))
        self.position = position
        return tuple(strings)
