"""What an evaluation has computed so far, on disk: an interrupted one goes on where it stopped.

A file of JSON lines. The first says what is evaluated; every other one holds a key and its value:

    {"rfjax_journal": 1, "about": {"weights": "sha256:...", "n_ctx": 512}}
    {"key": "8c1d...", "value": [-3.5, true]}

Needs no JAX.
"""

import hashlib
import io
import json
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from rfjax.errors import RequestError
from rfjax.evals.records.difference import differences

try:
    import fcntl
except ImportError:  # where there are no such locks, two processes are not kept apart
    fcntl = None

logger = logging.getLogger(__name__)

_VERSION = 1
_MAGIC = b'{"rfjax_journal": '


def continuation_key(context: Sequence[int], tokens: Sequence[int]) -> str:
    """A digest of what is scored: 32 hexadecimal digits, the same on every machine.

    Args:
        context: token ids before those that are scored.
        tokens: token ids that are scored.
    """
    digest = hashlib.blake2b(len(context).to_bytes(8, "little"), digest_size=16)
    digest.update(np.asarray(context, "<i8").tobytes())
    digest.update(np.asarray(tokens, "<i8").tobytes())
    return digest.hexdigest()


def count_results(path: str | os.PathLike[str]) -> int:
    """How many results a journal holds that nobody has open.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    return max(0, pathlib.Path(path).read_bytes().count(b"\n") - 1)


class Journal:
    """An append-only file of results by key; `open` gives one, and `with` closes it.

    A line is on its way to the disk when `add` returns: a process that is killed loses nothing
    that was added, a machine that goes down perhaps the last lines. For one thread at a time.
    """

    def __init__(self, path: pathlib.Path, file: io.FileIO, values: dict[str, Any]):
        """For `open`: `file` is locked and stands at its end, where the next line goes."""
        self.path = path
        self._file = file
        self._values = values

    @classmethod
    def open(cls, path: str | os.PathLike[str], about: Mapping[str, Any]) -> "Journal":
        """Start a journal, or take up the one that is there.

        A last line without its end is what an interrupted run was writing: it is cut off.

        Args:
            path: the file; its folder is made if it is missing.
            about: all that results depend on, as JSON: a journal is only taken up where this is
                the same.

        Raises:
            RequestError: the journal is about something else (every entry that differs is named),
                it is in use, one of its lines is damaged, the file is no journal, or it cannot be
                read or written.
        """
        path = pathlib.Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what is written is a line or nothing. Not truncated before it is locked.
            file = open(path, "a+b", buffering=0)  # noqa: SIM115 (the journal closes it)
        except OSError as error:
            raise RequestError(
                f"the journal {path} cannot be opened: {error.strerror}. Name a file that can be "
                "written"
            ) from error
        try:
            _lock(file, path)
            data = _content(file, path)
            whole = data[: data.rfind(b"\n") + 1]
            if not whole and not _is_beginning(data):
                raise _refused(path, "it is no journal of rfjax")
            values = _read(whole, about, path) if whole else {}
            file.truncate(len(whole))
            journal = cls(path, file, values)
            if not whole:
                journal._append({"rfjax_journal": _VERSION, "about": about})
        except BaseException:
            file.close()
            raise
        if values:
            logger.info("%s: taken up with %d results", path, len(values))
        return journal

    def get(self, key: str) -> Any | None:
        """The value of a key as JSON has it (tuples became lists), or None if there is none."""
        return self._values.get(key)

    def add(self, key: str, value: Any) -> None:
        """Keep a value. A key that is there already keeps the value it has.

        Args:
            key: what was computed, such as a `continuation_key`.
            value: anything that `json.dumps` takes, infinities and NaN included, but None, which
                is what `get` says of a key that is not there.

        Raises:
            TypeError, ValueError: the value is None or cannot be written as JSON.
            RequestError: it cannot be written, such as on a full disk; the journal stays whole.
        """
        if key in self._values:
            return
        if value is None:
            raise ValueError(f"the value of {key!r} is None, which means that there is none")
        self._values[key] = json.loads(self._append({"key": key, "value": value}))["value"]

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __len__(self) -> int:
        """Number of results."""
        return len(self._values)

    def close(self) -> None:
        """Close the file and give up its lock; nothing can be added any more."""
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _append(self, record: Mapping[str, Any]) -> bytes:
        """Write a record as one line, whole or not at all."""
        line = json.dumps(record).encode() + b"\n"
        try:
            self._put(line)
        except OSError as error:
            raise RequestError(
                f"the journal {self.path} cannot be written: {error.strerror}. It keeps the "
                f"{len(self)} results before: once there is room, the same command or call goes on "
                "from there"
            ) from error
        return line

    def _put(self, line: bytes) -> None:
        end = self._file.seek(0, os.SEEK_END)
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except BaseException:
            self._file.truncate(end)
            raise


def _content(file: io.FileIO, path: pathlib.Path) -> bytes:
    try:
        file.seek(0)
        return file.read()
    except OSError as error:
        raise RequestError(f"the journal {path} cannot be read: {error.strerror}") from error


def _lock(file: io.FileIO, path: pathlib.Path) -> None:
    """Keep others out for as long as the file is open."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RequestError(
            f"{path}: another evaluation is writing this journal. Wait for it, or name another file"
        ) from None
    except OSError as error:  # some network file systems have no locks
        logger.warning("%s cannot be locked: two evaluations must not share it: %s", path, error)


def _is_beginning(data: bytes) -> bool:
    """Whether a file without a whole line is what an interrupted start may have left."""
    return data.startswith(_MAGIC) or _MAGIC.startswith(data)


def _read(whole: bytes, about: Mapping[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """The values of a file that consists of whole lines."""
    header, *lines = whole.split(b"\n")[:-1]
    _check_header(header, about, path)
    values: dict[str, Any] = {}
    for number, line in enumerate(lines, 2):
        record = _parsed(line)
        if record.keys() != {"key", "value"} or not isinstance(record["key"], str):
            raise _refused(path, f"line {number} is damaged: expected an object of key and value")
        if record["key"] in values:
            raise _refused(path, f"line {number} has the key of an earlier line")
        values[record["key"]] = record["value"]
    return values


def _check_header(line: bytes, about: Mapping[str, Any], path: pathlib.Path) -> None:
    header = _parsed(line)
    if "rfjax_journal" not in header:
        raise _refused(path, "it is no journal of rfjax")
    if header["rfjax_journal"] != _VERSION or not isinstance(header.get("about"), dict):
        raise _refused(path, f"line 1 is no header of version {_VERSION} of the format")
    changed = differences(header["about"], json.loads(json.dumps(about)))
    if changed:
        listed = "\n  ".join(str(difference) for difference in changed)
        raise _refused(path, f"it is about another evaluation, in which differ:\n  {listed}\n")


def _parsed(line: bytes) -> dict[str, Any]:
    """A line's object; an empty one if it is anything else."""
    try:
        record = json.loads(line)
    except ValueError:  # UnicodeDecodeError included
        return {}
    return record if isinstance(record, dict) else {}


def _refused(path: pathlib.Path, why: str) -> RequestError:
    end = "" if why.endswith("\n") else ". "
    return RequestError(
        f"the journal {path} cannot be taken up: {why}{end}Name another file, or remove this one "
        "to start anew"
    )
