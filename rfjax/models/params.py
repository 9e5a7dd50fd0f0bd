"""The tree of weights. Paths are GGUF tensor names: `blk.0.attn_q.weight`.

`param_spec` gives the same tree with a `ParamSpec` at every leaf; the loader's checklist, the
shardings, a random initialisation and the memory estimate are each one map over it. Every
architecture has the same tree, less what it does not have: what files fuse or name otherwise is
taken apart by `rfjax.models.tensors`.
"""

import dataclasses
import math
from typing import Any

import jax
from flax import struct

from rfjax.models.config import Experts, Latent, LayerConfig, ModelConfig

Leaf = Any  # jax.Array, a ParamSpec, a sharding: one tree type serves every map over it


@struct.dataclass
class Linear:
    """A projection `x @ weight.T + bias`, or a stack of them (one an expert)."""

    weight: Leaf  # [out, in], [E, out, in]
    bias: Leaf | None = None  # f32 [out], [E, out]


@struct.dataclass
class Norm:
    """A norm's scale and shift; a norm without weights has neither."""

    weight: Leaf | None = None  # f32 [D], [H], [N, H]
    bias: Leaf | None = None  # f32, likewise


@struct.dataclass
class Vector:
    """Numbers: divisors of the RoPE frequencies, or logits of attention sinks."""

    weight: Leaf  # f32 [n]


@struct.dataclass
class Bias:
    """A bias by itself."""

    bias: Leaf  # f32 [E]


@struct.dataclass
class Block:
    """One layer; fields are GGUF stems, None where the architecture has no such tensor."""

    attn_norm: Norm | None = None
    attn_norm_2: Norm | None = None
    attn_q: Linear | None = None  # [N*H, D]
    attn_k: Linear | None = None  # [K*H, D]
    attn_v: Linear | None = None  # [K*H, D]
    attn_output: Linear | None = None  # [D, N*H]
    attn_q_norm: Norm | None = None  # [H], [N, H] or [N*H]
    attn_k_norm: Norm | None = None  # [H], [K, H] or [K*H]
    attn_sinks: Vector | None = None  # [N]
    attn_q_a: Linear | None = None  # [Rq, D]: latent attention, as all up to attn_kv_b
    attn_q_a_norm: Norm | None = None  # [Rq]
    attn_q_b: Linear | None = None  # [N*H, Rq]
    attn_kv_a_mqa: Linear | None = None  # [R + rotated, D]
    attn_kv_a_norm: Norm | None = None  # [R]
    attn_k_b: Linear | None = None  # [N, R, unrotated]
    attn_v_b: Linear | None = None  # [N, value, R]
    attn_kv_b: Linear | None = None  # [N*(unrotated + value), R]
    post_attention_norm: Norm | None = None
    ffn_norm: Norm | None = None
    ffn_gate: Linear | None = None  # [F, D]
    ffn_up: Linear | None = None  # [F, D]
    ffn_down: Linear | None = None  # [D, F]
    ffn_gate_inp: Linear | None = None  # f32 [E, D]: the router
    exp_probs_b: Bias | None = None  # [E]
    ffn_gate_exps: Linear | None = None  # [E, F, D]
    ffn_up_exps: Linear | None = None  # [E, F, D]
    ffn_down_exps: Linear | None = None  # [E, D, F]
    ffn_gate_inp_shexp: Vector | None = None  # [D]
    ffn_gate_shexp: Linear | None = None  # [Fs, D]
    ffn_up_shexp: Linear | None = None  # [Fs, D]
    ffn_down_shexp: Linear | None = None  # [D, Fs]
    post_ffw_norm: Norm | None = None


@struct.dataclass
class Params:
    """A whole model; where the embedding table serves as output projection too, `output` is None,
    or has a bias only."""

    token_embd: Linear  # [V, D]
    output_norm: Norm
    blk: tuple[Block, ...]
    output: Linear | None = None  # [V, D], or None and a bias [V]
    rope_freqs: Vector | None = None
    rope_factors_long: Vector | None = None
    rope_factors_short: Vector | None = None
    token_embd_norm: Norm | None = None
    position_embd: Linear | None = None  # [positions, D]


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
    if "output" in config.biases or not config.tied_output:
        output = Linear(
            None if config.tied_output else ParamSpec((vocab, width), ("vocab", "embed")),
            ParamSpec((vocab,), ("vocab",), wide=True) if "output" in config.biases else None,
        )
    factors: dict[str, Vector] = {}
    if config.stored_factors:
        half = next(layer.rope.dimension for layer in config.layers if layer.rope) // 2
        factors = {s: _vector(half, None) for s in config.stored_factors}
    positions = None
    if config.learned_positions:
        positions = _linear((config.learned_positions, width), (None, "embed"))
    make = _Maker(config, config.biases)
    return Params(
        token_embd=_linear((vocab, width), ("vocab", "embed")),
        output_norm=make.norm("output_norm"),
        blk=tuple(_block(config, layer) for layer in config.layers),
        output=output,
        token_embd_norm=make.norm("token_embd_norm") if config.embedding_norm else None,
        position_embd=positions,
        **factors,
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
    """A projection; the bias of a stack is a row an expert."""
    bias_spec = None
    if bias:
        bias_units = None if units is None else units[:-1]
        bias_spec = ParamSpec(shape[:-1], axes[:-1], wide=True, units=bias_units)
    return Linear(ParamSpec(shape, axes, units=units), bias_spec)


def _vector(size: int, axis: str | None) -> Vector:
    return Vector(ParamSpec((size,), (axis,), wide=True))


class _Maker:
    """Makes nodes with the biases that a model or layer has."""

    def __init__(self, config: ModelConfig, biases: frozenset[str], head_dim: int = 1):
        self.config = config
        self.biases = biases
        self.head_dim = head_dim

    def norm(self, stem: str, shape: tuple[int, ...] | None = None) -> Norm:
        """A norm over the residual stream, or with weights of another shape."""
        axes: tuple[str | None, ...] = ("embed",)
        if shape is not None:
            axes = (None,) * len(shape)
        spec = ParamSpec(shape or (self.config.d_model,), axes, wide=True)
        if not self.config.norm_weights:
            return Norm()
        return Norm(spec, spec if stem in self.biases else None)

    def linear(self, stem: str, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> Linear:
        """A projection or a stack of them; heads stay whole where they are split."""
        whole = ("heads", "kv_heads")
        units = tuple(self.head_dim if axis in whole else 1 for axis in axes)
        return _linear(shape, axes, units, bias=stem in self.biases)


def _block(config: ModelConfig, layer: LayerConfig) -> Block:
    make = _Maker(config, layer.biases, layer.head_dim)
    nodes: dict[str, Any] = {stem: make.norm(stem) for stem in layer.norms}
    if layer.latent is None:
        nodes |= _attention(config, layer, make)
    else:
        nodes |= _latent_attention(config, layer, layer.latent)
    if layer.experts is None:
        nodes |= _dense(config, layer, make)
    else:
        nodes |= _mixture(config, layer.experts, make)
    return Block(**nodes)


def _attention(config: ModelConfig, layer: LayerConfig, make: _Maker) -> dict[str, Any]:
    width = config.d_model
    q_rows = layer.n_heads * layer.head_dim
    kv_rows = layer.n_kv_heads * layer.head_dim
    nodes: dict[str, Any] = {
        "attn_q": make.linear("attn_q", (q_rows, width), ("heads", "embed")),
        "attn_k": make.linear("attn_k", (kv_rows, width), ("kv_heads", "embed")),
        "attn_v": make.linear("attn_v", (kv_rows, width), ("kv_heads", "embed")),
        "attn_output": make.linear("attn_output", (width, q_rows), ("embed", "heads")),
    }
    if layer.qk_norm is not None:
        for stem, n in (("attn_q_norm", layer.n_heads), ("attn_k_norm", layer.n_kv_heads)):
            shapes = {
                "head": (layer.head_dim,),
                "each_head": (n, layer.head_dim),
                "all_heads": (n * layer.head_dim,),
            }
            nodes[stem] = make.norm(stem, shapes[layer.qk_norm.over])
    if layer.sinks:
        nodes["attn_sinks"] = _vector(layer.n_heads, None)
    return nodes


def _latent_attention(config: ModelConfig, layer: LayerConfig, latent: Latent) -> dict[str, Any]:
    width, n = config.d_model, layer.n_heads
    rank, value = latent.kv_rank, latent.value_dim
    make = _Maker(config, layer.biases, layer.head_dim)
    of_values = _Maker(config, layer.biases, value)
    queries, heads = n * layer.head_dim, ("heads", None)
    nodes: dict[str, Any] = {
        "attn_kv_a_mqa": _linear((rank + latent.rope_dim, width), (None, "embed")),
        "attn_kv_a_norm": make.norm("attn_kv_a_norm", (rank,)),
        "attn_output": of_values.linear("attn_output", (width, n * value), ("embed", "heads")),
    }
    if latent.q_rank:
        nodes["attn_q_a"] = _linear((latent.q_rank, width), (None, "embed"))
        nodes["attn_q_a_norm"] = make.norm("attn_q_a_norm", (latent.q_rank,))
        nodes["attn_q_b"] = make.linear("attn_q_b", (queries, latent.q_rank), heads)
    else:
        nodes["attn_q"] = make.linear("attn_q", (queries, width), ("heads", "embed"))
    if latent.split:
        nodes["attn_k_b"] = _linear((n, rank, latent.nope_dim), ("heads", None, None))
        nodes["attn_v_b"] = _linear((n, value, rank), ("heads", None, None))
    else:
        both = _Maker(config, layer.biases, latent.nope_dim + value)
        rows = n * (latent.nope_dim + value)
        nodes["attn_kv_b"] = both.linear("attn_kv_b", (rows, rank), heads)
    return nodes


def _dense(config: ModelConfig, layer: LayerConfig, make: _Maker) -> dict[str, Any]:
    width, ffn = config.d_model, layer.ffn_dim
    nodes = {
        "ffn_up": make.linear("ffn_up", (ffn, width), ("mlp", "embed")),
        "ffn_down": make.linear("ffn_down", (width, ffn), ("embed", "mlp")),
    }
    if layer.gated:
        nodes["ffn_gate"] = make.linear("ffn_gate", (ffn, width), ("mlp", "embed"))
    return nodes


def _mixture(config: ModelConfig, experts: Experts, make: _Maker) -> dict[str, Any]:
    width, count, ffn = config.d_model, experts.n_experts, experts.ffn_dim
    inner, outer = ("expert", "mlp", "embed"), ("expert", "embed", "mlp")
    router_bias = ParamSpec((count,), (None,), wide=True)
    nodes: dict[str, Any] = {
        "ffn_gate_inp": Linear(
            ParamSpec((count, width), (None, "embed"), wide=True),
            router_bias if "ffn_gate_inp" in make.biases else None,
        ),
        "ffn_gate_exps": make.linear("ffn_gate_exps", (count, ffn, width), inner),
        "ffn_up_exps": make.linear("ffn_up_exps", (count, ffn, width), inner),
        "ffn_down_exps": make.linear("ffn_down_exps", (count, width, ffn), outer),
    }
    if experts.selection_bias:
        nodes["exp_probs_b"] = Bias(router_bias)
    if experts.shared_dim:
        shared = experts.shared_dim
        nodes["ffn_gate_shexp"] = _linear((shared, width), ("mlp", "embed"))
        nodes["ffn_up_shexp"] = _linear((shared, width), ("mlp", "embed"))
        nodes["ffn_down_shexp"] = _linear((width, shared), ("embed", "mlp"))
        if experts.shared_gate:
            nodes["ffn_gate_inp_shexp"] = _vector(width, "embed")
    return nodes
