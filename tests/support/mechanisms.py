"""Every mechanism of a model, each with a change that its logits must show."""

import dataclasses
from collections.abc import Callable

from support.mutations import Mutation, in_layers, without

from rfjax.models.config import LayerConfig, ModelConfig
from rfjax.models.params import Params, named_leaves
from rfjax.ops.mask import Mask

_OTHER_ACTIVATION = {
    "silu": "gelu",
    "gelu": "relu",
    "relu_squared": "relu",
    "swiglu_oai": "silu",
}


def mechanisms(params: Params, config: ModelConfig) -> dict[str, Mutation]:
    """Changes by name: of each mechanism that some layer, or the whole model, has."""
    found: dict[str, Mutation] = {}
    for name, (has, change) in _OF_LAYERS.items():
        if any(has(layer) for layer in config.layers):
            found[name] = in_layers(_where(has, change))
    for field, plain in _OF_MODELS.items():
        if getattr(config, field) != plain:
            found[f"no {field}"] = _of_model(field, plain)
    found["other norm"] = _of_model("norm", "rms" if config.norm == "layer" else "layer")
    found["norm_eps"] = _of_model("norm_eps", 30.0)
    names = [tuple(name.split(".")) for name in named_leaves(params)]
    for stem in _TENSORS:
        if any(stem in name for name in names):
            found[f"no {stem}"] = without(stem)
    for stem in sorted({name[-2] for name in names if name[-1] == "bias"} - set(_TENSORS)):
        found[f"no {stem}.bias"] = without(stem, part="bias")
    return found


def _where(has: Callable, change: Callable) -> Callable[[LayerConfig], dict[str, object]]:
    return lambda layer: change(layer) if has(layer) else {}


def _of_model(field: str, value: object) -> Mutation:
    return lambda params, config: (params, dataclasses.replace(config, **{field: value}))


def _rope(field: str, change: Callable):
    return lambda layer: {
        "rope": dataclasses.replace(layer.rope, **{field: change(getattr(layer.rope, field))})
    }


def _experts(field: str, change: Callable):
    return lambda layer: {
        "experts": dataclasses.replace(
            layer.experts, **{field: change(getattr(layer.experts, field))}
        )
    }


_OF_LAYERS: dict[str, tuple[Callable, Callable]] = {
    "rope base": (lambda a: a.rope, _rope("base", lambda base: base * 50.0)),
    "rope pairing": (
        lambda a: a.rope,
        _rope("pairing", {"interleaved": "half", "half": "interleaved"}.get),
    ),
    "no rope": (lambda a: a.rope and not a.latent, lambda a: {"rope": None}),
    "share of rope": (
        lambda a: a.rope and not a.latent and a.rope.dimension < a.head_dim,
        _rope("dimension", lambda dimension: dimension + 2),
    ),
    "no scaling of rope": (
        lambda a: a.rope and a.rope.scaling != "none",
        _rope("scaling", lambda _: "none"),
    ),
    "attention scale": (
        lambda a: True,
        lambda a: {"attention_scale": a.attention_scale * 2},
    ),
    "no window": (lambda a: a.mask.kind == "window", lambda a: {"mask": Mask()}),
    "smaller window": (
        lambda a: a.mask.kind == "window",
        lambda a: {"mask": Mask("window", a.mask.size // 2)},
    ),
    "causal": (lambda a: a.mask.kind == "bidirectional", lambda a: {"mask": Mask()}),
    "no qk norm": (lambda a: a.qk_norm, lambda a: {"qk_norm": None}),
    "order of qk norm and rope": (
        lambda a: a.qk_norm and a.rope,
        lambda a: {"qk_norm": dataclasses.replace(a.qk_norm, after_rope=not a.qk_norm.after_rope)},
    ),
    "activation": (lambda a: True, lambda a: {"activation": _OTHER_ACTIVATION[a.activation]}),
    "parallel": (lambda a: "ffn_norm" in a.norms, lambda a: {"parallel": not a.parallel}),
    "no softcap": (lambda a: a.softcap, lambda a: {"softcap": 0.0}),
    "no alibi": (lambda a: a.alibi, lambda a: {"alibi": 0.0}),
    "slope of alibi": (lambda a: a.alibi, lambda a: {"alibi": a.alibi + 1.0}),
    "no clamp": (lambda a: a.clamp_qkv, lambda a: {"clamp_qkv": 0.0}),
    "no residual scale": (lambda a: a.residual_scale != 1, lambda a: {"residual_scale": 1.0}),
    "no temperature": (lambda a: a.temperature, lambda a: {"temperature": None}),
    "normalized experts": (
        lambda a: a.experts,
        _experts("normalize", lambda normalize: not normalize),
    ),
    "fewer experts": (
        lambda a: a.experts and a.experts.n_used > 1,
        _experts("n_used", lambda count: count - 1),
    ),
    "gating": (
        lambda a: a.experts,
        _experts("gating", lambda gating: "softmax" if gating == "sigmoid" else "sigmoid"),
    ),
    "no expert scale": (
        lambda a: a.experts and a.experts.scale != 1,
        _experts("scale", lambda _: 1.0),
    ),
    "no groups": (
        lambda a: a.experts and a.experts.n_groups > 1,
        lambda a: {"experts": dataclasses.replace(a.experts, n_groups=1, n_groups_used=1)},
    ),
    "no shared expert": (
        lambda a: a.experts and a.experts.shared_dim,
        _experts("shared_dim", lambda _: 0),
    ),
}
"""By name: which layers have it, and fields of such a layer's configuration that are changed."""

_OF_MODELS: dict[str, object] = {
    "embedding_scale": 1.0,
    "logit_scale": 1.0,
    "final_softcap": 0.0,
    "rope_factors": None,
}
"""Fields of the configuration, and their values where the mechanism is missing."""

_TENSORS = (
    "attn_norm_2",
    "post_attention_norm",
    "post_ffw_norm",
    "attn_sinks",
    "exp_probs_b",
    "ffn_gate_inp_shexp",
    "position_embd",
    "token_embd_norm",
)
"""Mechanisms that are there where their tensors are."""
