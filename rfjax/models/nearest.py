"""What a file of an unknown architecture comes nearest to, and which of its tensors do not fit.

Every known architecture is tried on the file as if it were the file's own. Only the header is
read, and the candidates are told apart by the first layers.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterable
from types import MappingProxyType

from rfjax.errors import ModelFormatError, RfjaxError
from rfjax.io.gguf import GGUFFile
from rfjax.models.arch import ArchSpec
from rfjax.models.config import ModelConfig
from rfjax.models.params import param_spec
from rfjax.models.tensors import find_tensors

_TRIED_LAYERS = 8
"""Enough for layers that come first and for repeated patterns of layers."""

_MOST_LAYERS = 512
_MOST_TENSORS = 50_000
"""Files of more are not looked into: headers may claim anything, and every candidate costs."""

_SHOWN = 12

_LAYER = re.compile(r"^blk\.\d+\.")

Configure = Callable[[GGUFFile, ArchSpec], ModelConfig]


@dataclasses.dataclass(frozen=True)
class Nearest:
    """The known architecture that a file fits best.

    Attributes:
        name: the architecture's.
        misfits: what does not fit, a line for all layers alike.
        n_misfits: tensors that do not fit or are missing.
        n_tensors: of the file.
        refusal: why no known architecture can read the metadata; then nothing is said of tensors,
            and the name is the likest.
    """

    name: str
    misfits: tuple[str, ...] = ()
    n_misfits: int = 0
    n_tensors: int = 0
    refusal: str | None = None

    def __str__(self) -> str:
        if self.refusal is not None:
            return f"Its metadata make sense to none of them; read as {self.name!r}: {self.refusal}"
        if not self.misfits:
            return (
                f"All of its {self.n_tensors} tensors would fit {self.name!r}, which need not mean "
                "that it computes the same"
            )
        shown = "\n  ".join(self.misfits[:_SHOWN])
        rest = len(self.misfits) - _SHOWN
        more = f"\n  and {rest} more such" if rest > 0 else ""
        return (
            f"Of all architectures {self.name!r} fits its {self.n_tensors} tensors best, but "
            f"{self.n_misfits} do not fit it or are missing:\n  {shown}{more}"
        )


def find_nearest(
    gguf: GGUFFile, specs: Iterable[ArchSpec], configure_as: Configure
) -> Nearest | None:
    """The architecture with the fewest tensors that do not fit, of equal ones the likest by name.

    Args:
        gguf: the file.
        specs: the candidates.
        configure_as: reads the file's metadata as those of a candidate.

    Returns:
        None where there are no tensors to go by, or the header is not worth the time.
    """
    n_layers = _layer_count(gguf)
    if not n_layers:
        return None
    few = _first_layers(gguf, min(n_layers, _TRIED_LAYERS))
    ranks: list[tuple[float, float, ArchSpec]] = []
    configs: dict[str, ModelConfig] = {}
    refusals: dict[str, str] = {}
    for spec in specs:
        misfits = math.inf
        try:
            config = configs[spec.name] = configure_as(gguf, spec)
            misfits = len(_problems(few, spec, config, _TRIED_LAYERS))
        except RfjaxError as error:
            refusals[spec.name] = str(error).removeprefix(f"{gguf.path}: ")
        likeness = difflib.SequenceMatcher(None, gguf.architecture, spec.name).ratio()
        ranks.append((misfits, -likeness, spec))
    *_, spec = min(ranks, key=lambda rank: rank[:2])
    if spec.name in refusals:
        return Nearest(spec.name, refusal=refusals[spec.name])
    problems = _problems(gguf, spec, configs[spec.name], n_layers)
    return Nearest(spec.name, _folded(problems), len(problems), len(gguf.tensors))


def _layer_count(gguf: GGUFFile) -> int:
    """Layers of a file that is worth looking into; else 0."""
    if not 0 < len(gguf.tensors) <= _MOST_TENSORS:
        return 0
    try:
        count = gguf.get_int(f"{gguf.architecture}.block_count")
    except ModelFormatError:
        return 0
    return count if 0 < count <= _MOST_LAYERS else 0


def _first_layers(gguf: GGUFFile, count: int) -> GGUFFile:
    """The file without the tensors of further layers."""
    kept = {name: info for name, info in gguf.tensors.items() if _layer_of(name) < count}
    return dataclasses.replace(gguf, tensors=MappingProxyType(kept))


def _layer_of(name: str) -> int:
    """A tensor's layer; -1 outside of layers."""
    first, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    return int(number) if first == "blk" and number.isdecimal() and len(number) < 10 else -1


def _problems(gguf: GGUFFile, spec: ArchSpec, config: ModelConfig, most: int) -> tuple[str, ...]:
    """What does not fit in at most so many layers."""
    config = dataclasses.replace(config, layers=config.layers[:most])
    return find_tensors(gguf, param_spec(config), spec, len(config.layers)).problems


def _folded(problems: tuple[str, ...]) -> tuple[str, ...]:
    """The lines, those that differ in the layer alone as one."""
    groups: dict[str, list[str]] = {}
    for line in problems:
        groups.setdefault(_LAYER.sub("blk.", line), []).append(line)
    return tuple(
        lines[0] if len(lines) == 1 else f"{lines[0]} (and so in {len(lines) - 1} more layers)"
        for lines in groups.values()
    )
