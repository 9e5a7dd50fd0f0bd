"""Random queries, keys and values for measuring attention, and its results in f64."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from rfjax.bench.attention_case import AttentionCase
from rfjax.typing import Array, Float


def drawer(dtype: str, seed: int) -> Callable[[tuple[int, ...]], Array]:
    """Normal values, other ones at each call."""
    normal = jax.jit(jax.random.normal, static_argnums=(1, 2))
    keys = (jax.random.fold_in(jax.random.key(seed), i) for i in range(1 << 30))
    return lambda shape: normal(next(keys), shape, dtype)


def error_of(
    found: np.ndarray,
    q: Float[np.ndarray, "L N H"],
    k: Float[np.ndarray, "K S H"],
    v: Float[np.ndarray, "K H S"],
    case: AttentionCase,
) -> float:
    """Norm of the difference from f64, over its norm, of results `[L, N, H]` of the last L tokens.

    Args:
        q, k, v: of one sequence.
    """
    wide = functools.partial(np.asarray, dtype=np.float64)
    group = case.n_heads // case.n_kv_heads
    queries = wide(q).reshape(q.shape[0], case.n_kv_heads, group, case.head_dim)
    scores = np.einsum("lkgh,ksh->lkgs", queries, wide(k)) * case.head_dim**-0.5
    last = np.arange(case.length - q.shape[0], case.length)
    hidden = np.arange(case.length)[None, :] > last[:, None]
    scores = np.where(hidden[:, None, None, :], -np.inf, scores)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    expected = np.einsum("lkgs,khs->lkgh", weights, wide(v)).reshape(found.shape)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
