import jax
import numpy as np
import pytest

from rfjax.engine.state import chosen_logprobs


@pytest.mark.parametrize("vocab", [7, 1024, 4099])
def test_a_tokens_logprob_is_the_same_bit_for_bit_whatever_rows_are_beside_it(vocab):
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((32, vocab)) * 5).astype(np.float32)
    chosen = rng.integers(0, vocab, 32).astype(np.int32)
    jitted = jax.jit(chosen_logprobs)
    together = np.asarray(jitted(logits, chosen))
    for n_rows in (1, 2, 4, 16):
        parts = [
            np.asarray(jitted(logits[start : start + n_rows], chosen[start : start + n_rows]))
            for start in range(0, 32, n_rows)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), together)
    wide = logits.astype(np.float64)
    expected = wide[np.arange(32), chosen] - np.log(np.exp(wide).sum(axis=1))
    np.testing.assert_allclose(together, expected, rtol=1e-6, atol=1e-5)
