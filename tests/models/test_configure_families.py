"""Metadata of architectures that have keys of their own, as released files and wrong ones state."""

import dataclasses

import numpy as np
import pytest
from support.gguf_files import write_gguf
from support.random_gguf import FAMILIES, Sizes, random_gguf

from rfjax.errors import ModelFormatError
from rfjax.io.gguf import read_gguf
from rfjax.io.load import check_tensors
from rfjax.models.configure import configure
from rfjax.models.params import param_spec


@pytest.fixture
def configured(tmp_path):
    """The configuration of a random file whose tensors fit."""

    def run(family, metadata, tensors=None, sizes=Sizes()):  # noqa: B008 (frozen)
        keys, own = random_gguf(family, sizes, seed=1, metadata=metadata)
        gguf = read_gguf(write_gguf(tmp_path / "m.gguf", keys, {**own, **(tensors or {})}))
        config = configure(gguf)
        check_tensors(gguf, param_spec(config))
        return config

    return run


def test_latent_attention_without_experts(configured):
    """Youtu's models: every layer leads, no expert is counted, and queries are compressed."""
    family = dataclasses.replace(FAMILIES["deepseek2"], block=FAMILIES["deepseek2"].dense)
    config = configured(family, {"leading_dense_block_count": 2, "expert_shared_count": 0})
    assert all(layer.latent and layer.experts is None for layer in config.layers)
    assert {layer.ffn_dim for layer in config.layers} == {Sizes().ffn}


def test_layers_with_experts_need_their_number(configured):
    with pytest.raises(ModelFormatError, match="expert_count"):
        configured(FAMILIES["deepseek2"], {"expert_count": None})


@pytest.mark.parametrize("name", ["attention.clamp_kqv", "attention.max_alibi_bias"])
def test_bounds_are_not_negative(configured, name):
    with pytest.raises(ModelFormatError, match=name):
        configured(FAMILIES["mpt"], {name: -8.0})


def test_factors_of_a_rotation_that_is_switched_off(configured):
    switched_off = {"rope.scaling.finetuned": False}
    assert (
        configured(FAMILIES["granite"], switched_off | {"logit_scale": 2.0}).layers[0].rope is None
    )
    factors = {"rope_freqs.weight": np.ones(4, np.float32)}
    with pytest.raises(ModelFormatError, match=r"rope_freqs\.weight"):
        configured(FAMILIES["granite"], switched_off | {"logit_scale": 2.0}, factors)


@pytest.mark.parametrize("alpha", [1e38, 1e-38])
def test_an_extension_out_of_range(configured, alpha):
    with pytest.raises(ModelFormatError, match=r"rope\.scaling\.alpha"):
        configured(FAMILIES["hunyuan-dense"], {"rope.scaling.alpha": alpha})


def test_heads_too_small_for_an_extension(configured):
    sizes = Sizes(head_dim=2)
    configured(FAMILIES["hunyuan-dense"], {}, sizes=sizes)
    with pytest.raises(ModelFormatError, match=r"rope\.scaling\.alpha"):
        configured(FAMILIES["hunyuan-dense"], {"rope.scaling.alpha": 2.0}, sizes=sizes)


def test_a_window_that_no_position_reaches(configured):
    with pytest.raises(ModelFormatError, match="sliding_window"):
        configured(FAMILIES["gemma3"], {"attention.sliding_window": 1 << 31})


def test_experts_widths_by_layer(configured):
    """Dense layers at the beginning have none; the others need one."""
    sizes = Sizes(shared_ffn=24)
    name = "expert_feed_forward_length"
    by_layer = np.array([0, sizes.expert_ffn], np.int32)
    config = configured(FAMILIES["deepseek2"], {name: by_layer}, sizes=sizes)
    first, second = config.layers
    assert first.experts is None and second.experts.ffn_dim == sizes.expert_ffn
    with pytest.raises(ModelFormatError, match=rf"{name}'?: got 0, expected"):
        configured(FAMILIES["deepseek2"], {name: by_layer[::-1].copy()}, sizes=sizes)


def test_a_base_for_windowed_layers_counts_where_the_row_says_so(configured):
    own = {"rope.freq_base_swa": 777.0}
    bases = [layer.rope.base for layer in configured(FAMILIES["gemma2"], own).layers]
    assert bases.count(777.0) == 1 and len(bases) == 2
    needed = {"logit_scale": 0.5, "attention.sliding_window": 8}
    layers = configured(FAMILIES["cohere2"], own | needed).layers
    assert all(layer.rope is None or layer.rope.base != 777.0 for layer in layers)
