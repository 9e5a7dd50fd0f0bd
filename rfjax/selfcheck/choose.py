"""Which cases to try: those of a model, or all."""

from collections.abc import Iterable, Iterator, Mapping

import jax

from rfjax.models.config import ModelConfig
from rfjax.models.params import Params
from rfjax.quant.layout import LAYOUTS
from rfjax.quant.qtensor import QTensor
from rfjax.quant.types import NATIVE_DTYPES, GGMLType
from rfjax.selfcheck.attention import TYPICAL, attention_cases, heads_of
from rfjax.selfcheck.case import CheckCase
from rfjax.selfcheck.matvec import experts_case, matvec_cases, together_case

_TOGETHER = (GGMLType.Q4_K, GGMLType.Q4_K, GGMLType.Q6_K)
"""What llama-quantize makes of queries, keys and values."""

_EXPERTS = ((GGMLType.Q4_K,) * 3, (GGMLType.Q4_K, GGMLType.Q4_K, GGMLType.Q6_K))
"""What it makes of experts: gate, up and down."""

_LAUNCHES = (("attn_q", "attn_k", "attn_v"), ("ffn_gate", "ffn_up"))
"""Weights that share a launch."""


def all_cases(dtype: str, types: Iterable[GGMLType] | None = None) -> tuple[CheckCase, ...]:
    """Every kernel on what models usually have.

    Args:
        dtype: of the activations.
        types: of weights; None takes all that have a kernel.
    """
    types = tuple((*LAYOUTS, *NATIVE_DTYPES) if types is None else types)
    together = [together_case(_TOGETHER, dtype)] if set(_TOGETHER) <= set(types) else []
    experts = [experts_case(stacks, dtype) for stacks in _EXPERTS if set(stacks) <= set(types)]
    return (*matvec_cases(types, dtype), *together, *experts, *attention_cases(TYPICAL, dtype))


def model_cases(types: Mapping[str, GGMLType], config: ModelConfig) -> tuple[CheckCase, ...]:
    """What the kernels of one model meet: its types, the mixtures of them, and its heads.

    Args:
        types: type of every matrix by its GGUF name, plain ones included.
        config: the model.
    """
    matrices = {name: type for name, type in types.items() if "_exps." not in name}
    mixtures = dict.fromkeys(_mixtures(matrices, len(config.layers)))
    experts = dict.fromkeys(_experts(types, len(config.layers)))
    return (
        *matvec_cases(dict.fromkeys(matrices.values()), config.dtype),
        *(together_case(mixed, config.dtype) for mixed in mixtures),
        *(experts_case(stacks, config.dtype) for stacks in experts),
        *attention_cases((heads_of(layer) for layer in config.layers), config.dtype),
    )


def matrix_types(params: Params) -> dict[str, GGMLType]:
    """Type of every matrix and stack by its GGUF name, plain ones included."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        params, is_leaf=lambda leaf: isinstance(leaf, QTensor)
    )
    plain = {dtype: type for type, dtype in NATIVE_DTYPES.items()}
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): (
            leaf.type if isinstance(leaf, QTensor) else plain[leaf.dtype.name]
        )
        for path, leaf in leaves
        if leaf.ndim > 1
    }


def _mixtures(types: Mapping[str, GGMLType], n_layers: int) -> Iterator[tuple[GGMLType, ...]]:
    """Types of weights that share a launch, where they differ."""
    for i in range(n_layers):
        for stems in _LAUNCHES:
            names = (f"blk.{i}.{stem}.weight" for stem in stems)
            mixed = tuple(types[name] for name in names if types.get(name) in LAYOUTS)
            if len(set(mixed)) > 1:
                yield mixed


def _experts(
    types: Mapping[str, GGMLType], n_layers: int
) -> Iterator[tuple[GGMLType, GGMLType, GGMLType]]:
    """Types of gate, up and down where a kernel takes them: all packed, or all plain."""
    for i in range(n_layers):
        names = (f"blk.{i}.ffn_{stem}_exps.weight" for stem in ("gate", "up", "down"))
        gate, up, down = (types.get(name) for name in names)
        if gate is None or up is None or down is None:
            continue
        stacks = (gate, up, down)
        if all(type in LAYOUTS for type in stacks) or all(type in NATIVE_DTYPES for type in stacks):
            yield stacks
