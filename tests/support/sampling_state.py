"""Sampling states for tests: what is not named is off."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from rfjax.ops.constraints import n_words
from rfjax.ops.sampling import SamplingState, greedy

_ROOM = 3


def state(batch, vocab, **values) -> SamplingState:
    """A state in which a number stands for every row, an array for one each; the rest is off.

    `bias` and `allowed` are one mapping and one set of tokens for all rows, `stop_ids` a list.
    """
    bias, stop_ids = values.pop("bias", {}), values.pop("stop_ids", [])
    off = greedy(batch, vocab, n_bias=_ROOM, n_stop=_ROOM)
    values.setdefault("temperature", 1.0)
    if "allowed" in values:
        mask = np.isin(np.arange(n_words(vocab) * 32), list(values["allowed"]))
        values["allowed"] = np.packbits(mask, bitorder="little").view("<u4")
    none = [-1] * _ROOM
    values["bias_ids"] = [*bias, *none][:_ROOM]
    values["bias_values"] = [*bias.values(), *none][:_ROOM]
    values["stop_ids"] = [*stop_ids, *none][:_ROOM]

    def like(old, value):
        return jnp.asarray(np.broadcast_to(np.asarray(value), old.shape).astype(old.dtype))

    columns = {name: like(getattr(off, name), value) for name, value in values.items()}
    return dataclasses.replace(off, **columns)
