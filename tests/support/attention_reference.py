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


def attention_reference(q, k, v, positions, lengths, mask, scale):
    """q [B, L, N, H], k [B, K, S, H], v [B, K, H, S] -> f64 [B, L, N, H]; zeros at padding."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
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
            weights = np.exp(scores - scores.max())
            out[b, t, n] = v[b, n // group][:, seen] @ (weights / weights.sum())
    return out
