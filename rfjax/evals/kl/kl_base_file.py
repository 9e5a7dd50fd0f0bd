"""llama-perplexity's file of a base's probabilities: what `--kl-divergence-base` names.

Little-endian: "_logits_"; int32 n_ctx, n_vocab and n_chunk; the text's tokens, int32
[n_chunk, n_ctx], without the BOS that each chunk starts with; then of each chunk the rows of its
scored tokens, uint16 [n_ctx - 1 - n_ctx / 2, width], see `rfjax.ops.logprob_codes`.
"""

import contextlib
import dataclasses
import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rfjax.errors import ModelFormatError, RequestError
from rfjax.user_files import replaceable

_MAGIC = b"_logits_"
_SIZES = np.dtype("<i4")
_CODES = np.dtype("<u2")


def row_width(n_vocab: int) -> int:
    """Codes of a row: four for two f32 numbers, one for each token, one more to make it even."""
    return 4 + n_vocab + n_vocab % 2


@dataclasses.dataclass(frozen=True, eq=False)
class KLBase:
    """A file's header.

    Attributes:
        tokens: of the text, int32 [n_chunks, n_ctx].
        n_vocab: tokens of the vocabulary.
    """

    tokens: np.ndarray
    n_vocab: int

    @property
    def n_chunks(self) -> int:
        """Chunks of the text."""
        return self.tokens.shape[0]

    @property
    def n_ctx(self) -> int:
        """Tokens of a chunk."""
        return self.tokens.shape[1]

    @property
    def chunk_shape(self) -> tuple[int, int]:
        """Scored tokens of a chunk, and the codes of one."""
        return self.n_ctx - 1 - self.n_ctx // 2, row_width(self.n_vocab)

    @property
    def nbytes(self) -> int:
        """Size of the whole file."""
        rows, width = self.chunk_shape
        per_chunk = rows * width * _CODES.itemsize + self.n_ctx * _SIZES.itemsize
        return len(_MAGIC) + 3 * _SIZES.itemsize + self.n_chunks * per_chunk


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[tuple[KLBase, Iterator[np.ndarray]]]:
    """A file's header, and its chunks, uint16 `chunk_shape` each, read as they are asked for.

    Raises:
        RequestError: the file cannot be read.
        ModelFormatError: it is no such file, or damaged, or its length is not what its header
            asks for, as that of a file which is still being written.
    """
    path = Path(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise RequestError(
            f"{path}: cannot be read ({error.strerror}); expected a file that "
            "--kl-divergence-base wrote"
        ) from error
    with file:
        base = _read_header(file, path)
        yield base, _chunks(file, base)


def _read_header(file: BinaryIO, path: Path) -> KLBase:
    size = os.fstat(file.fileno()).st_size
    start = file.read(len(_MAGIC))
    if start != _MAGIC:
        raise ModelFormatError(
            f"{path}: starts with {start!r}, expected {_MAGIC!r}: not a file that "
            "--kl-divergence-base wrote"
        )
    raw = file.read(3 * _SIZES.itemsize)
    n_ctx, n_vocab, n_chunks = np.frombuffer(raw.ljust(12, b"\0"), _SIZES).tolist()
    if n_ctx < 4 or n_vocab < 1 or n_chunks < 1:
        raise ModelFormatError(
            f"{path}: n_ctx {n_ctx}, n_vocab {n_vocab}, n_chunk {n_chunks}; expected at least 4, "
            "1 and 1: the file is damaged, write it again"
        )
    # Before anything of that size is made: the numbers may be anything.
    rows, width = n_ctx - 1 - n_ctx // 2, row_width(n_vocab)
    per_chunk = rows * width * _CODES.itemsize
    tokens_end = file.tell() + n_chunks * n_ctx * _SIZES.itemsize
    expected = tokens_end + n_chunks * per_chunk
    if size != expected:
        complete = max(0, size - tokens_end) // per_chunk
        raise ModelFormatError(
            f"{path}: {size} bytes, expected {expected} for {n_chunks} chunks of {n_ctx} tokens "
            f"and a vocabulary of {n_vocab}"
            + (
                f": only {complete} chunks are complete, as after an interruption; write it again"
                if size < expected
                else ": the file is damaged, write it again"
            )
        )
    raw = file.read(n_chunks * n_ctx * _SIZES.itemsize)
    tokens = np.frombuffer(raw, _SIZES).reshape(n_chunks, n_ctx).astype(np.int32)
    if tokens.min() < 0 or tokens.max() >= n_vocab:
        raise ModelFormatError(
            f"{path}: token ids from {tokens.min()} to {tokens.max()}, expected 0 to "
            f"{n_vocab - 1}: the file is damaged, write it again"
        )
    return KLBase(tokens, n_vocab)


def _chunks(file: BinaryIO, base: KLBase) -> Iterator[np.ndarray]:
    rows, width = base.chunk_shape
    for _ in range(base.n_chunks):
        raw = file.read(rows * width * _CODES.itemsize)
        yield np.frombuffer(raw, _CODES).astype(np.uint16, copy=False).reshape(rows, width)


class KLBaseWriter:
    """Takes a file's chunks; of `writing`."""

    def __init__(self, file: BinaryIO, base: KLBase, path: Path):
        self._file = file
        self._base = base
        self._path = path
        self.n_written = 0

    def header(self) -> None:
        """Write what stands before the chunks."""
        base = self._base
        with _as_request_error(self._path):
            self._file.write(_MAGIC)
            self._file.write(np.array([base.n_ctx, base.n_vocab, base.n_chunks], _SIZES).tobytes())
            self._file.write(base.tokens.astype(_SIZES).tobytes())

    def add(self, codes: np.ndarray) -> None:
        """Write the next chunk, uint16 `chunk_shape`.

        Raises:
            RequestError: the disk is full, or will not take it.
        """
        assert codes.shape == self._base.chunk_shape and codes.dtype == np.uint16
        with _as_request_error(self._path):
            self._file.write(codes.astype(_CODES, copy=False).tobytes())
        self.n_written += 1


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], base: KLBase) -> Iterator[KLBaseWriter]:
    """A writer of a file that is there when all chunks are, and not before.

    Until then what is written has another name beside it, and goes away when anything is raised
    inside; what a process that was killed has left there goes away when the next one begins. Links
    are followed; what is no regular file is refused.

    Raises:
        RequestError: the file cannot be written there, or the disk has no room for it.
    """
    path = Path(path)
    with _as_request_error(path):
        target = replaceable(path)
        _remove_stale(target)
        partial = target.with_name(f".{target.name}.{os.getpid()}.part")
        free = shutil.disk_usage(target.parent).free
        if free < base.nbytes:
            raise RequestError(
                f"{path}: needs {base.nbytes} bytes, and the disk has {free} left: give another "
                "place, fewer chunks, or use `rfjax kld`, which needs no file"
            )
        file = partial.open("wb")
        _lock(file)
    try:
        try:
            writer = KLBaseWriter(file, base, path)
            writer.header()
            yield writer
            assert writer.n_written == base.n_chunks
        finally:
            with _as_request_error(path):
                file.close()
        with _as_request_error(path):
            partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _remove_stale(target: Path) -> None:
    """Remove what processes that were killed have left of the same file."""
    for partial in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        with contextlib.suppress(OSError), partial.open("rb") as file:
            if _lock(file):
                partial.unlink()


def _lock(file: BinaryIO) -> bool:
    """Whether the file is ours now; the system gives it up with the process, however that ends.

    A lock and not the process' number, which means nothing on another machine of a shared disk.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody's, or the disk has no locks
        return False
    return True


@contextlib.contextmanager
def _as_request_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RequestError(
            f"{path}: cannot be written ({error.strerror}); give a file in a folder that is there "
            "and takes it"
        ) from error
