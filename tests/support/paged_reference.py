"""Attention over pages by a loop over queries in NumPy f64, and random page tables for it."""

import numpy as np
from support.attention_reference import visible


def paged_attention_reference(
    q, k_pages, v_pages, table, positions, lengths, mask, scale, terms=None
):
    """q [B, L, N, H], pages [P, K, C, H], table [B, M] -> f64 [B, L, N, H]; zeros at padding.

    Nothing but visible keys and values is read. Of an 8-bit cache pass `dequantized` pages.

    Args:
        positions: [B, L] of the queries, -1 at padding.
        lengths: [B] number of keys of each row.
        terms: a `ScoreTerms`; None has no further terms.
    """
    q, k_pages, v_pages = (np.asarray(x, np.float64) for x in (q, k_pages, v_pages))
    table, positions, lengths = (np.asarray(x) for x in (table, positions, lengths))
    size = k_pages.shape[2]
    group = q.shape[2] // k_pages.shape[1]
    sinks = slopes = None
    if terms is not None:
        sinks = None if terms.sinks is None else np.asarray(terms.sinks, np.float64)
        slopes = None if terms.slopes is None else np.asarray(terms.slopes, np.float64)
    out = np.zeros(q.shape)
    for b, t in np.ndindex(positions.shape):
        query = int(positions[b, t])
        if query < 0:
            continue
        keys = range(min(table.shape[1] * size, int(lengths[b])))
        seen = np.array([s for s in keys if visible(mask, query, s)], int)
        if not seen.size:
            continue
        pages, places = table[b, seen // size], seen % size
        for n in range(q.shape[2]):
            scores = k_pages[pages, n // group, places] @ q[b, t, n] * scale
            if terms is not None and terms.softcap:
                scores = terms.softcap * np.tanh(scores / terms.softcap)
            if slopes is not None:
                scores = scores + slopes[n] * (seen - query)
            highest = scores.max() if sinks is None else max(scores.max(), sinks[n])
            weights = np.exp(scores - highest)
            total = weights.sum() + (0 if sinks is None else np.exp(sinks[n] - highest))
            out[b, t, n] = (weights / total) @ v_pages[pages, n // group, places]
    return out


def dequantized(values, scales):
    """Pages of an 8-bit cache, int8 [P, K, C, H] and f32 [P, K, C], as f64."""
    return np.asarray(values, np.float64) * np.asarray(scales, np.float64)[..., None]


def random_table(rng, batch, max_pages, n_pages):
    """int32 [batch, max_pages]: every entry another page, none of them page 0."""
    pages = 1 + rng.permutation(n_pages - 1)[: batch * max_pages]
    return pages.reshape(batch, max_pages).astype(np.int32)


def poisoned(pages, table, positions, mask):
    """Pages with NaN wherever no row's next query looks.

    That is: in pages of no row, from each row's position on, and behind its window or chunk.

    Args:
        pages: [P, K, C, H].
        table: of rows that do not share pages.
        positions: [B] of the next queries.
    """
    pages = np.array(pages)
    needed = np.zeros((pages.shape[0], pages.shape[2]), bool)
    size = pages.shape[2]
    for row, position in zip(np.asarray(table), np.asarray(positions), strict=True):
        for key in range(min(int(position), len(row) * size)):
            needed[row[key // size], key % size] |= visible(mask, int(position), key)
    pages[~np.broadcast_to(needed[:, None], pages.shape[:3])] = np.nan
    return pages
