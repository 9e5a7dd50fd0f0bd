"""The row type of the architecture table: which mechanisms an architecture has."""

import dataclasses
from collections.abc import Callable
from typing import Literal

from rfjax.models.config import PRE_NORMS, Gating, QKNorm
from rfjax.ops.mask import Mask


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What scales may depend on: sizes of the whole model, those of heads from its first layer."""

    n_layers: int
    d_model: int
    n_heads: int
    head_dim: int


Number = float | Callable[[Sizes], float]
"""A constant, or what makes one of a model's sizes."""


@dataclasses.dataclass(frozen=True)
class Window:
    """Some layers see the last tokens only, as many as `attention.sliding_window` says.

    Attributes:
        period: every period-th layer sees everything; the key or array
            `attention.sliding_window_pattern` says otherwise.
        size: without the key: the window; None for a key that must be there, 0 for no windows.
        n_layers: only models of so many layers have windows; 0 for all.
        base: of the rotation in windowed layers without the key `rope.freq_base_swa`; None is that
            of the others.
        extended: windowed layers take part in the extension of the context.
    """

    period: int
    size: int | None = None
    n_layers: int = 0
    base: float | None = None
    extended: bool = True


@dataclasses.dataclass(frozen=True)
class Mixture:
    """How a sparse mixture's experts are chosen and sized.

    Attributes:
        when: "optional" (where `expert_count` is set) or "always".
        gating: what makes weights of logits, where `expert_gating_func` does not say.
        normalize: weights are divided by their sum; None: `expert_weights_norm` says.
        width: without `expert_feed_forward_length`: an expert is as wide as
            `feed_forward_length`, that width is shared by the experts used, or the key must be
            there.
        selection_bias: of `exp_probs_b`.
        shared: a shared network as wide as so many experts (`expert_shared_count`), or as
            `expert_shared_feed_forward_length` says.
        shared_gate: it has a gate.
        keys: metadata keys that count here: `expert_gating_func`, `expert_weights_scale`,
            `expert_group_count` and `leading_dense_block_count`.
    """

    when: Literal["optional", "always"] = "always"
    gating: Gating = "softmax"
    normalize: bool | None = True
    width: Literal["dense", "shared_out", "stated"] = "dense"
    selection_bias: Literal["never", "optional", "always"] = "never"
    shared: Literal["never", "by_count", "by_width", "by_width_or_dense"] = "never"
    shared_gate: bool = False
    keys: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class ArchSpec:
    """An architecture as differences from the plain pre-norm RMS/RoPE/SwiGLU decoder.

    Attributes:
        name: the value of `general.architecture`.
        pairing: which elements RoPE rotates together; None for no rotation.
        norm: kind of all norms.
        norm_weights: norms have weights.
        norms: stems of a layer's norms.
        optional_norms: stems of norms that are applied where the file has them.
        parallel: whether the feed-forward network reads the layer's input: "by_key" where
            `use_parallel_residual` says so, "without_ffn_norm" in layers that have no `ffn_norm`.
        qk_norm: of queries and keys.
        qk_norm_from: layers that a model must have for it; 0 for any.
        qk_norm_optional: where the file has its tensors.
        biases: stems whose bias must be there, in layers and outside (`output`, `output_norm`,
            `token_embd_norm`).
        optional_biases: stems whose bias is used where the file has it.
        mask: which keys a query sees.
        window: layers that see the last tokens only.
        rotated: "windowed": where some layers have windows, only they rotate.
        unrotated_period: every so many layers one does not rotate; 0 for none.
        sections: with `rope.dimension_sections` (several position axes) the pairing is "half".
        rope_factors: `rope_freqs.weight` is used where the file has it.
        long_factors: `rope_factors_long.weight` and `rope_factors_short.weight` are: "scaling"
            where `rope.scaling.type` is longrope.
        attention_scale: of scores; None is `head_dim ** -0.5`.
        softcap, final_softcap: of scores and logits, where no key says otherwise.
        sinks: attention has them.
        alibi: largest bias; layers with it do not rotate.
        activation: of the feed-forward network.
        gated: it has a gate.
        fused_gate_up: gate and up are one tensor `ffn_up`.
        ffn_share: `feed_forward_length` counts so many matrices' rows.
        mixture: of experts, or None.
        embedding_scale, residual_scale, logit_scale: where no key says otherwise; 0 is none.
        logit_divisor: logits are divided by it, not multiplied.
        embedding_norm: embeddings are normalised.
        positions: a learned table of positions.
        tied_output: the output projection is the embedding table always.
        latent: attention is DeepSeek's.
        renames: canonical stems and those that the files have for them.
        keys: metadata keys of mechanisms that only some architectures have; a key that is not
            listed is not read, as in llama.cpp.
        required_keys: those of them, all numbers, that must be there.
    """

    name: str
    pairing: Literal["interleaved", "half"] | None
    norm: Literal["rms", "layer"] = "rms"
    norm_weights: bool = True
    norms: frozenset[str] = PRE_NORMS
    optional_norms: frozenset[str] = frozenset()
    parallel: Literal["never", "always", "by_key", "without_ffn_norm"] = "never"
    qk_norm: QKNorm | None = None
    qk_norm_from: int = 0
    qk_norm_optional: bool = False
    biases: frozenset[str] = frozenset()
    optional_biases: frozenset[str] = frozenset({"attn_q", "attn_k", "attn_v"})
    mask: Mask = dataclasses.field(default_factory=Mask)
    window: Window | None = None
    rotated: Literal["all", "windowed"] = "all"
    unrotated_period: int = 0
    sections: bool = False
    rope_factors: bool = False
    long_factors: Literal["never", "scaling", "always"] = "never"
    attention_scale: Number | None = None
    softcap: float = 0.0
    final_softcap: float = 0.0
    sinks: bool = False
    alibi: Number = 0.0
    activation: str = "silu"
    gated: bool = True
    fused_gate_up: bool = False
    ffn_share: int = 1
    mixture: Mixture | None = None
    embedding_scale: Number = 1.0
    residual_scale: Number = 1.0
    logit_scale: Number = 0.0
    logit_divisor: bool = False
    embedding_norm: bool = False
    positions: Literal["never", "optional", "always"] = "never"
    tied_output: bool = False
    latent: bool = False
    renames: tuple[tuple[str, str], ...] = ()
    keys: frozenset[str] = frozenset()
    required_keys: frozenset[str] = frozenset()


QKV = frozenset({"attn_q", "attn_k", "attn_v"})
DENSE_FFN = frozenset({"ffn_gate", "ffn_up", "ffn_down"})
POST_NORMS = frozenset({"post_attention_norm", "post_ffw_norm"})
