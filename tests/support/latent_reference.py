"""Latent attention in NumPy f64: keys and values of every head made, then a plain softmax."""

import numpy as np


def rms(x, weight, eps):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def rotated(x, positions, base):
    """Pairs (2i, 2i+1) of [T, N, H] as complex numbers, turned by their positions' angles."""
    half = x.shape[-1] // 2
    angles = positions[:, None] * base ** (-np.arange(half) / half)
    turned = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)[:, None]
    return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)


def latent_reference(weights, x, latent, n_heads, *, scale, eps, base, growth=None):
    """What the heads of one causal sequence attend to, f64 [T, N * V], before `attn_output`.

    Args:
        weights: by stem; `attn_k_b` and `attn_v_b`, or `attn_kv_b`.
        x: [T, D], before `attn_norm`.
        latent: the sizes.
        scale: of the scores.
        base: of the rotation.
        growth: (scale, length): queries at p are multiplied by 1 + scale ln(1 + p // length).
    """
    w = {stem: np.asarray(weight, np.float64) for stem, weight in weights.items()}
    x, positions = np.asarray(x, np.float64), np.arange(len(x))
    nope, rank = latent.nope_dim, latent.kv_rank
    h = rms(x, w["attn_norm"], eps)
    if latent.q_rank:
        q = rms(h @ w["attn_q_a"].T, w["attn_q_a_norm"], eps) @ w["attn_q_b"].T
    else:
        q = h @ w["attn_q"].T
    q = q.reshape(len(x), n_heads, -1)
    q = np.concatenate([q[..., :nope], rotated(q[..., nope:], positions, base)], axis=-1)
    if growth is not None:
        q = q * (1 + growth[0] * np.log1p(positions // growth[1]))[:, None, None]
    joint = h @ w["attn_kv_a_mqa"].T
    c = rms(joint[:, :rank], w["attn_kv_a_norm"], eps)
    shared = rotated(joint[:, None, rank:], positions, base)[:, 0]
    heads = []
    for n in range(n_heads):
        if latent.split:
            k, v = c @ w["attn_k_b"][n], c @ w["attn_v_b"][n].T
        else:
            both = w["attn_kv_b"].reshape(n_heads, -1, rank)[n]
            k, v = c @ both[:nope].T, c @ both[nope:].T
        scores = q[:, n] @ np.concatenate([k, shared], axis=-1).T * scale
        scores[positions[:, None] < positions] = -np.inf
        probability = np.exp(scores - scores.max(axis=-1, keepdims=True))
        heads.append(probability / probability.sum(axis=-1, keepdims=True) @ v)
    return np.concatenate(heads, axis=-1)
