"""Layers of one kind of state share pages."""

import dataclasses

import pytest

import rfjax
from rfjax.models.layer_groups import LayerGroup, group_of_layers, layer_groups
from rfjax.ops.mask import Mask


@pytest.fixture(scope="module")
def config(tiny_llama_path):
    return rfjax.load(tiny_llama_path).config


def with_masks(config, *masks):
    layers = tuple(dataclasses.replace(config.layers[0], mask=mask) for mask in masks)
    return dataclasses.replace(config, layers=layers)


def test_layers_group_by_how_far_they_look_back(config):
    far, near = Mask("window", 64), Mask("window", 16)
    mixed = with_masks(config, far, Mask(), near, far, Mask("chunked", 8))
    groups = layer_groups(mixed)
    assert groups == (
        LayerGroup("full", None, (1, 4)),
        LayerGroup("window 16", 16, (2,)),
        LayerGroup("window 64", 64, (0, 3)),
    )
    assert group_of_layers(groups) == (2, 0, 1, 2, 0)


def test_a_model_of_windows_has_no_full_group(config):
    assert layer_groups(with_masks(config, Mask("window", 8))) == (LayerGroup("window 8", 8, (0,)),)
