"""The tree of weights. Paths are GGUF tensor names: `blk.0.attn_q.weight`.

`param_spec` gives the same tree with a `ParamSpec` at every leaf; the loader's checklist, the
shardings, a random initialisation and the memory estimate are each one map over it.
"""

import dataclasses
import math
from typing import Any

import jax
from flax import struct

from rfjax.models.config import LayerConfig, ModelConfig

Leaf = Any  # jax.Array, a ParamSpec, a sharding: one tree type serves every map over it


@struct.dataclass
class Linear:
    """A projection `x @ weight.T + bias`, or a stack of them (one an expert)."""

    weight: Leaf  # [out, in], [E, out, in]
    bias: Leaf | None = None  # f32 [out]


@struct.dataclass
class Norm:
    """An RMS norm's scale."""

    weight: Leaf  # f32 [D] or [H]


@struct.dataclass
class Factors:
    """Divisors of the RoPE frequencies."""

    weight: Leaf  # f32 [rotated elements / 2]


@struct.dataclass
class Block:
    """One layer; fields are GGUF stems, None where the architecture has no such tensor."""

    attn_norm: Norm
    attn_q: Linear  # [N*H, D]
    attn_k: Linear  # [K*H, D]
    attn_v: Linear  # [K*H, D]
    attn_output: Linear  # [D, N*H]
    ffn_norm: Norm
    attn_q_norm: Norm | None = None  # [H]
    attn_k_norm: Norm | None = None  # [H]
    attn_q_a: Linear | None = None  # [q_rank, D]: latent attention, see `config.Latent`
    attn_q_a_norm: Norm | None = None  # [q_rank]
    attn_q_b: Linear | None = None  # [N*H, q_rank]
    attn_kv_a_mqa: Linear | None = None  # [R + rope, D]
    attn_kv_a_norm: Norm | None = None  # [R]
    attn_k_b: Linear | None = None  # [N, R, nope]
    attn_v_b: Linear | None = None  # [N, V, R]
    attn_kv_b: Linear | None = None  # [N*(nope + V), R], both in older files
    ffn_gate: Linear | None = None  # [F, D]
    ffn_up: Linear | None = None  # [F, D]
    ffn_down: Linear | None = None  # [D, F]
    ffn_gate_inp: Linear | None = None  # f32 [E, D]: the router
    ffn_gate_exps: Linear | None = None  # [E, F, D]
    ffn_up_exps: Linear | None = None  # [E, F, D]
    ffn_down_exps: Linear | None = None  # [E, D, F]


@struct.dataclass
class Params:
    """A whole model; where the embedding table serves as output projection too, `output` is None,
    or has a bias only."""

    token_embd: Linear  # [V, D]
    output_norm: Norm
    blk: tuple[Block, ...]
    output: Linear | None = None  # [V, D], or None and a bias [V]
    rope_freqs: Factors | None = None


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """What a tensor must be.

    `axes` names the logical axis of every dimension (see `rfjax.sharding`), None where it is
    never split. `wide` tensors (norms, biases, routers) are f32 whatever the model's dtype.
    `units` says how many elements of each dimension stay together where it is split, such as
    those of a head; None is 1 everywhere.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    wide: bool = False
    units: tuple[int, ...] | None = None


def param_spec(config: ModelConfig) -> Params:
    """The tree of `Params` with a `ParamSpec` at every leaf."""
    vocab, width = config.vocab_size, config.d_model
    output = None
    if config.output_bias or not config.tied_output:
        output = Linear(
            None if config.tied_output else ParamSpec((vocab, width), ("vocab", "embed")),
            ParamSpec((vocab,), ("vocab",), wide=True) if config.output_bias else None,
        )
    rope_freqs = None
    if config.rope_factors:
        half = config.layers[0].rope.dimension // 2
        rope_freqs = Factors(ParamSpec((half,), (None,), wide=True))
    return Params(
        token_embd=_linear((vocab, width), ("vocab", "embed")),
        output_norm=_norm(width, "embed"),
        blk=tuple(_block(config, layer) for layer in config.layers),
        output=output,
        rope_freqs=rope_freqs,
    )


def named_leaves(tree: Params) -> dict[str, Leaf]:
    """Every leaf by its GGUF tensor name, in the order of the tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def parameter_count(spec: Params) -> int:
    """Number of weights of a model; a tied output projection counts once."""
    return sum(math.prod(leaf.shape) for leaf in named_leaves(spec).values())


def _linear(
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    units: tuple[int, ...] | None = None,
    *,
    bias: bool = False,
) -> Linear:
    bias_units = units and units[-2:-1]
    return Linear(
        ParamSpec(shape, axes, units=units),
        ParamSpec(shape[-2:-1], axes[-2:-1], wide=True, units=bias_units) if bias else None,
    )


def _norm(size: int, axis: str | None) -> Norm:
    return Norm(ParamSpec((size,), (axis,), wide=True))


def _block(config: ModelConfig, layer: LayerConfig) -> Block:
    width = config.d_model
    q_rows = layer.n_heads * layer.head_dim
    kv_rows = layer.n_kv_heads * layer.head_dim

    def biased(stem: str, shape: tuple[int, int], axes: tuple[str, str]) -> Linear:
        whole = ("heads", "kv_heads")
        units = tuple(layer.head_dim if axis in whole else 1 for axis in axes)
        return _linear(shape, axes, units, bias=stem in layer.biases)

    block = Block(
        attn_norm=_norm(width, "embed"),
        attn_q=biased("attn_q", (q_rows, width), ("heads", "embed")),
        attn_k=biased("attn_k", (kv_rows, width), ("kv_heads", "embed")),
        attn_v=biased("attn_v", (kv_rows, width), ("kv_heads", "embed")),
        attn_output=biased("attn_output", (width, q_rows), ("embed", "heads")),
        ffn_norm=_norm(width, "embed"),
    )
    if layer.qk_norm:
        block = dataclasses.replace(
            block, attn_q_norm=_norm(layer.head_dim, None), attn_k_norm=_norm(layer.head_dim, None)
        )
    if layer.experts is None:
        ffn = layer.ffn_dim
        return dataclasses.replace(
            block,
            ffn_gate=biased("ffn_gate", (ffn, width), ("mlp", "embed")),
            ffn_up=biased("ffn_up", (ffn, width), ("mlp", "embed")),
            ffn_down=biased("ffn_down", (width, ffn), ("embed", "mlp")),
        )
    experts, ffn = layer.experts.n_experts, layer.experts.ffn_dim
    return dataclasses.replace(
        block,
        ffn_gate_inp=Linear(ParamSpec((experts, width), (None, "embed"), wide=True)),
        ffn_gate_exps=_linear((experts, ffn, width), ("expert", "mlp", "embed")),
        ffn_up_exps=_linear((experts, ffn, width), ("expert", "mlp", "embed")),
        ffn_down_exps=_linear((experts, width, ffn), ("expert", "embed", "mlp")),
    )
