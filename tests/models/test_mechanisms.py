"""The usual names of an architecture's mechanisms follow from its row, field by field."""

import dataclasses

import pytest

from rfjax.models.arch import DENSE_FFN, POST_NORMS, QKV, ArchSpec, Mixture, Window
from rfjax.models.architectures import ARCHITECTURES
from rfjax.models.config import PRE_NORMS, QKNorm
from rfjax.models.mechanisms import mechanisms
from rfjax.ops.mask import Mask

PLAIN = ArchSpec("plain", "half")

CHANGES = {
    "pairing": ("interleaved", None),
    "norm": ("layer",),
    "norm_weights": (False,),
    "norms": (frozenset({"attn_norm"}), PRE_NORMS | POST_NORMS, POST_NORMS),
    "optional_norms": (frozenset({"attn_norm_2"}),),
    "parallel": ("always", "by_key", "without_ffn_norm"),
    "qk_norm": (QKNorm(), QKNorm("each_head"), QKNorm("all_heads"), QKNorm(after_rope=True)),
    "biases": (
        QKV,
        DENSE_FFN,
        frozenset({"attn_norm"}),
        frozenset({"attn_output"}),
        frozenset({"output"}),
    ),
    "mask": (Mask("bidirectional"),),
    "window": (
        Window(4),
        Window(4, size=0),
        Window(4, n_layers=64),
        Window(4, base=1e4),
        Window(2, extended=False),
    ),
    "rotated": ("windowed",),
    "unrotated_period": (4,),
    "sections": (True,),
    "rope_factors": (True,),
    "long_factors": ("scaling", "always"),
    "attention_scale": (0.5,),
    "softcap": (50.0,),
    "final_softcap": (30.0,),
    "sinks": (True,),
    "alibi": (8.0, lambda sizes: 8.0),
    "activation": ("gelu", "relu"),
    "gated": (False,),
    "fused_gate_up": (True,),
    "mixture": (
        Mixture(),
        Mixture("optional"),
        Mixture(gating="sigmoid"),
        Mixture(normalize=False),
        Mixture(normalize=None),
        Mixture(selection_bias="always"),
        Mixture(shared="by_count"),
        Mixture(shared="by_count", shared_gate=True),
        Mixture(keys=frozenset({"expert_group_count"})),
        Mixture(keys=frozenset({"expert_weights_scale"})),
        Mixture(keys=frozenset({"leading_dense_block_count"})),
    ),
    "embedding_scale": (12.0,),
    "residual_scale": (0.5,),
    "logit_scale": (0.5,),
    "embedding_norm": (True,),
    "positions": ("optional", "always"),
    "tied_output": (True,),
    "latent": (True,),
    "keys": (
        frozenset({"attention.scale"}),
        frozenset({"attention.clamp_kqv"}),
        frozenset({"attention.max_alibi_bias"}),
        frozenset({"attn_logit_softcapping"}),
    ),
}

DETAILS = {
    "name",
    "optional_biases",  # of what is there anyway
    "qk_norm_from",  # beside qk_norm
    "qk_norm_optional",
    "logit_divisor",  # beside logit_scale
    "ffn_share",  # how files state sizes and name tensors
    "renames",
    "required_keys",
}
"""Fields that are no mechanism by themselves."""


def test_every_field_is_covered():
    fields = {field.name for field in dataclasses.fields(ArchSpec)}
    assert fields == CHANGES.keys() | DETAILS


@pytest.mark.parametrize("field", CHANGES)
def test_a_mechanism_shows(field):
    found = [mechanisms(PLAIN)]
    found += [mechanisms(dataclasses.replace(PLAIN, **{field: v})) for v in CHANGES[field]]
    if field == "parallel":  # both kinds of some models are named alike
        found.pop()
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({"qk_norm": QKNorm()}, {"qk_norm_from": 64}),
        ({"qk_norm": QKNorm()}, {"qk_norm_optional": True}),
        ({"logit_scale": 0.5}, {"logit_divisor": True}),
        ({"mixture": Mixture()}, {"biases": frozenset({"ffn_gate_inp"})}),
        ({"mixture": Mixture()}, {"biases": frozenset({"ffn_up_exps"})}),
    ],
)
def test_a_detail_shows_beside_its_mechanism(base, change):
    spec = dataclasses.replace(PLAIN, **base)
    assert mechanisms(spec) != mechanisms(dataclasses.replace(spec, **change))


def test_the_plain_decoder():
    assert mechanisms(PLAIN) == ("RoPE (NeoX)", "RMSNorm", "SwiGLU")


def test_gemma_2():
    assert {
        "pre- and post-norm",
        "sliding window in 1 of 2 layers",
        "attention soft-capping",
        "logit soft-capping",
        "GEGLU",
        "tied embeddings",
    } <= set(mechanisms(ARCHITECTURES["gemma2"]))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_name_comes_twice_or_breaks_a_list(name):
    found = mechanisms(ARCHITECTURES[name])
    assert len(set(found)) == len(found)
    assert not any("," in what or "|" in what for what in found)
