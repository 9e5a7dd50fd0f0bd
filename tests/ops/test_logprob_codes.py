"""Log-probabilities in 16 bits: against the coding written out in numpy, and what it loses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfjax.ops.logprob_codes import coded_divergences, decoded, encoded

pytestmark = pytest.mark.quick_compile

ROWS, VOCAB = 6, 33


def logits_of(seed, spread):
    """Rows of one shape, so that one program is compiled."""
    return np.random.default_rng(seed).normal(0, spread, (ROWS, VOCAB)).astype(np.float32)


def log_softmax(logits):
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def reference(logits):
    """A row's codes, step by step in f32."""
    f32 = np.float32
    highest = logits.max()
    least = max(logits.min(), highest - f32(16))
    log_total = f32(np.log(np.exp((logits - highest).astype(np.float64)).sum()))
    scale = f32((highest - least) / f32(65535))
    codes = np.zeros(len(logits), np.uint16)
    if scale:
        above = logits > least
        codes[above] = np.rint((f32(1) / scale) * (logits[above] - least))
    numbers = np.array([scale, least - highest - log_total], f32)
    return np.concatenate([numbers.view(np.uint16), codes, np.zeros(len(codes) % 2, np.uint16)])


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(0, 999), st.sampled_from([1e-3, 0.5, 3.0, 20.0, 1e4]))
def test_codes_are_those_of_the_steps_in_f32(seed, spread):
    logits = logits_of(seed, spread)
    found = np.asarray(encoded(logits))
    expected = np.stack([reference(row) for row in logits])
    assert found.shape == (ROWS, 4 + VOCAB + 1) and found.dtype == np.uint16
    numbers, wanted = (x[:, :4].copy().view(np.float32) for x in (found, expected))
    np.testing.assert_allclose(numbers, wanted, rtol=2e-6)
    differ = found[:, 4:].astype(int) - expected[:, 4:]
    assert np.abs(differ).max() <= 1  # a product that XLA rounds otherwise, next to a half
    assert (differ != 0).mean() < 0.02


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(0, 999), st.sampled_from([0.5, 3.0, 20.0]))
def test_what_is_decoded_is_half_a_step_off_and_ends_16_nats_down(seed, spread):
    logits = logits_of(seed, spread)
    codes = np.asarray(encoded(logits))
    scale = codes[:, :2].copy().view(np.float32)
    true = log_softmax(logits)
    kept = np.maximum(true, true.max(-1, keepdims=True) - 16)
    error = np.abs(np.asarray(decoded(codes, VOCAB)) - kept)
    assert (error <= 0.51 * scale + 4e-6).all()
    assert scale.max() <= 16 / 65535 * 1.001


def test_halves_are_rounded_to_even():
    logits = np.zeros((ROWS, VOCAB), np.float32)
    logits[:, :5] = 65535 / 4096, 0.5 / 4096, 1.5 / 4096, 2.5 / 4096, 3.5 / 4096
    codes = np.asarray(encoded(logits))
    assert codes[0, 4:10].tolist() == [65535, 0, 2, 2, 4, 0]


def test_equal_logits_have_no_scale():
    codes = np.asarray(encoded(np.full((ROWS, VOCAB), 3.5, np.float32)))
    assert not codes[:, :2].any() and not codes[:, 4:].any()
    np.testing.assert_allclose(np.asarray(decoded(codes, VOCAB)), -np.log(VOCAB), rtol=1e-6)


def test_a_token_that_is_ruled_out_reads_as_16_below():
    logits = logits_of(0, 1.0)
    logits[:, 7] = -np.inf
    found = np.asarray(decoded(np.asarray(encoded(logits)), VOCAB))
    np.testing.assert_allclose(found[:, 7], found.max(-1) - 16, atol=1e-5)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.integers(0, 999), st.sampled_from([0.5, 3.0, 20.0]))
def test_divergences_are_the_sums_over_the_codes(seed, spread):
    base = logits_of(seed, spread)
    logits = base + logits_of(seed + 1, 0.3)
    wanted = np.random.default_rng(seed).integers(0, VOCAB, ROWS).astype(np.int32)
    codes = np.asarray(encoded(base))
    found = coded_divergences(codes, logits, wanted)
    logp, logq = np.asarray(decoded(codes, VOCAB)).astype(np.float64), log_softmax(logits)
    rows = np.arange(ROWS)
    terms = np.where(logp > -16, np.exp(logp) * (logp - logq), 0)
    np.testing.assert_allclose(found.kld, terms.sum(-1), rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(found.nll, -logq[rows, wanted], rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(found.nll_base, -logp[rows, wanted], rtol=1e-6)
    difference = np.exp(logq[rows, wanted]) - np.exp(logp[rows, wanted])
    np.testing.assert_allclose(found.p_diff, difference, atol=2e-6)
    assert np.asarray(found.same_top).tolist() == (logp.argmax(-1) == logq.argmax(-1)).tolist()


def test_rows_beside_their_own_codes_are_as_far_as_the_coding():
    logits = logits_of(3, 2.0)
    wanted = np.zeros(ROWS, np.int32)
    found = coded_divergences(np.asarray(encoded(logits)), logits, wanted)
    assert np.abs(np.asarray(found.kld)).max() < 1e-4
    assert np.asarray(found.same_top).all()


def test_of_equally_likely_tokens_the_first_counts():
    base = np.zeros((ROWS, VOCAB), np.float32)
    base[:, [4, 9]] = 2.0
    logits = base.copy()
    logits[:3, 9] += 1.0
    found = coded_divergences(np.asarray(encoded(base)), logits, np.zeros(ROWS, np.int32))
    assert np.asarray(found.same_top).tolist() == [False] * 3 + [True] * 3
