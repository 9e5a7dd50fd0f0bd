"""Sampling states for tests: what is not named is off."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from rfjax.ops.sampling import SamplingState, greedy


def state(batch, vocab, **values) -> SamplingState:
    """A state in which a number stands for every row, an array for one each; the rest is off.

    `bias` and `allowed` are one mapping and one set of tokens for all rows, `stop_ids` a list.
    """
    bias, stop_ids = values.pop("bias", {}), values.pop("stop_ids", [])
    off = greedy(batch, vocab, n_bias=len(bias), n_stop=len(stop_ids))
    values.setdefault("temperature", 1.0)
    if "allowed" in values:
        mask = np.isin(np.arange(-(-vocab // 32) * 32), list(values["allowed"]))
        words = np.packbits(mask, bitorder="little").view("<u4")
        values["allowed"] = np.broadcast_to(words, (batch, words.size))
    if bias:
        values["bias_ids"] = np.broadcast_to(list(bias), (batch, len(bias)))
        values["bias_values"] = np.broadcast_to(list(bias.values()), (batch, len(bias)))
    if stop_ids:
        values["stop_ids"] = np.broadcast_to(stop_ids, (batch, len(stop_ids)))

    def like(old, value):
        return jnp.asarray(np.broadcast_to(np.asarray(value), old.shape).astype(old.dtype))

    columns = {name: like(getattr(off, name), value) for name, value in values.items()}
    return dataclasses.replace(off, **columns)
