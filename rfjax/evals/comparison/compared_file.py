"""Which of several files to use: what each costs and how far it is from the best of them. No JAX.

A file is on the front if no other is at most as large and at most as far from the base, and one of
the two less: every other file has one that is at most as large and at most as far.
"""

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rfjax.evals.kl.kl_statistics import KLSummary

_BETWEEN = re.compile("[-.]")


@dataclasses.dataclass(frozen=True)
class Rate:
    """Tokens a second: mean and standard deviation of repetitions."""

    mean: float
    deviation: float


@dataclasses.dataclass(frozen=True)
class ComparedFile:
    """A file and its figures.

    Attributes:
        path: of the file, or the first of a split one.
        name: what tells it from the others.
        nbytes: of the file, all parts.
        bits_per_weight: mean over all tensors.
        summary: of the model beside the base.
        prompt_rate: of computing a prompt; None if not measured.
        generation_rate: of generating one sequence; None if not measured.
        is_base: the others are compared with it.
        on_front: no other is at most as large and at most as far from the base.
    """

    path: Path
    name: str
    nbytes: int
    bits_per_weight: float
    summary: KLSummary
    prompt_rate: Rate | None = None
    generation_rate: Rate | None = None
    is_base: bool = False
    on_front: bool = False


def most_exact(
    paths: Sequence[Path], bits_per_weight: Sequence[float], nbytes: Sequence[int]
) -> Path:
    """The file with the most bits a weight, of equals the largest, then the first."""
    order = sorted(range(len(paths)), key=lambda i: (-bits_per_weight[i], -nbytes[i], i))
    return paths[order[0]]


def with_front(files: Sequence[ComparedFile]) -> list[ComparedFile]:
    """The same with `on_front` told, smallest first, the nearer to the base before the farther."""
    costs = {file.path: (file.nbytes, file.summary.kld.value) for file in files}

    def beaten(path: Path) -> bool:
        size, distance = costs[path]
        return any(
            s <= size and d <= distance and (s, d) != (size, distance) for s, d in costs.values()
        )

    told = [dataclasses.replace(file, on_front=not beaten(file.path)) for file in files]
    return sorted(told, key=lambda file: costs[file.path])


def short_names(paths: Sequence[Path], base: Path | None = None) -> list[str]:
    """File names without extension, and without the beginning and the ending that all share.

    They are cut at `-` and `.` only, so that `Q4_K_M` stays whole; one that has nothing else stays
    as it is. The base, which may have another maker, has no say in what is shared. Where two would
    be equal, all are given as paths.
    """
    parts = {path: _BETWEEN.split(path.stem) for path in paths}
    deciding = [parts[path] for path in parts if path != base] or list(parts.values())
    start = _shared(deciding)
    end = _shared([each[start:][::-1] for each in deciding])
    names = [_inner(path.stem, parts[path], deciding[0], start, end) for path in paths]
    if len(set(names)) == len(names):
        return names
    folders = _shared([path.parts for path in paths])
    return [str(Path(*path.parts[folders:])) for path in paths]


def _shared(sequences: Sequence[Sequence[str]]) -> int:
    """How many of their first entries all have in common; none of a single one."""
    if len(sequences) == 1:
        return 0
    columns = zip(*sequences, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


def _inner(stem: str, parts: list[str], model: list[str], start: int, end: int) -> str:
    """A name without the first and last parts, as far as it has those of `model`."""
    first, last = model[:start], model[len(model) - end :]
    if first and parts[:start] == first:
        stem, parts = stem[sum(len(part) + 1 for part in first) :] or stem, parts[start:]
    if last and len(parts) > end and parts[len(parts) - end :] == last:
        stem = stem[: -sum(len(part) + 1 for part in last)] or stem
    return stem


def shortened(text: str, most: int) -> str:
    """A text of at most so many characters, an ellipsis in place of its middle."""
    if len(text) <= most:
        return text
    left = (most - 1) // 2
    return f"{text[:left]}…{text[len(text) - (most - 1 - left) :]}"


def labels(names: Sequence[str], most: int) -> list[str]:
    """Names for a plot: `shortened`, and numbered where that leaves equal ones."""
    short = [shortened(name, most) for name in names]
    counts = Counter(short)
    return [
        text if counts[text] == 1 else f"{shortened(name, most - 4)} #{number}"
        for number, (name, text) in enumerate(zip(names, short, strict=True), 1)
    ]


def size_unit(files: Sequence[ComparedFile]) -> tuple[int, str]:
    """Bytes of the largest unit of which every file has one, and its letters."""
    smallest = min(file.nbytes for file in files)
    for power, letters in ((30, "GiB"), (20, "MiB")):
        if smallest >= 1 << power:
            return 1 << power, letters
    return 1 << 10, "KiB"
