"""Divergences of rows of logits against f64, at every size from rounding noise to far apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfjax.ops import likelihood
from rfjax.ops.divergence import Head, head_divergences, row_divergences

pytestmark = pytest.mark.quick_compile

rows_compiled = jax.jit(row_divergences)


def in_f64(base, logits, targets):
    """nll, nll_base, kld and p_diff by their definitions."""

    def log_softmax(x):
        x = x.astype(np.float64)
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    logp, logq = log_softmax(base), log_softmax(logits)
    places = np.arange(len(targets)), targets
    kld = (np.exp(logp) * (logp - logq)).sum(-1)
    return -logq[places], -logp[places], kld, np.exp(logq[places]) - np.exp(logp[places])


@pytest.mark.parametrize("vocab", [37, 5000])
@pytest.mark.parametrize("apart", [1e-4, 1e-3, 1e-2, 0.3, 1.0, 6.0])
def test_every_figure_is_that_of_f64(vocab, apart):
    """Tolerances: log-probabilities of a size of 20 are rounded to 1e-6, which is relative in the
    probabilities; and their differences to 1e-7, which shows where they are 1e-4."""
    rng = np.random.default_rng(vocab)
    base = (4 * rng.standard_normal((16, vocab))).astype(np.float32)
    logits = (base + apart * rng.standard_normal((16, vocab))).astype(np.float32)
    targets = rng.integers(0, vocab, 16).astype(np.int32)
    found = rows_compiled(base, logits, targets)
    nll, nll_base, kld, p_diff = in_f64(base, logits, targets)
    np.testing.assert_allclose(found.kld, kld, rtol=1e-4 if apart < 1e-3 else 1e-5)
    np.testing.assert_allclose(found.nll, nll, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(found.nll_base, nll_base, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(found.p_diff, p_diff, atol=1e-6)
    assert (found.same_top == (base.argmax(-1) == logits.argmax(-1))).all()


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.floats(0.4, 0.6), st.floats(-40, 40))
def test_nothing_jumps_where_the_series_ends(apart, level):
    """Two tokens, whose log-probabilities differ by amounts on both sides of the border."""
    base = np.asarray([[level, level - 1.0]] * 2, np.float32)
    logits = base + np.asarray([[apart, 0.0], [0.0, apart]], np.float32)
    targets = np.zeros(2, np.int32)
    found = rows_compiled(base, logits, targets)
    np.testing.assert_allclose(found.kld, in_f64(base, logits, targets)[2], rtol=2e-5)


def test_equal_rows_are_at_no_distance():
    rng = np.random.default_rng(0)
    logits = (10 * rng.standard_normal((8, 1000))).astype(np.float32)
    found = rows_compiled(logits, logits, np.zeros(8, np.int32))
    assert (np.asarray(found.kld) == 0).all() and (np.asarray(found.p_diff) == 0).all()
    assert np.asarray(found.same_top).all()


def test_what_is_ruled_out_counts_as_the_definition_says():
    """By both: nothing. By the base: what the model gives it away. By the model: infinity."""
    minus = -np.inf
    base = np.asarray([[0, 0, minus], [0, 0, minus], [0, 0, 0]], np.float32)
    logits = np.asarray([[0, 1, minus], [0, 0, 0], [0, 0, minus]], np.float32)
    found = rows_compiled(base, logits, np.zeros(3, np.int32))
    q = 1 / (1 + np.e)
    expected = [0.5 * np.log(0.5 / q) + 0.5 * np.log(0.5 / (1 - q)), np.log(1.5), np.inf]
    np.testing.assert_allclose(found.kld, expected, rtol=1e-6)


def test_nan_is_not_hidden():
    base = np.asarray([[np.nan, 0.0], [0.0, 0.0]], np.float32)
    logits = np.asarray([[0.0, 0.0], [np.nan, 0.0]], np.float32)
    found = rows_compiled(base, logits, np.ones(2, np.int32))
    assert np.isnan(found.nll_base).tolist() == [True, False]
    assert np.isnan(found.nll).tolist() == [False, True]


def test_the_gradient_is_the_difference_of_the_distributions():
    rng = np.random.default_rng(1)
    base, logits = rng.standard_normal((2, 3, 11)).astype(np.float32)
    targets = jnp.zeros(3, jnp.int32)
    gradient = jax.jit(jax.grad(lambda x: row_divergences(base, x, targets).kld.sum()))(logits)
    expected = jax.nn.softmax(logits, axis=-1) - jax.nn.softmax(base, axis=-1)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_models_of_other_widths_in_chunks_of_rows(monkeypatch):
    """Many chunks give what all logits at once give."""
    monkeypatch.setattr(likelihood, "_MAX_LOGITS", 1)  # the least: 16 rows at a time
    rng = np.random.default_rng(2)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    base, heads = (
        Head(draw(23, 8), None),
        (Head(draw(23, 12), draw(23), 0.5), Head(draw(23, 8), None, 1.0, 3.0)),
    )
    base_hidden, hidden = draw(37, 8), (draw(37, 12), draw(37, 8))
    targets = jnp.asarray(rng.integers(0, 23, 37), jnp.int32)
    found = jax.jit(head_divergences)(base, heads, base_hidden, hidden, targets)
    for each, head, own in zip(found, heads, hidden, strict=True):
        expected = rows_compiled(base.logits(base_hidden), head.logits(own), targets)
        for value, wanted in zip(jax.tree.leaves(each), jax.tree.leaves(expected), strict=True):
            assert value.shape == (37,)
            np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-5)
