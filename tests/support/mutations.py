"""Changes to a model that its logits must show, and the measure of how much they do.

A mutation takes parameters and configuration and returns both, changed.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from rfjax.models.config import LayerConfig, ModelConfig
from rfjax.models.params import Params

Mutation = Callable[[Params, ModelConfig], tuple[Params, ModelConfig]]


def nmse(found, expected) -> float:
    """Squared error over squared size, in f64."""
    expected = np.asarray(expected, np.float64)
    return float(((np.asarray(found) - expected) ** 2).sum() / (expected**2).sum())


def in_layers(change: Callable[[LayerConfig], dict[str, object]]) -> Mutation:
    """Replaces fields of every layer's configuration."""

    def mutate(params, config):
        layers = (dataclasses.replace(layer, **change(layer)) for layer in config.layers)
        return params, dataclasses.replace(config, layers=tuple(layers))

    return mutate


def rope(**fields) -> Mutation:
    """Replaces fields of every layer's RoPE."""
    return in_layers(lambda layer: {"rope": dataclasses.replace(layer.rope, **fields)})


def experts(**fields) -> Mutation:
    """Replaces fields of every layer's experts."""
    return in_layers(lambda layer: {"experts": dataclasses.replace(layer.experts, **fields)})


def model(**fields) -> Mutation:
    """Replaces fields of the model's configuration."""
    return lambda params, config: (params, dataclasses.replace(config, **fields))


def without(*stems: str, part: str | None = None) -> Mutation:
    """Drops tensors, or their `part`, from every block; or a field of the whole tree."""

    def mutate(params, config):
        def change(node):
            kept = {
                stem: part and dataclasses.replace(getattr(node, stem), **{part: None})
                for stem in stems
            }
            return dataclasses.replace(node, **kept)

        if hasattr(params, stems[0]):
            return change(params), config
        return dataclasses.replace(params, blk=tuple(map(change, params.blk))), config

    return mutate
