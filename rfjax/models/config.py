"""What a model is, as frozen and hashable data: the static argument of every jitted function."""

import dataclasses

from rfjax.cache.kv_shape import KVShape
from rfjax.ops.dispatch import DEFAULT_POLICY, KernelPolicy
from rfjax.ops.mask import Mask
from rfjax.ops.rope import Rope


@dataclasses.dataclass(frozen=True)
class Experts:
    """A sparse mixture: `n_used` of `n_experts` feed-forward networks of width `ffn_dim`.

    `normalize` divides the chosen experts' weights by their sum; `scale` multiplies them.
    """

    n_experts: int
    n_used: int
    ffn_dim: int
    normalize: bool
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class AttentionTemperature:
    """Queries grow with their position: times `1 + scale * ln(1 + floor(position / length))`."""

    scale: float
    length: int


@dataclasses.dataclass(frozen=True)
class Latent:
    """DeepSeek's latent attention: keys and values are projections of one short vector a token.

    `q_rank`: width of the bottleneck before the queries, 0: `attn_q` is one matrix. `kv_rank`:
    width of the vector that keys and values are made of, R. Each head has keys of `nope_dim`
    elements from it and `rope_dim` rotated elements, which all heads share, and values of
    `value_dim`. `split`: the file has `attn_k_b` and `attn_v_b`, else the older `attn_kv_b`.
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

    `ffn_dim` is the dense network's width; with `experts` set there is no dense network.
    `biases` names the projections that have a bias tensor.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    attention_scale: float
    mask: Mask
    rope: Rope
    qk_norm: bool
    activation: str
    ffn_dim: int
    experts: Experts | None
    biases: frozenset[str]
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

    `tied_output`: the output projection is the embedding table. `output_bias`: it has a bias.
    `rope_factors`: the file has `rope_freqs.weight`, which divides the rotation frequencies.
    `dtype` is the activations' dtype by name; norms, softmax, logits and sums are f32 always.
    `kernels` says which operations may run as kernels.
    """

    architecture: str
    vocab_size: int
    d_model: int
    context_length: int
    norm_eps: float
    layers: tuple[LayerConfig, ...]
    tied_output: bool
    output_bias: bool
    rope_factors: bool
    dtype: str = "float32"
    kernels: KernelPolicy = DEFAULT_POLICY

    @property
    def kv_shapes(self) -> tuple[KVShape, ...]:
        """What every layer keeps of a token."""
        return tuple(layer.kv_shape for layer in self.layers)
