"""Which of several files to use: what each costs and how far it is from the best of them. No JAX.

A file is on the front if no other is at most as large and at most as far from the base, and one of
the two less: every other file has one that is smaller and nearer to the base.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from rfjax.evals.kl_statistics import KLSummary

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
        on_front: no other is smaller and nearer to the base.
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


def short_names(paths: Sequence[Path]) -> list[str]:
    """File names without extension and without the beginning that all have in common.

    They are cut behind `-` and `.` only, so that `Q4_K_M` stays whole; one that has nothing else
    stays as it is. Where two would be equal, all are given as paths.
    """
    stems = [path.stem for path in paths]
    parts = [_BETWEEN.split(stem) for stem in stems]
    shared = 0
    for column in zip(*parts, strict=False):
        if len(parts) == 1 or len(set(column)) > 1:
            break
        shared += 1
    length = sum(len(part) + 1 for part in parts[0][:shared])
    names = [stem[length:] or stem for stem in stems]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]
