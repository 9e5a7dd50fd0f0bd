"""Rotary position embedding: pairings, frequency factors, linear and YaRN scaling.

Sources: Su et al., "RoFormer" (2021); Peng et al., "YaRN" (2023); GGUF's metadata keys
`rope.*` as llama.cpp reads them.
"""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np

from rfjax.typing import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Rope:
    """Everything that decides the rotation of a head, hashable.

    `pairing`: "interleaved" rotates elements (2i, 2i+1), "half" rotates (i, i + dimension/2).
    `dimension`: rotated elements of a head, from its start. `factor`: context extension (1 means
    none). `attention_factor` multiplies both cosine and sine. `original_context`, `beta_fast`,
    `beta_slow` and `log_multiplier` are YaRN's. A model that corrects its scores elsewhere, as
    DeepSeek 2 does in the scale of its attention, has the `log_multiplier` 1: cosine and sine are
    then those of `attention_factor` alone.
    """

    pairing: Literal["interleaved", "half"]
    dimension: int
    base: float
    scaling: Literal["none", "linear", "yarn"] = "none"
    factor: float = 1.0
    original_context: int = 0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    log_multiplier: float = 0.0


def frequencies(rope: Rope) -> tuple[np.ndarray, float]:
    """Angle per position of each pair, f64 `[dimension/2]`, and the magnitude of the rotation.

    YaRN keeps the fast pairs (more than `beta_fast` turns within the original context), slows the
    slow ones (fewer than `beta_slow` turns) by `factor` and blends between them; the magnitude is
    `yarn_magnitude` of the factor, over that with the `log_multiplier` where there is one; times
    the `attention_factor`.
    """
    half = rope.dimension // 2
    plain = rope.base ** (-2.0 * np.arange(half, dtype=np.float64) / rope.dimension)
    if rope.scaling == "none":
        return plain, rope.attention_factor
    slowed = plain / rope.factor
    if rope.scaling == "linear":
        return slowed, rope.attention_factor

    def pair_turning(turns: float) -> float:
        """Index of the pair that makes `turns` turns within the original context."""
        wavelength = rope.original_context / (turns * 2 * math.pi)
        return rope.dimension * math.log(wavelength) / (2 * math.log(rope.base))

    low = max(0.0, math.floor(pair_turning(rope.beta_fast)))
    high = min(rope.dimension - 1.0, math.ceil(pair_turning(rope.beta_slow)))
    ramp = np.clip((np.arange(half) - low) / max(0.001, high - low), 0.0, 1.0)
    magnitude = yarn_magnitude(rope.factor)
    if rope.log_multiplier:
        magnitude /= yarn_magnitude(rope.factor, rope.log_multiplier)
    return slowed * ramp + plain * (1.0 - ramp), magnitude * rope.attention_factor


def yarn_magnitude(factor: float, multiplier: float = 1.0) -> float:
    """`1 + 0.1 multiplier ln(factor)`: what YaRN multiplies queries and keys by; 1 up to factor 1.

    Scores grow by its square. Source: Peng et al., "YaRN" (2023), section 3.3; the multiplier is
    DeepSeek's `mscale`.
    """
    return 1.0 if factor <= 1.0 else 1.0 + 0.1 * multiplier * math.log(factor)


def rope_tables(
    rope: Rope, positions: Int[Array, " T"], freq_factors: Float[Array, " half"] | None = None
) -> tuple[Float[Array, "T half"], Float[Array, "T half"]]:
    """Cosine and sine of every token's angles, f32 `[T, dimension/2]`, magnitude included.

    `freq_factors` (the tensor `rope_freqs.weight`) divide the angles pair by pair.
    """
    per_position, magnitude = frequencies(rope)
    step = jnp.asarray(per_position.astype(np.float32))
    if freq_factors is not None:
        step = step / freq_factors.astype(jnp.float32)
    angles = positions.astype(jnp.float32)[:, None] * step[None, :]
    scale = np.float32(magnitude)
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def identity_tables(
    n_tokens: int, half: int = 1
) -> tuple[Float[Array, "T half"], Float[Array, "T half"]]:
    """Cosines 1 and sines 0, f32 `[T, half]`: tables that leave every finite head as it is.

    For layers without a rotation, and for heads that are rotated already, where an operation takes
    tables. One pair is enough.
    """
    shape = (n_tokens, half)
    return jnp.ones(shape, jnp.float32), jnp.zeros(shape, jnp.float32)


def apply_rope(
    x: Float[Array, "T N H"],
    cos: Float[Array, "T half"],
    sin: Float[Array, "T half"],
    pairing: Literal["interleaved", "half"],
) -> Float[Array, "T N H"]:
    """Rotate the first `2 * half` elements of every head; computed in f32, dtype of `x` kept."""
    half = cos.shape[-1]
    turned, kept = x[..., : 2 * half].astype(jnp.float32), x[..., 2 * half :]
    if pairing == "interleaved":
        pairs = turned.reshape(*turned.shape[:-1], half, 2)
        a, b = pairs[..., 0], pairs[..., 1]
    else:
        a, b = turned[..., :half], turned[..., half:]
    cos, sin = cos[:, None, :], sin[:, None, :]
    rotated_a, rotated_b = a * cos - b * sin, a * sin + b * cos
    if pairing == "interleaved":
        rotated = jnp.stack([rotated_a, rotated_b], axis=-1).reshape(turned.shape)
    else:
        rotated = jnp.concatenate([rotated_a, rotated_b], axis=-1)
    return jnp.concatenate([rotated.astype(x.dtype), kept], axis=-1)
