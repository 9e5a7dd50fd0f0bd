"""What attention promises to the last bit in f32 on the CPU, with everything done to scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rfjax.cache.dense import LayerCache
from rfjax.ops.attention import attention
from rfjax.ops.decode_attention import decode_attention
from rfjax.ops.mask import Mask
from rfjax.ops.rope import identity_tables
from rfjax.ops.scores import ScoreTerms, alibi_slopes

N_HEADS, N_KV, SIZE, LENGTH, CAPACITY = 6, 2, 8, 23, 300

TERMS = ScoreTerms(
    sinks=jnp.linspace(-2, 3, N_HEADS, dtype=jnp.float32),
    slopes=jnp.asarray(alibi_slopes(N_HEADS, 8.0)),
    softcap=1.7,
)

jitted = jax.jit(attention, static_argnames=("mask", "scale", "keys_are_queries"))


def draw(batch, n_keys):
    """q [B, L, N, H], k [B, K, S, H], v [B, K, H, S]."""
    rng = np.random.default_rng(0)
    q = rng.standard_normal((batch, LENGTH, N_HEADS, SIZE), np.float32) * 2
    k = rng.standard_normal((batch, N_KV, n_keys, SIZE), np.float32)
    v = rng.standard_normal((batch, N_KV, SIZE, n_keys), np.float32)
    return q, k, v


@pytest.mark.parametrize("own", [True, False], ids=["own keys", "cache"])
def test_a_row_does_not_depend_on_the_rows_beside_it(own):
    q, k, v = draw(5, LENGTH)
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (5, 1))
    positions[3, 7:] = -1
    lengths = np.array([LENGTH, LENGTH, LENGTH, 7, LENGTH], np.int32)
    options = {"mask": Mask(), "scale": 0.4, "terms": TERMS, "keys_are_queries": own}

    def run(rows):
        return jitted(
            q[rows],
            k[rows],
            v[rows],
            query_positions=positions[rows],
            key_lengths=lengths[rows],
            **options,
        )

    whole = np.asarray(run(slice(None)))
    for rows in (slice(1, 2), slice(3, 5)):
        assert_array_equal(run(rows), whole[rows])


@pytest.mark.parametrize("mask", [Mask(), Mask("window", 6)], ids=lambda mask: mask.kind)
def test_steps_are_the_whole(mask):
    """Rows over a cache, in pieces, and token by token with what writes them."""
    q, k, v = draw(2, CAPACITY)
    starts = np.array([0, 261], np.int32)  # the second goes on over a second block of keys
    positions = starts[:, None] + np.arange(LENGTH, dtype=np.int32)
    options = {"mask": mask, "scale": 0.4, "terms": TERMS}

    def piece(begin, end):
        at = positions[:, begin:end]
        lengths = at[:, -1] + 1
        return jitted(q[:, begin:end], k, v, query_positions=at, key_lengths=lengths, **options)

    whole = np.asarray(piece(0, LENGTH))
    assert_array_equal(np.concatenate([piece(0, 9), piece(9, LENGTH)], axis=1), whole)

    step = jax.jit(
        lambda q, k, v, cache, at: decode_attention(
            q,
            k,
            v,
            cache,
            *identity_tables(2),
            positions=at,
            key_lengths=at + 1,
            pairing="half",
            eps=1e-5,
            **options,
        )
    )
    rows = np.arange(2)
    before = np.arange(CAPACITY) < starts[:, None]
    cache = LayerCache(
        k=jnp.asarray(np.where(before[:, None, :, None], k, np.float32(0))),
        v=jnp.asarray(np.where(before[:, None, None, :], v, np.float32(0))),
    )
    for i in range(LENGTH):
        at = positions[:, i]
        out, cache = step(q[:, i], k[rows, :, at], v[rows, :, :, at], cache, at)
        assert_array_equal(out, whole[:, i].reshape(2, -1))
