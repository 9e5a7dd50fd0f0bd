"""An architecture's mechanisms in the usual terms, read off its `ArchSpec`."""

from collections.abc import Iterator

from rfjax.models.arch import DENSE_FFN, POST_NORMS, QKV, ArchSpec, Mixture, Window
from rfjax.models.config import PRE_NORMS

_FEED_FORWARD = {
    ("silu", True): "SwiGLU",
    ("gelu", True): "GEGLU",
    ("swiglu_oai", True): "clipped SwiGLU",
    ("gelu", False): "GELU MLP",
    ("relu_squared", False): "squared-ReLU MLP",
}
"""Usual names of feed-forward networks, by activation and whether there is a gate."""

_GATINGS = {
    "softmax": "softmax",
    "sigmoid": "sigmoid",
    "softmax_of_chosen": "softmax of the chosen",
}

_QK_NORMS = {
    "head": "QK-norm per head",
    "each_head": "QK-norm per head (each its own)",
    "all_heads": "QK-norm over all heads",
}

_SOME = " in some models"

_OF_KEYS = {
    "rope.scaling.yarn_beta_fast": "YaRN ramp from metadata",
    "rope.scaling.yarn_log_multiplier": "YaRN mscale",
    "rope.scaling.alpha": "NTK-aware RoPE base",
    "rope.scaling.finetuned": "NoPE where the file says so",
    "attention.temperature_scale": "attention temperature by position",
    "attention.scale": "attention multiplier",
    "attention.clamp_kqv": "QKV clipping",
}
"""What metadata keys of single architectures stand for; keys of a field's value go with it."""


def mechanisms(spec: ArchSpec) -> tuple[str, ...]:
    """What makes up a layer and what is around layers, positions first.

    Not named is what every architecture takes from metadata: grouped queries, the share of a head
    that rotates, linear and YaRN scaling; nor biases of Q, K and V that a file may have.
    """
    return (
        *_positions(spec),
        *_norms(spec),
        *_attention(spec),
        *_feed_forward(spec),
        *_outside(spec),
        *(what for key, what in _OF_KEYS.items() if key in spec.keys),
    )


def has_alibi(spec: ArchSpec) -> bool:
    """Whether some models of the architecture have ALiBi."""
    return bool(spec.alibi) or "attention.max_alibi_bias" in spec.keys


def _positions(spec: ArchSpec) -> Iterator[str]:
    if spec.pairing is not None:
        yield "RoPE (adjacent pairs)" if spec.pairing == "interleaved" else "RoPE (NeoX)"
    if spec.sections:
        yield "M-RoPE for text"
    if spec.rotated == "windowed":
        yield "NoPE in full-attention layers"
    if spec.unrotated_period:
        yield f"NoPE in 1 of {spec.unrotated_period} layers"
    if spec.rope_factors:
        yield "RoPE frequency factors"
    if spec.long_factors != "never":
        yield "LongRoPE" if spec.long_factors == "always" else "LongRoPE where the file says so"
    if has_alibi(spec):
        fixed = isinstance(spec.alibi, float) and spec.alibi > 0
        yield "ALiBi" + ("" if fixed else _SOME)
    if spec.positions != "never":
        yield "learned positions" + ("" if spec.positions == "always" else _SOME)


def _norms(spec: ArchSpec) -> Iterator[str]:
    kind = "RMSNorm" if spec.norm == "rms" else "LayerNorm"
    if not spec.norm_weights:
        kind += " without weights"
    if (spec.biases | spec.optional_biases) & (PRE_NORMS | POST_NORMS | {"output_norm"}):
        kind += " with bias"
    yield kind
    before = spec.norms & PRE_NORMS
    if spec.norms >= POST_NORMS:
        yield "pre- and post-norm" if before else "post-norm"
    if before == {"attn_norm"}:
        yield "one pre-norm a layer"
    for stem in sorted(spec.optional_norms):
        yield stem + _SOME
    if spec.parallel != "never":
        yield "parallel attention and FFN" + ("" if spec.parallel == "always" else _SOME)
    if spec.qk_norm is not None:
        yield "".join(
            (
                _QK_NORMS[spec.qk_norm.over],
                " after RoPE" if spec.qk_norm.after_rope else "",
                f" from {spec.qk_norm_from} layers" if spec.qk_norm_from else "",
                _SOME if spec.qk_norm_optional else "",
            )
        )


def _attention(spec: ArchSpec) -> Iterator[str]:
    if spec.latent:
        yield "MLA with a compressed cache"
    if spec.mask.kind != "causal":
        yield f"{spec.mask.kind} attention"
    if spec.window is not None:
        yield _window(spec.window)
        if spec.window.base is not None:
            yield f"RoPE base {spec.window.base:g} in windows"
        if not spec.window.extended:
            yield "no RoPE scaling in windows"
    if spec.softcap or "attn_logit_softcapping" in spec.keys:
        yield "attention soft-capping"
    if spec.sinks:
        yield "attention sinks"
    if spec.attention_scale is not None:
        yield "attention scale of its own"
    if spec.biases >= QKV:
        yield "QKV bias"
    for stem, what in (("attn_output", "attention output bias"), ("output", "LM head bias")):
        if stem in spec.biases:
            yield what


def _window(window: Window) -> str:
    where = f"sliding window in {window.period - 1} of {window.period} layers"
    if window.n_layers:
        return f"{where} at {window.n_layers} layers"
    return where if window.size is None or window.size else f"{where} where stated"


def _feed_forward(spec: ArchSpec) -> Iterator[str]:
    other = f"{spec.activation} {'gate' if spec.gated else 'MLP'}"
    yield _FEED_FORWARD.get((spec.activation, spec.gated), other)
    if spec.fused_gate_up:
        yield "fused gate and up"
    if spec.biases & DENSE_FFN:
        yield "FFN bias"
    if spec.mixture is not None:
        yield from _mixture(spec.mixture)
        if "ffn_gate_inp" in spec.biases:
            yield "router bias"
        if "ffn_up_exps" in spec.biases:
            yield "expert bias"


def _mixture(mixture: Mixture) -> Iterator[str]:
    normalized = {True: " normalised", False: "", None: " normalised where stated"}
    optional = "" if mixture.when == "always" else _SOME
    yield f"MoE{optional} ({_GATINGS[mixture.gating]}{normalized[mixture.normalize]})"
    if "leading_dense_block_count" in mixture.keys:
        yield "leading dense layers"
    if mixture.selection_bias != "never":
        yield "expert selection bias"
    if "expert_group_count" in mixture.keys:
        yield "group-limited routing"
    if "expert_weights_scale" in mixture.keys:
        yield "routed scaling factor"
    if mixture.shared != "never":
        yield "gated shared expert" if mixture.shared_gate else "shared experts"


def _outside(spec: ArchSpec) -> Iterator[str]:
    if spec.embedding_norm:
        yield "embedding norm"
    for name, what in (
        ("embedding_scale", "embedding scale"),
        ("residual_scale", "residual scale"),
    ):
        if getattr(spec, name) != 1.0 or name in spec.keys:
            yield what
    if spec.logit_scale or "logit_scale" in spec.keys:
        yield "logit divisor" if spec.logit_divisor else "logit scale"
    if spec.final_softcap or "final_logit_softcapping" in spec.keys:
        yield "logit soft-capping"
    if spec.tied_output:
        yield "tied embeddings"
