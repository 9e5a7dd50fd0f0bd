"""Which cases to try: those of a model, or all."""

from collections.abc import Iterable, Iterator

from rfjax.models.config import ModelConfig
from rfjax.models.launches import Launch, Matrices, launches, layer_numbers
from rfjax.quant.layout import LAYOUTS
from rfjax.quant.types import NATIVE_DTYPES, GGMLType
from rfjax.selfcheck.attention import TYPICAL, attention_cases, heads_of
from rfjax.selfcheck.case import CheckCase
from rfjax.selfcheck.matvec import (
    ExpertsKind,
    experts_case,
    launch_case,
    launch_cases,
    matvec_cases,
)
from rfjax.selfcheck.paged_attention import (
    UNUSUAL,
    PagedHeads,
    paged_attention_cases,
    paged_heads_of,
)

_TOGETHER = Launch((GGMLType.Q4_K, GGMLType.Q4_K, GGMLType.Q6_K), (96, 64, 64), 4096)
"""What llama-quantize makes of queries, keys and values."""

_EXPERTS = ((GGMLType.Q4_K,) * 3, (GGMLType.Q4_K, GGMLType.Q4_K, GGMLType.Q6_K))
"""What it makes of experts: gate, up and down."""

_EXPERT_SIZES = (2048, 768)


def all_cases(dtype: str, types: Iterable[GGMLType] | None = None) -> tuple[CheckCase, ...]:
    """Every kernel on what models usually have.

    Args:
        dtype: of the activations.
        types: of weights; None takes all that have a kernel.
    """
    types = tuple((*LAYOUTS, *NATIVE_DTYPES) if types is None else types)
    together = [launch_case(_TOGETHER, 1, dtype)] if set(_TOGETHER.types) <= set(types) else []
    experts = [
        experts_case(stacks, dtype, _EXPERT_SIZES)
        for stacks in _EXPERTS
        if set(stacks) <= set(types)
    ]
    paged = (*(PagedHeads(heads) for heads in TYPICAL), *UNUSUAL)
    return (
        *matvec_cases(types, dtype),
        *together,
        *experts,
        *attention_cases(TYPICAL, dtype),
        *paged_attention_cases(paged, dtype),
    )


def model_cases(
    matrices: Matrices, config: ModelConfig, *, apart: bool = False
) -> tuple[CheckCase, ...]:
    """What the kernels of one model meet: its launches, its experts and its heads.

    Args:
        matrices: every matrix and stack of the model; over a mesh a device's share of each.
        config: the model.
        apart: whether it is spread over a mesh, where no two matrices share a launch.
    """
    experts = () if apart else dict.fromkeys(_experts(matrices, config))
    heads = dict.fromkeys(heads_of(layer) for layer in config.layers)
    in_pages = (layer for layer in config.layers if layer.latent is None)
    paged = dict.fromkeys(paged_heads_of(layer) for layer in in_pages)
    return (
        *launch_cases(launches(matrices, apart=apart), config.dtype),
        *(experts_case(stacks, config.dtype, sizes, kind) for stacks, sizes, kind in experts),
        *attention_cases(heads, config.dtype),
        *paged_attention_cases(paged, config.dtype),
    )


def _experts(
    matrices: Matrices, config: ModelConfig
) -> Iterator[tuple[tuple[GGMLType, GGMLType, GGMLType], tuple[int, int], ExpertsKind]]:
    """Types of gate, up and down where a kernel takes them (all packed, or all plain), sizes of the
    input and of the hidden layer, and what the experts are beside."""
    for i in layer_numbers(matrices):
        names = [f"blk.{i}.ffn_{stem}_exps.weight" for stem in ("gate", "up", "down")]
        if not all(name in matrices for name in names):
            continue
        (gate, (_, hidden, width)), (up, _), (down, _) = (matrices[name] for name in names)
        stacks = (gate, up, down)
        if all(type in LAYOUTS for type in stacks) or all(type in NATIVE_DTYPES for type in stacks):
            layer = config.layers[i]
            kind = ExpertsKind(layer.activation, "ffn_gate_exps" in layer.biases)
            yield stacks, (width, hidden), kind
