"""Which layers keep state of the same kind, and so share pages and page tables."""

import dataclasses

from rfjax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class LayerGroup:
    """Layers whose queries look back equally far.

    Attributes:
        name: for messages and metrics.
        window: how many tokens back a query looks, itself included; None for all.
        layers: their numbers, rising.
    """

    name: str
    window: int | None
    layers: tuple[int, ...]


def layer_groups(config: ModelConfig) -> tuple[LayerGroup, ...]:
    """The groups of a model, full attention first, then by window.

    Layers of a chunked mask count as full attention: they look back no further than their chunk,
    but a window of that size would keep too little at its beginning.
    """
    found: dict[int | None, list[int]] = {}
    for number, layer in enumerate(config.layers):
        window = layer.mask.size if layer.mask.kind == "window" else None
        found.setdefault(window, []).append(number)
    ordered = sorted(found, key=lambda window: window or 0)
    return tuple(
        LayerGroup("full" if w is None else f"window {w}", w, tuple(found[w])) for w in ordered
    )


def group_of_layers(groups: tuple[LayerGroup, ...]) -> tuple[int, ...]:
    """The index of every layer's group."""
    number = {layer: index for index, group in enumerate(groups) for layer in group.layers}
    return tuple(number[layer] for layer in range(len(number)))
