"""What is not a number stays so through the prefill kernel, and reaches only who sees it."""

import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.ops.mask import Mask
from rfjax.pallas.prefill_attention import prefill_attention

pytestmark = pytest.mark.quick_compile


@pytest.mark.parametrize("where", ["query", "key"])
def test_nan_shows_where_it_is_seen(where):
    rng = np.random.default_rng(0)
    q = rng.standard_normal((1, 16, 2, 16)).astype(np.float32)
    k, v = (rng.standard_normal(s).astype(np.float32) for s in ((1, 1, 16, 16), (1, 1, 16, 16)))
    (q[0, 5] if where == "query" else k[0, 0, 5])[...] = np.nan
    out = prefill_attention(
        jnp.asarray(q),
        jnp.asarray(k),
        jnp.asarray(v),
        query_positions=jnp.arange(16, dtype=jnp.int32)[None],
        key_lengths=jnp.array([16], jnp.int32),
        mask=Mask("window", 4),
        scale=0.25,
        target="interpret",
    )
    seen = np.isnan(np.asarray(out)).all(axis=(0, 2, 3))
    reached = {5} if where == "query" else {5, 6, 7, 8}
    assert set(np.flatnonzero(seen)) == reached
    assert np.isfinite(np.asarray(out)[:, sorted(set(range(16)) - reached)]).all()
