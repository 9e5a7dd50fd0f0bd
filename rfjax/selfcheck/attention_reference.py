"""Attention in NumPy f64, with what comes before it, and random arrays to try it on."""

import jax.numpy as jnp
import numpy as np

from rfjax.ops.mask import Mask
from rfjax.ops.scores import NO_TERMS, ScoreTerms

LIMITS = {"float32": 3e-5, "float16": 2e-3, "bfloat16": 1.2e-2}
"""Largest relative errors of kernels by the activations' dtype, in which weights and results are
rounded: half a unit is 2^-11 or 2^-8."""

EPS = 1e-6
"""Of norms."""


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Normal values of a dtype that JAX knows."""
    return rng.standard_normal(shape).astype(jnp.dtype(dtype))


def normalised(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """RMS norm over the last axis."""
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + EPS) * weight


def rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, pairing: str) -> np.ndarray:
    """Heads `[B, N, H]` turned by the angles of their rows."""
    x, half = x.copy(), cos.shape[-1]
    first = slice(0, 2 * half, 2) if pairing == "interleaved" else slice(0, half)
    second = slice(1, 2 * half, 2) if pairing == "interleaved" else slice(half, 2 * half)
    a, b = x[..., first].copy(), x[..., second].copy()
    cos, sin = cos[:, None].astype(np.float64), sin[:, None].astype(np.float64)
    x[..., first], x[..., second] = a * cos - b * sin, a * sin + b * cos
    return x


def attention_reference(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    positions: np.ndarray,
    lengths: np.ndarray,
    mask: Mask,
    scale: float,
    terms: ScoreTerms = NO_TERMS,
) -> np.ndarray:
    """`rfjax.ops.attention.attention` in f64, with zeros at padding.

    Args:
        q: [B, L, N, H].
        k: [B, K, S, H].
        v: [B, K, H, S].
        positions: [B, L] of the queries, -1 at padding.
        lengths: [B] numbers of keys.
        terms: of the scores, in NumPy.
    """
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    batch, length, n_heads, size = q.shape
    n_kv, n_keys = k.shape[1], k.shape[2]
    grouped = q.reshape(batch, length, n_kv, -1, size)
    scores = np.einsum("blkgh,bksh->bklgs", grouped, k) * scale
    keys, queries = np.arange(n_keys)[None, None], positions[:, :, None]
    of_heads = (1, n_kv, 1, n_heads // n_kv, 1)
    if terms.softcap:
        scores = terms.softcap * np.tanh(scores / terms.softcap)
    if terms.slopes is not None:
        slopes = np.asarray(terms.slopes, np.float64).reshape(of_heads)
        scores = scores + slopes * (keys - queries)[:, None, :, None]
    visible = (keys < lengths[:, None, None]) & (queries >= 0)
    if mask.kind != "bidirectional":
        visible &= keys <= queries
    if mask.kind == "window":
        visible &= queries - keys < mask.size
    elif mask.kind == "chunked":
        visible &= keys // mask.size == queries // mask.size
    visible = visible[:, None, :, None]
    scores = np.where(visible, scores, -np.inf)
    highest = np.max(scores, axis=-1, keepdims=True)
    sinks = np.full(of_heads, -np.inf)
    if terms.sinks is not None:
        sinks = np.asarray(terms.sinks, np.float64).reshape(of_heads)
    highest = np.maximum(highest, sinks)
    highest = np.where(np.isfinite(highest), highest, 0)
    weights = np.exp(scores - highest)
    total = weights.sum(axis=-1, keepdims=True) + np.exp(sinks - highest)
    weights /= np.maximum(total, 1e-300)
    out = np.einsum("bklgs,bkhs->blkgh", weights, v)
    return out.reshape(batch, length, n_heads, size)
