"""What a model is, as frozen and hashable data: the static argument of every jitted function."""

import dataclasses
from typing import Literal

from rfjax.cache.kv_shape import KVShape
from rfjax.ops.dispatch import DEFAULT_POLICY, KernelPolicy
from rfjax.ops.mask import Mask
from rfjax.ops.rope import Rope

Gating = Literal["softmax", "sigmoid", "softmax_of_chosen"]
"""What makes weights of a router's logits: the softmax over all experts, the sigmoid of each, or
the softmax over those that were chosen."""

PRE_NORMS = frozenset({"attn_norm", "ffn_norm"})
"""The norms of a plain layer: before attention, and before the feed-forward network."""


@dataclasses.dataclass(frozen=True)
class Experts:
    """A sparse mixture: `n_used` of `n_experts` feed-forward networks of width `ffn_dim`.

    Attributes:
        n_experts, n_used, ffn_dim: sizes.
        normalize: the chosen experts' weights are divided by their sum.
        scale: multiplies them at last.
        gating: what makes weights of logits.
        selection_bias: a tensor `exp_probs_b.bias` is added to the weights to choose by, not to
            those that count.
        n_groups, n_groups_used: experts are chosen from the best groups only, a group being as good
            as the sum of its two best; 1 group is no groups.
        shared_dim: width of one more network that every token passes; 0 is none.
        shared_gate: its result is multiplied by the sigmoid of a learned product.
    """

    n_experts: int
    n_used: int
    ffn_dim: int
    normalize: bool
    scale: float = 1.0
    gating: Gating = "softmax"
    selection_bias: bool = False
    n_groups: int = 1
    n_groups_used: int = 1
    shared_dim: int = 0
    shared_gate: bool = False


@dataclasses.dataclass(frozen=True)
class AttentionTemperature:
    """Queries grow with their position: times `1 + scale * ln(1 + floor(position / length))`."""

    scale: float
    length: int


@dataclasses.dataclass(frozen=True)
class QKNorm:
    """Queries and keys are normalised, in the model's kind of norm.

    Attributes:
        over: "head": over each head, with one weight `[H]`; "each_head": over each, with weights
            `[N, H]`; "all_heads": over all heads together, with a weight `[N * H]`.
        after_rope: after the rotation instead of before it.
    """

    over: Literal["head", "each_head", "all_heads"] = "head"
    after_rope: bool = False


@dataclasses.dataclass(frozen=True)
class Latent:
    """DeepSeek's latent attention: keys and values are made of one compressed vector a token.

    Attributes:
        q_rank: width of the compressed queries; 0 where they are not compressed.
        kv_rank: width of the compressed keys and values.
        nope_dim, rope_dim: elements of a head of queries and keys without and with rotation.
        value_dim: elements of a head of values.
        split: matrices for keys and for values (`attn_k_b`, `attn_v_b`), or the older one for both
            (`attn_kv_b`).
    """

    q_rank: int
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    split: bool


@dataclasses.dataclass(frozen=True)
class LayerConfig:
    """One transformer layer.

    Attributes:
        n_heads, n_kv_heads, head_dim: of attention.
        attention_scale: multiplies scores.
        mask: which keys a query sees.
        rope: the rotation; None for a layer without.
        activation: of the feed-forward network, a name of `rfjax.ops.activation`.
        ffn_dim: the dense network's width; with `experts` there is none.
        experts: the sparse mixture, or None.
        biases: stems of projections, norms and stacks that have a bias tensor.
        norms: stems of the norms that the layer applies.
        qk_norm: of queries and keys, or None.
        gated: the feed-forward network multiplies by a gate.
        parallel: it reads the layer's input, not what attention makes of it.
        softcap: scores are bent to lie within it; 0 leaves them.
        sinks: a tensor `attn_sinks` takes weight away from the keys.
        alibi: largest bias of ALiBi; 0 is none.
        clamp_qkv: queries, keys and values are cut off at it; 0 leaves them.
        residual_scale: multiplies what attention and network add.
        temperature: of queries by position.
        latent: latent attention in place of plain, or None.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    attention_scale: float
    mask: Mask
    rope: Rope | None
    activation: str
    ffn_dim: int
    experts: Experts | None
    biases: frozenset[str] = frozenset()
    norms: frozenset[str] = PRE_NORMS
    qk_norm: QKNorm | None = None
    gated: bool = True
    parallel: bool = False
    softcap: float = 0.0
    sinks: bool = False
    alibi: float = 0.0
    clamp_qkv: float = 0.0
    residual_scale: float = 1.0
    temperature: AttentionTemperature | None = None
    latent: Latent | None = None

    @property
    def kv_shape(self) -> KVShape:
        """What the layer keeps of a token."""
        if self.latent is not None:
            return KVShape(1, self.latent.kv_rank + self.latent.rope_dim, 0)
        return KVShape(self.n_kv_heads, self.head_dim, self.head_dim)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything but the weights: sizes, mechanisms, and the dtype of the activations.

    Attributes:
        architecture: its name.
        vocab_size, d_model: sizes.
        context_length: tokens that the model was trained for.
        norm_eps: of all norms.
        layers: of the decoder.
        tied_output: the output projection is the embedding table.
        norm: kind of all norms.
        norm_weights: norms have weights.
        biases: stems outside of layers that have a bias: `output`, `output_norm`,
            `token_embd_norm`.
        embedding_norm: embeddings are normalised.
        embedding_scale: multiplies embeddings.
        learned_positions: rows of a table that is added to embeddings by position; 0 is none.
        logit_scale: multiplies logits.
        final_softcap: logits are bent to lie within it; 0 leaves them.
        rope_factors: stem of the tensor that divides the rotation frequencies, or None.
        stored_factors: stems of all such tensors that the file has.
        dtype: the activations' dtype by name; norms, softmax, logits and sums are f32 always.
        kernels: which operations may run as kernels.
    """

    architecture: str
    vocab_size: int
    d_model: int
    context_length: int
    norm_eps: float
    layers: tuple[LayerConfig, ...]
    tied_output: bool
    norm: Literal["rms", "layer"] = "rms"
    norm_weights: bool = True
    biases: frozenset[str] = frozenset()
    embedding_norm: bool = False
    embedding_scale: float = 1.0
    learned_positions: int = 0
    logit_scale: float = 1.0
    final_softcap: float = 0.0
    rope_factors: str | None = None
    stored_factors: tuple[str, ...] = ()
    dtype: str = "float32"
    kernels: KernelPolicy = DEFAULT_POLICY

    @property
    def kv_shapes(self) -> tuple[KVShape, ...]:
        """What every layer keeps of a token."""
        return tuple(layer.kv_shape for layer in self.layers)
