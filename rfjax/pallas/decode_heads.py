"""The new token's query and key heads inside the decode kernel: normalised, rotated, scaled."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plt


@dataclasses.dataclass(frozen=True)
class Heads:
    """Static facts about the heads: how they are normalised, rotated and grouped."""

    n_heads: int
    n_kv: int
    pairing: Literal["interleaved", "half"]
    eps: float

    @property
    def group(self) -> int:
        """Query heads of a kv head."""
        return self.n_heads // self.n_kv


def prepare_heads(inputs, row, dims, head_dim, heads: Heads, name: str, head):
    """A new token's query or key heads, normalised and rotated, in f32.

    `head` is one index, which gives `[H]`, or a column of them, which gives `[heads, H]`.
    """
    ref, norm = inputs[name], inputs.get(f"{name}_norm")
    one = jnp.ndim(head) == 0
    shape = dims.shape if one else (head.shape[0], dims.shape[0])

    def load(index):
        real = jnp.broadcast_to(dims < head_dim, shape)
        at = ref.at[row, head, index if one else index[None, :]]
        return plt.load(at, mask=real, other=0).astype(jnp.float32)

    x, inverse = load(dims), None
    if norm is not None:
        mean = jnp.sum(x * x, axis=-1, keepdims=True) / head_dim
        inverse = jnp.broadcast_to(jax.lax.rsqrt(mean + heads.eps), shape)

    def normed(x, index):
        if norm is None or inverse is None:
            return x
        weight = plt.load(norm.at[index], mask=dims < head_dim, other=0).astype(jnp.float32)
        return x * inverse * jnp.broadcast_to(weight, shape)

    tables = inputs["cos"], inputs["sin"]
    if heads.pairing == "half":
        half = tables[0].shape[1]
        partner = jnp.where(dims < half, dims + half, dims - half)
        partner = jnp.where(dims < 2 * half, partner, dims)
        x = _rotate_halves(tables, row, dims, normed(x, dims), normed(load(partner), partner))
    else:
        x = _rotate_neighbours(tables, row, normed(x, dims))
    multiplier = inputs.get("q_multiplier") if name == "q" else None
    if multiplier is not None:
        x = x * multiplier[row]
    return x.astype(ref.dtype).astype(jnp.float32)


def _rotate_halves(tables, row, dims, x, partner):
    """Rotate (i, i + half); `partner` is `x` with these exchanged, read anew."""
    cos_ref, sin_ref = tables
    half = cos_ref.shape[1]
    pair, turned = jnp.where(dims < half, dims, dims - half), dims < 2 * half
    cos = plt.load(cos_ref.at[row, pair], mask=turned, other=1.0)
    sin = plt.load(sin_ref.at[row, pair], mask=turned, other=0.0)
    sin = jnp.where(dims < half, -sin, sin)
    return x * jnp.broadcast_to(cos, x.shape) + partner * jnp.broadcast_to(sin, x.shape)


def _rotate_neighbours(tables, row, x):
    """Rotate (2i, 2i + 1), which are in the same lane's registers."""
    cos_ref, sin_ref = tables
    shape = (*x.shape[:-1], x.shape[-1] // 2)
    pair = jnp.arange(shape[-1], dtype=jnp.int32)
    turned = pair < cos_ref.shape[1]
    cos = jnp.broadcast_to(plt.load(cos_ref.at[row, pair], mask=turned, other=1.0), shape)
    sin = jnp.broadcast_to(plt.load(sin_ref.at[row, pair], mask=turned, other=0.0), shape)
    a, b = (y.reshape(shape) for y in jnp.split(x.reshape(*shape, 2), 2, axis=-1))
    return jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)
