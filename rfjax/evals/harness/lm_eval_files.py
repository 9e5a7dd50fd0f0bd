"""Files that YAML tasks of one's own consist of. Importing this imports lm-eval."""

import glob
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lm_eval.tasks
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

_THEIRS = pathlib.Path(lm_eval.tasks.__file__).resolve().parent
_LOADERS = ("json", "csv", "text", "parquet", "arrow", "pandas", "xml", "webdataset")
"""What a `dataset_path` says about `data_files`, whatever folders there are."""


def task_files(name: str, manager: TaskManager) -> dict[str, str]:
    """What a task, tag or group is made of besides lm-eval's own files and the hub's data.

    These are YAML files with those that they include, the modules whose functions they name, and
    local data; for a group and a tag those of all its tasks. Not seen is what modules read.

    Args:
        name: as `--tasks` has it: a name or a pattern of names, a YAML file or a folder of them.
        manager: lm-eval's index.

    Returns:
        By the name of the file, its SHA-256; files of one name in several folders are counted.
    """
    found: set[pathlib.Path] = set()
    for path in _asked(name, manager):
        _collect(path, found, manager)
    digests: dict[str, str] = {}
    counts: dict[str, int] = {}
    for path in sorted(found, key=lambda path: (path.name, path)):
        n = counts[path.name] = counts.get(path.name, 0) + 1
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        digests[path.name if n == 1 else f"{path.name} ({n})"] = digest
    return digests


def _asked(name: str, manager: TaskManager) -> Iterator[pathlib.Path]:
    """As `EvaluatorConfig.process_tasks` understands it."""
    matches = [] if name.endswith(".yaml") else manager.match_tasks([name])
    for one in matches:
        yield from _indexed(one, manager)
    if not matches:
        pattern = os.path.join(name, "*.yaml") if os.path.isdir(name) else name
        yield from map(pathlib.Path, glob.glob(pattern))


def _indexed(name: str, manager: TaskManager) -> Iterator[pathlib.Path]:
    entry = manager.task_index.get(name)
    if entry is None:
        return
    if entry.yaml_path is not None:
        yield entry.yaml_path
        return
    for tagged in sorted(entry.tags):
        yield from _indexed(tagged, manager)


def _collect(path: pathlib.Path, found: set[pathlib.Path], manager: TaskManager) -> None:
    """Add a YAML file and what belongs to it."""
    path = path.expanduser().resolve()
    if path in found or path.is_relative_to(_THEIRS) or not path.is_file():
        return
    found.add(path)
    own = load_yaml(path, resolve_func=False, recursive=False)
    for included in _listed(own.get("include")):
        _collect(path.parent / included, found, manager)
    for text in _texts(own):
        found.update(_module(text, path.parent))
    found.update(_data(own))
    members = own.get("task")
    for member in members if isinstance(members, list) else ():  # of a group
        _add_member(member, found, manager)


def _add_member(member: Any, found: set[pathlib.Path], manager: TaskManager) -> None:
    """Of a group: a name, or a configuration that changes or has others."""
    if isinstance(member, Mapping):
        found.update(_data(member))
        for one in (*_listed(member.get("task")), *_listed(member.get("group"))):
            _add_member(one, found, manager)
    elif isinstance(member, str):
        for path in _indexed(member, manager):
            _collect(path, found, manager)


def _module(text: str, folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The file of a function, which lm-eval's loader spells `folder/module.function`."""
    start = f"{folder}{os.sep}"
    if text.startswith(start):
        module, _, _ = text.removeprefix(start).rpartition(".")
        yield from _files(f"{start}{module.replace('.', os.sep)}.py")


def _data(config: Mapping[str, Any]) -> Iterator[pathlib.Path]:
    """Local files that `datasets` reads."""
    given = config.get("dataset_kwargs")
    options = given if isinstance(given, Mapping) else {}
    folder, patterns = options.get("data_dir"), list(_texts(options.get("data_files")))
    for pattern in patterns:
        yield from _files(os.path.join(folder, pattern) if folder else pattern)
    place = config.get("dataset_path")
    for whole in (None if patterns else folder, None if place in _LOADERS else place):
        if isinstance(whole, str):
            yield from _files(whole)
            yield from _files(os.path.join(glob.escape(whole), "**"))


def _files(pattern: str) -> Iterator[pathlib.Path]:
    names = [pattern] if os.path.isfile(pattern) else glob.glob(pattern, recursive=True)
    yield from (pathlib.Path(name).resolve() for name in names if os.path.isfile(name))


def _listed(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    return value if isinstance(value, list) else (value,)


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)
