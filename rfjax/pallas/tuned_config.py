"""Settings of kernels that were measured to be the fastest, by device.

They ship as `tuned/<device>.json`, and `rfjax tune` writes a file of the same form for the user,
which comes first. A file holds a list of entries; an entry counts for the shapes near its own:

    {"kernel": "quantized_matvec", "type": "Q4_K", "n": 28672, "k": 4096, "m": 1,
     "config": {"rows": 2, "groups": 2, "columns": 16, "warps": 1}, "comment": "..."}

`n` and `k` are the rows and columns of the weights, `m` the rows of activations.
"""

import dataclasses
import functools
import importlib.resources
import json
import logging
import pathlib
from collections.abc import Iterable, Mapping
from importlib.resources.abc import Traversable
from typing import Any, TypeVar

from rfjax.config import from_mapping
from rfjax.errors import ConfigError
from rfjax.pallas.target import Target, current_device_kind
from rfjax.quant.layout import groups_per_column
from rfjax.user_files import slug, user_folder

logger = logging.getLogger(__name__)

C = TypeVar("C")

_FARTHEST = 5.0
"""Factor between the rows of two matrices that still share a setting."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """The best setting of a kernel for shapes near one that was measured.

    Attributes:
        kernel: its name in policies.
        type: of the weights.
        n, k, m: the shape; `k` must be met exactly, `m` up to the next power of two, and of `n`
            the nearest counts.
        config: fields of the kernel's Config.
        comment: what was measured.
    """

    kernel: str
    type: str
    n: int
    k: int
    m: int
    config: dict[str, int]
    comment: str = ""

    def __post_init__(self):
        for name in ("n", "k", "m"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected at least 1")
        for name, value in self.config.items():
            if value < 1 or value & (value - 1):
                raise ConfigError(f"config.{name}: got {value}, expected a power of two")


@dataclasses.dataclass(frozen=True)
class TunedFile:
    """Entries of one device, of whose kind the file's name is the slug."""

    device: str
    entries: tuple[Entry, ...]


def tuned(cls: type[C], kernel: str, type: str, n: int, k: int, m: int, target: Target) -> C | None:
    """`tuned_config` for the device that code is traced for; None where kernels are interpreted."""
    if target == "interpret":
        return None
    return tuned_config(cls, kernel, type, n, k, m, current_device_kind())


@functools.cache
def tuned_config(
    cls: type[C], kernel: str, type: str, n: int, k: int, m: int, device: str
) -> C | None:
    """The measured setting for a shape, or None where nothing near it was measured.

    Args:
        cls: the kernel's Config, whose fields an entry must have.
        kernel, type, n, k, m: as of `Entry`.
        device: its kind.
    """
    for entries in (user_entries(device), shipped_entries(device)):
        entry = nearest(entries, kernel, type, n, k, m)
        if entry is not None:
            fields = {field.name for field in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
            if fields == entry.config.keys():
                return cls(**entry.config)
            logger.warning("a tuned setting of %s is ignored: %s", kernel, entry)
    return None


def nearest(
    entries: Iterable[Entry], kernel: str, type: str, n: int, k: int, m: int
) -> Entry | None:
    """The entry measured on the shape most like one, or None where none is like it."""

    def distance(entry: Entry) -> float:
        return max(entry.n / n, n / entry.n)

    alike = [
        entry
        for entry in entries
        if (entry.kernel, entry.type, entry.k) == (kernel, type, k)
        and _power_of_two(entry.m) == _power_of_two(m)
        and distance(entry) <= _FARTHEST
        and _possible(entry.config, n, k)
    ]
    return min(alike, key=distance, default=None)


def _possible(config: Mapping[str, int], n: int, k: int) -> bool:
    """Whether tiles are within the matrix."""
    fits = config.get("rows", 1) <= n
    return fits and ("groups" not in config or config["groups"] <= groups_per_column(k))


def _power_of_two(m: int) -> int:
    return 1 << (m - 1).bit_length()


def shipped_entries(device: str) -> tuple[Entry, ...]:
    """What rfjax brings for a kind of device."""
    return read_entries(importlib.resources.files("rfjax") / "pallas" / "tuned", device)


def user_entries(device: str) -> tuple[Entry, ...]:
    """What `rfjax tune` found on this machine."""
    file = user_file(device)
    return () if file is None else read_entries(file.parent, device)


def user_file(device: str) -> pathlib.Path | None:
    """Where `rfjax tune` writes what it finds; None without a home directory."""
    home = user_folder()
    return None if home is None else home / "tuned" / f"{slug(device)}.json"


def read_entries(folder: Traversable, device: str) -> tuple[Entry, ...]:
    """The entries of a device; none where there is no file, or a damaged one."""
    file = folder / f"{slug(device)}.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return parse(values, str(file)).entries
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except (OSError, ValueError) as error:
        logger.warning("tuned settings are ignored: %s: %s", file, error)
        return ()


def parse(values: Any, source: str) -> TunedFile:
    """A file's content, checked.

    Raises:
        ConfigError: it is not of that form.
    """
    if not isinstance(values, dict) or not isinstance(values.get("entries"), list):
        raise ConfigError(f"{source}: expected an object with a device and a list of entries")
    entries = []
    for i, entry in enumerate(values["entries"]):
        if not isinstance(entry, dict):
            raise ConfigError(f"{source}: entry {i} is no object")
        entries.append(from_mapping(Entry, entry, source=f"{source}: entry {i}"))
    return TunedFile(str(values.get("device", "")), tuple(entries))


def as_text(file: TunedFile) -> str:
    """A file's text, an entry a line."""
    lines = ",\n".join(f"  {json.dumps(dataclasses.asdict(entry))}" for entry in file.entries)
    return f'{{\n "device": {json.dumps(file.device)},\n "entries": [\n{lines}\n ]\n}}\n'
