"""Results of self-checks, remembered between runs for one device and one set of versions."""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import importlib.resources
import json
import logging
import os
import pathlib
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import jax

from rfjax.config import from_mapping
from rfjax.pallas.target import default_device
from rfjax.pallas.tuned_config import user_file
from rfjax.selfcheck.case import CheckCase
from rfjax.selfcheck.checker import CheckResult
from rfjax.user_files import slug, user_folder, write_atomically

logger = logging.getLogger(__name__)

_DIED = (
    "the process ended while it was tried: the compiler or the device took it down, the device "
    "hung, or somebody killed it. `rfjax selfcheck` tries again"
)


@dataclasses.dataclass(frozen=True)
class Identity:
    """What results hold for.

    Attributes:
        device: its kind.
        runtime: version of the platform: CUDA's or ROCm's.
        rfjax, jax, jaxlib: versions.
        kernels: digest of the kernels' sources and of tuned settings, the user's included.
    """

    device: str
    runtime: str
    rfjax: str
    jax: str
    jaxlib: str
    kernels: str


def current_identity() -> Identity:
    """Of the default device and what is installed."""
    device = default_device()
    return Identity(
        device=device.device_kind,
        runtime=device.client.platform_version,
        rfjax=importlib.metadata.version("rfjax"),
        jax=jax.__version__,
        jaxlib=importlib.metadata.version("jaxlib"),
        kernels=_digest(device.device_kind),
    )


def _digest(device_kind: str) -> str:
    digest = hashlib.sha256()
    folders = [importlib.resources.files("rfjax") / "pallas"]
    folders.append(folders[0] / "tuned")
    for folder in folders:
        if folder.is_dir():
            files = {file.name: file for file in folder.iterdir() if file.is_file()}
            for name in sorted(files):
                digest.update(name.encode())
                digest.update(files[name].read_bytes())
    own = user_file(device_kind)
    if own is not None:
        with contextlib.suppress(OSError):  # most have none
            digest.update(own.read_bytes())
    return digest.hexdigest()[:16]


class Record:
    """The file of one identity. Nothing here raises: without a file, checks are made again.

    Args:
        folder: where the files are; None takes the user's, or none where there is no home.
        identity: what results must hold for; None takes the current one.
    """

    def __init__(self, folder: pathlib.Path | None = None, identity: Identity | None = None):
        if folder is None:
            home = user_folder()
            folder = None if home is None else home / "selfcheck"
        self.identity = identity or current_identity()
        text = json.dumps(dataclasses.asdict(self.identity), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        name = f"{slug(self.identity.device)}-{digest}"
        self.path = None if folder is None else folder / f"{name}.json"

    def read(self) -> dict[str, CheckResult]:
        """Results by the keys of their cases; none where the file is missing or damaged."""
        if self.path is None:
            return {}
        try:
            text = self.path.read_text(encoding="utf-8")
            values = json.loads(text)
            source = str(self.path)
            if from_mapping(Identity, values["identity"], source=source) != self.identity:
                return {}
            results = [from_mapping(CheckResult, v, source=source) for v in values["results"]]
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            logger.warning("%s is ignored, and checks are made again: %s", self.path, error)
            return {}
        return {result.key: result for result in results}

    def add(self, results: Iterable[CheckResult]) -> None:
        """Remember results beside those that are there; newer ones replace older ones."""
        if self.path is None:
            return
        merged: Mapping[str, CheckResult] = self.read() | {r.key: r for r in results}
        values = {
            "identity": dataclasses.asdict(self.identity),
            "results": [dataclasses.asdict(result) for result in merged.values()],
        }
        self._write(self.path, json.dumps(values, indent=1))

    @contextlib.contextmanager
    def under_way(self, case: CheckCase) -> Iterator[None]:
        """Leave a note of a case while it is tried, for `unfinished` to find.

        The note is locked for as long as its process lives, and on the disk before anything runs:
        a device that hangs may take the machine with it.
        """
        with contextlib.ExitStack() as stack:
            if self.path is not None:
                try:
                    self._leave_note(case, stack)
                except OSError as error:
                    logger.warning("a self-check that dies will not be noticed: %s", error)
            yield

    def _leave_note(self, case: CheckCase, stack: contextlib.ExitStack) -> None:
        """A note that goes when the stack does."""
        assert self.path is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        prefix = f"{self.path.stem}.{os.getpid()}."
        handle, name = tempfile.mkstemp(".running", prefix, self.path.parent)
        file = stack.enter_context(os.fdopen(handle, "w", encoding="utf-8"))
        stack.callback(pathlib.Path(name).unlink, missing_ok=True)
        fcntl.flock(file, fcntl.LOCK_EX)
        json.dump({"kernel": case.kernel, "label": case.label, "limit": case.limit}, file)
        file.flush()
        os.fsync(file.fileno())

    def unfinished(self) -> tuple[tuple[CheckResult, ...], ...]:
        """Cases whose process ended while they were tried, as results; those of a process together.

        A single one is what the process died of. Several were being compiled at the same time, and
        one of them is. They are told once: their notes are gone.
        """
        if self.path is None:
            return ()
        found: dict[str, dict[str, CheckResult]] = defaultdict(dict)
        for note in sorted(self.path.parent.glob(f"{self.path.stem}.*.running")):
            try:
                result = _of_the_dead(note)
            except (OSError, ValueError, TypeError) as error:
                logger.warning("%s is ignored: %s", note, error)
                continue
            if result is not None:
                found[note.name.split(".")[1]][result.key] = result
        return tuple(tuple(results.values()) for results in found.values())

    def _write(self, path: pathlib.Path, text: str) -> None:
        try:
            write_atomically(path, text)
        except OSError as error:
            logger.warning("results of the self-check are not kept: %s", error)


def _of_the_dead(note: pathlib.Path) -> CheckResult | None:
    """What a note says, which is then removed; None while its process lives.

    Raises:
        OSError, ValueError, TypeError: it cannot be read, or says nothing.
    """
    with note.open("r+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        text = file.read()
        if not text:  # its process is about to lock it
            return None
        note.unlink(missing_ok=True)
        return CheckResult(**json.loads(text), verdict="died", reason=_DIED)
