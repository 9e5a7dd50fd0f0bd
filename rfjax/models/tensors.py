"""Which of a file's tensors, or which rows of them, make up every leaf of a model.

Files name, fuse and split tensors in several ways; the tree of weights has one. Rows of a tensor
are contiguous bytes whatever its type, so that a part of a fused one is a tensor of its own.
"""

import dataclasses
from collections.abc import Iterator, Mapping

from rfjax.io.gguf import GGUFFile, TensorInfo
from rfjax.models.arch import ArchSpec
from rfjax.models.params import Params, ParamSpec, named_leaves

_QKV = ("attn_q", "attn_k", "attn_v")
_GATE_UP_EXPERTS = ("ffn_gate_exps", "ffn_up_exps")
_EXPERT_STACKS = (*_GATE_UP_EXPERTS, "ffn_down_exps")

_IGNORED_STEM = "attn_rot_embd"
"""A computed table that old converters wrote into every layer, and no inference engine reads."""


@dataclasses.dataclass(frozen=True)
class Found:
    """A file's tensors beside a model's.

    Attributes:
        sources: for every leaf the tensors that it is made of: one, or one an expert, to be
            stacked. Each is a tensor of the file, or some rows of one under its name.
        problems: what is missing, unknown or misshapen, a line each.
    """

    sources: Mapping[str, tuple[TensorInfo, ...]]
    problems: tuple[str, ...]


def find_tensors(gguf: GGUFFile, spec: Params, arch: ArchSpec, n_layers: int) -> Found:
    """Match the file's tensors with the model's.

    Args:
        gguf: the file.
        spec: of `rfjax.models.params.param_spec`.
        arch: which says how files name and fuse tensors.
        n_layers: of the decoder; those that the metadata counts behind them are for predicting
            several tokens at a time, and are left alone.
    """
    leaves = named_leaves(spec)
    lookup = _Lookup(gguf.tensors, leaves, dict(arch.renames), arch.fused_gate_up)
    problems: list[str] = []
    sources: dict[str, tuple[TensorInfo, ...]] = {}
    for name, leaf in leaves.items():
        found, shape = lookup.find(name, leaf)
        if not found:
            problems.append(f"{lookup.stored_name(name)} is missing (shape {leaf.shape})")
        for info in found:
            if _without_ones(info.shape) != _without_ones(shape):
                problems.append(f"{info.name} has shape {info.shape}, expected {shape}")
        sources[name] = found
    wanted = {info.name for found in sources.values() for info in found}
    stored = gguf.get_int(f"{gguf.architecture}.block_count", n_layers)
    for name in gguf.tensors:
        if name not in wanted and not _is_ignored(name, range(n_layers, stored)):
            problems.append(f"{name} is not a tensor of this architecture")
    return Found(sources, tuple(dict.fromkeys(problems)))


def _is_ignored(name: str, ahead: range) -> bool:
    """Whether a tensor may be there for others: of a layer behind the decoder's, or unread."""
    first, _, rest = name.partition(".")
    number, _, stem = rest.partition(".")
    if first != "blk" or not number.isdecimal():
        return False
    return int(number) in ahead or stem.rpartition(".")[0] == _IGNORED_STEM


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape less its leading ones, which files may leave out."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


@dataclasses.dataclass(frozen=True)
class _Lookup:
    """Every way to find a leaf, the plainest first."""

    tensors: Mapping[str, TensorInfo]
    leaves: Mapping[str, ParamSpec]
    renames: Mapping[str, str]
    fused_gate_up: bool

    def find(self, name: str, leaf: ParamSpec) -> tuple[tuple[TensorInfo, ...], tuple[int, ...]]:
        """The tensors of a leaf (none if missing), and the shape each must have."""
        owner, _, kind = name.rpartition(".")
        prefix, _, stem = owner.rpartition(".")
        at = f"{prefix}." if prefix else ""
        fused = self.fused(at, stem, kind)
        if fused is not None:
            return (fused,), leaf.shape
        for known in (stem, self.renames.get(stem)):
            if known is not None and (info := self.tensors.get(f"{at}{known}.{kind}")):
                return (info,), leaf.shape
        if stem in _EXPERT_STACKS:
            experts = tuple(self.experts(at, stem, kind, leaf.shape[0]))
            if experts:
                return experts, leaf.shape[1:]
        return (), leaf.shape

    def stored_name(self, name: str) -> str:
        """What a file calls a leaf."""
        owner, _, kind = name.rpartition(".")
        prefix, _, stem = owner.rpartition(".")
        return ".".join(filter(None, (prefix, self.renames.get(stem, stem), kind)))

    def fused(self, at: str, stem: str, kind: str) -> TensorInfo | None:
        """Rows of a tensor that holds those of several leaves, one behind the other."""
        if stem in _QKV:
            whole, stems = f"{at}attn_qkv.{kind}", _QKV
        elif self.fused_gate_up and stem in ("ffn_gate", "ffn_up"):
            if f"{at}ffn_gate.{kind}" in self.tensors:
                return None
            whole, stems = f"{at}ffn_up.{kind}", ("ffn_gate", "ffn_up")
        else:
            return None
        siblings = [f"{at}{s}.{kind}" for s in stems]
        if whole not in self.tensors or any(s not in self.leaves for s in siblings):
            return None
        counts = [self.leaves[s].shape[0] for s in siblings]
        place = stems.index(stem)
        return _rows(self.tensors[whole], sum(counts), sum(counts[:place]), counts[place])

    def experts(self, at: str, stem: str, kind: str, count: int) -> Iterator[TensorInfo]:
        """The parts of a stack, if all are there: halves of experts, or one tensor an expert."""
        whole = self.tensors.get(f"{at}ffn_gate_up_exps.{kind}")
        if whole is not None and stem in _GATE_UP_EXPERTS and whole.shape[0] == count:
            ffn = self.leaves[f"{at}{stem}.{kind}"].shape[1]
            offset = ffn * _GATE_UP_EXPERTS.index(stem)
            for expert in range(count):
                one = _entry(whole, expert)
                yield _rows(one, 2 * ffn, offset, ffn)
            return
        # Mixtral files of before April 2024.
        names = [f"{at}{stem.removesuffix('_exps')}.{e}.{kind}" for e in range(count)]
        if all(name in self.tensors for name in names):
            yield from (self.tensors[name] for name in names)


def _entry(info: TensorInfo, index: int) -> TensorInfo:
    """A tensor's part at one index of its first dimension."""
    nbytes = info.nbytes // info.shape[0]
    offset = info.offset + index * nbytes
    return dataclasses.replace(info, shape=info.shape[1:], offset=offset, nbytes=nbytes)


def _rows(info: TensorInfo, expected: int, start: int, count: int) -> TensorInfo:
    """Some rows of a tensor; the tensor itself, to be found misshapen, where it has others."""
    if not info.shape or info.shape[0] != expected:
        return info
    row = info.nbytes // expected
    return dataclasses.replace(
        info, shape=(count, *info.shape[1:]), offset=info.offset + start * row, nbytes=count * row
    )
