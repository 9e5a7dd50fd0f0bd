"""Which of a model's matrices are multiplied together: the launches that its layers make."""

import dataclasses
from collections.abc import Iterator, Mapping

from rfjax.quant.layout import LAYOUTS
from rfjax.quant.types import NATIVE_DTYPES, GGMLType

Matrices = Mapping[str, tuple[GGMLType, tuple[int, ...]]]
"""Type and shape of every matrix and stack of a model by its GGUF name, plain ones included."""

_GATES = (("ffn_gate", "ffn_up"), ("ffn_gate_shexp", "ffn_up_shexp"))
"""Stems of a gate and of what it multiplies."""

_TOGETHER = (
    ("attn_q", "attn_k", "attn_v", "attn_q_a", "attn_kv_a_mqa"),
    ("attn_q_b",),
    ("attn_output",),
    *_GATES,
    ("ffn_down",),
    ("ffn_down_shexp",),
    ("ffn_gate_inp",),
)
"""Stems of the matrices of a layer, by the input they share."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """Products of one input, all with packed weights or all with plain ones.

    Attributes:
        types: of the weights.
        sizes: their rows.
        k: their columns.
        gated: whether they are gate and up, of which the activation makes one result.
    """

    types: tuple[GGMLType, ...]
    sizes: tuple[int, ...]
    k: int
    gated: bool = False


def launches(matrices: Matrices, *, apart: bool = False) -> tuple[Launch, ...]:
    """The different launches of a model's layers and of its output, in order.

    Args:
        matrices: what the model has; stacks of experts and types without a kernel are left out.
        apart: every matrix by itself, as over a mesh.
    """
    return tuple(dict.fromkeys(_launches(matrices, apart)))


def layer_numbers(matrices: Matrices) -> list[int]:
    """Of the layers that have any of the matrices."""
    return sorted({int(name.split(".")[1]) for name in matrices if name.startswith("blk.")})


def _launches(matrices: Matrices, apart: bool) -> Iterator[Launch]:
    layers = layer_numbers(matrices)
    groups = [[f"blk.{i}.{stem}.weight" for stem in stems] for i in layers for stems in _TOGETHER]
    output = "output.weight" if "output.weight" in matrices else "token_embd.weight"
    for names in [*groups, [output]]:
        present = [name for name in names if name in matrices]
        for kinds in (LAYOUTS, NATIVE_DTYPES):
            taken = [name for name in present if matrices[name][0] in kinds]
            if apart:
                for name in taken:
                    yield _launch(matrices, [name])
            elif taken:
                yield _launch(matrices, taken)


def _launch(matrices: Matrices, names: list[str]) -> Launch:
    found = [matrices[name] for name in names]
    return Launch(
        types=tuple(type for type, _ in found),
        sizes=tuple(shape[0] for _, shape in found),
        k=found[0][1][1],
        gated=tuple(name.split(".")[-2] for name in names) in _GATES,
    )
