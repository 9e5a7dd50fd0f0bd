"""Attention by a loop over queries in NumPy f64, and random rows for it."""

import numpy as np


def visible(mask, query: int, key: int) -> bool:
    """Whether a query at a position sees a key at another."""
    if mask.kind == "bidirectional":
        return True
    if mask.kind == "window" and query - key >= mask.size:
        return False
    if mask.kind == "chunked" and query // mask.size != key // mask.size:
        return False
    return key <= query


def attention_reference(q, k, v, positions, lengths, mask, scale, terms=None):
    """q [B, L, N, H], k [B, K, S, H], v [B, K, H, S] -> f64 [B, L, N, H]; zeros at padding.

    Args:
        terms: a `ScoreTerms`; None has no further terms.
    """
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    softcap = 0.0 if terms is None else terms.softcap
    slopes, sinks = np.zeros(q.shape[2]), np.full(q.shape[2], -np.inf)
    if terms is not None and terms.slopes is not None:
        slopes = np.asarray(terms.slopes, np.float64)
    if terms is not None and terms.sinks is not None:
        sinks = np.asarray(terms.sinks, np.float64)
    positions, lengths = np.asarray(positions), np.asarray(lengths)
    out = np.zeros(q.shape)
    group = q.shape[2] // k.shape[1]
    for b, t in np.ndindex(positions.shape):
        if positions[b, t] < 0:
            continue
        keys = range(min(k.shape[2], lengths[b]))
        seen = [s for s in keys if visible(mask, positions[b, t], s)]
        if not seen:
            continue
        for n in range(q.shape[2]):
            scores = k[b, n // group, seen] @ q[b, t, n] * scale
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            scores = scores + slopes[n] * (np.array(seen) - positions[b, t])
            highest = max(scores.max(), sinks[n])
            weights = np.exp(scores - highest)
            total = weights.sum() + np.exp(sinks[n] - highest)
            out[b, t, n] = v[b, n // group][:, seen] @ (weights / total)
    return out
