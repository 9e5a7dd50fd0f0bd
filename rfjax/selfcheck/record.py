"""Results of self-checks, remembered between runs for one device and one set of versions."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import importlib.resources
import json
import logging
import os
import pathlib
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax

from rfjax.config import from_mapping
from rfjax.selfcheck.case import CheckCase
from rfjax.selfcheck.checker import CheckResult
from rfjax.user_files import slug, user_folder, write_atomically

logger = logging.getLogger(__name__)

_INTERRUPTED = (
    "its last self-check did not come to an end: the process was killed, or the device hung. "
    "`rfjax selfcheck` tries again"
)


@dataclasses.dataclass(frozen=True)
class Identity:
    """What results hold for.

    Attributes:
        device: its kind.
        runtime: version of the platform: CUDA's or ROCm's.
        rfjax, jax, jaxlib: versions.
        kernels: digest of the kernels' sources and tuned settings.
    """

    device: str
    runtime: str
    rfjax: str
    jax: str
    jaxlib: str
    kernels: str


def current_identity() -> Identity:
    """Of the default device and what is installed."""
    device = jax.devices()[0]
    return Identity(
        device=device.device_kind,
        runtime=device.client.platform_version,
        rfjax=importlib.metadata.version("rfjax"),
        jax=jax.__version__,
        jaxlib=importlib.metadata.version("jaxlib"),
        kernels=_digest(),
    )


def _digest() -> str:
    digest = hashlib.sha256()
    folders = [importlib.resources.files("rfjax") / "pallas"]
    folders.append(folders[0] / "tuned")
    for folder in folders:
        if folder.is_dir():
            files = {file.name: file for file in folder.iterdir() if file.is_file()}
            for name in sorted(files):
                digest.update(name.encode())
                digest.update(files[name].read_bytes())
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
    def under_way(self, cases: Sequence[CheckCase]) -> Iterator[None]:
        """Leave a note of cases while they are tried, for `unfinished` to find."""
        note = None
        if self.path is not None:
            name = f"{self.path.stem}.{slug(platform.node())}.{os.getpid()}.running"
            note = self.path.parent / name
            listed = [
                {"kernel": case.kernel, "label": case.label, "limit": case.limit} for case in cases
            ]
            self._write(note, json.dumps(listed))
        try:
            yield
        finally:
            if note is not None:
                with contextlib.suppress(OSError):  # it was never written
                    note.unlink()

    def unfinished(self) -> tuple[CheckResult, ...]:
        """Results of cases whose process ended while they were tried: they count as failed."""
        found = []
        if self.path is None:
            return ()
        pattern = f"{self.path.stem}.{slug(platform.node())}.*.running"
        for note in self.path.parent.glob(pattern):
            if _alive(int(note.name.split(".")[-2])):
                continue
            try:
                listed = json.loads(note.read_text(encoding="utf-8"))
                results = [
                    CheckResult(**values, verdict="failed", reason=_INTERRUPTED)
                    for values in listed
                ]
                note.unlink(missing_ok=True)
            except (OSError, ValueError, TypeError) as error:
                logger.warning("%s is ignored: %s", note, error)
                continue
            found += results
        return tuple(found)

    def _write(self, path: pathlib.Path, text: str) -> None:
        try:
            write_atomically(path, text)
        except OSError as error:
            logger.warning("results of the self-check are not kept: %s", error)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
