"""Negative log-likelihoods against NumPy's log-softmax, and the memory that they take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from rfjax.ops import likelihood
from rfjax.ops.likelihood import token_nll


def reference(hidden, weight, bias, targets):
    logits = hidden.astype(np.float64) @ weight.T.astype(np.float64)
    if bias is not None:
        logits = logits + bias
    top = logits.max(-1, keepdims=True)
    log_total = np.log(np.exp(logits - top).sum(-1)) + top[:, 0]
    return log_total - logits[np.arange(len(targets)), targets]


def draw(n_tokens, vocab, width=12):
    rng = np.random.default_rng(n_tokens)
    return (
        rng.standard_normal((n_tokens, width), np.float32),
        rng.standard_normal((vocab, width), np.float32),
        rng.standard_normal(vocab, np.float32),
        rng.integers(0, vocab, n_tokens).astype(np.int32),
    )


@pytest.mark.parametrize("n_tokens", [1, 2, 1023, 1025, 2048])
def test_every_row_across_the_borders_of_chunks(n_tokens):
    hidden, weight, bias, targets = draw(n_tokens, 37)
    for used in (bias, None) if n_tokens == 1025 else (bias,):
        found = jax.jit(token_nll)(hidden, weight, used, targets)
        assert found.shape == (n_tokens,) and found.dtype == jnp.float32
        assert_allclose(found, reference(hidden, weight, used, targets), rtol=2e-5, atol=2e-5)


def test_a_small_limit_makes_many_chunks(monkeypatch):
    monkeypatch.setattr(likelihood, "_MAX_LOGITS", 17 * 41)
    hidden, weight, bias, targets = draw(100, 41)
    found = token_nll(*map(jnp.asarray, (hidden, weight, bias, targets)))
    assert_allclose(found, reference(hidden, weight, bias, targets), rtol=2e-5, atol=2e-5)


def test_probabilities_sum_to_one():
    hidden, weight, bias, _ = draw(1, 23)
    every = token_nll(
        jnp.asarray(np.repeat(hidden, 23, axis=0)),
        jnp.asarray(weight),
        jnp.asarray(bias),
        jnp.arange(23, dtype=jnp.int32),
    )
    assert float(jnp.exp(-every).sum()) == pytest.approx(1.0, abs=1e-5)


def test_far_logits_do_not_overflow():
    weight = jnp.asarray([[1000.0], [0.0], [-1000.0]])
    found = token_nll(jnp.ones((3, 1)), weight, None, jnp.arange(3, dtype=jnp.int32))
    assert_allclose(found, [0.0, 1000.0, 2000.0])


def _largest(jaxpr):
    """Elements of the largest value anywhere in a jaxpr, those of inner ones included."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [v.aval.size for v in equation.outvars if hasattr(v.aval, "size")]
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
        ):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                sizes.append(_largest(getattr(inner, "jaxpr", inner)))
    return max(sizes)


def test_logits_of_all_tokens_are_never_held():
    """No array of the traced program comes near [T, V], on which perplexity would run out."""
    n_tokens, vocab, width = 1 << 16, 151_936, 64
    shapes = (
        jax.ShapeDtypeStruct((n_tokens, width), jnp.bfloat16),
        jax.ShapeDtypeStruct((vocab, width), jnp.bfloat16),
        jax.ShapeDtypeStruct((n_tokens,), jnp.int32),
    )
    jaxpr = jax.make_jaxpr(lambda h, w, t: token_nll(h, w, None, t))(*shapes)
    largest = _largest(jaxpr.jaxpr)
    assert largest >= 16 * vocab  # the walk reaches the chunk's logits
    assert largest <= max(likelihood._MAX_LOGITS, n_tokens * width, 16 * vocab)
    plain = jax.make_jaxpr(lambda h, w: h @ w.T)(*shapes[:2])
    assert _largest(plain.jaxpr) == n_tokens * vocab  # what it would find otherwise


def test_logits_of_narrow_activations_are_not_rounded():
    """bfloat16 operands, f32 logits: rounding them would move a perplexity by 1e-3."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((32, 16)), jnp.bfloat16)
    weight = jnp.asarray(rng.standard_normal((50, 16)), jnp.bfloat16)
    targets = rng.integers(0, 50, 32)
    logits = np.asarray(hidden, np.float64) @ np.asarray(weight, np.float64).T
    expected = np.log(np.exp(logits).sum(-1)) - logits[np.arange(32), targets]
    got = token_nll(hidden, weight, None, jnp.asarray(targets, jnp.int32))
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_gradients_hold_logits_of_a_few_rows_as_well():
    n_tokens, vocab = 8192, 16384
    shapes = (
        jax.ShapeDtypeStruct((n_tokens, 8), jnp.float32),
        jax.ShapeDtypeStruct((vocab, 8), jnp.float32),
        jax.ShapeDtypeStruct((n_tokens,), jnp.int32),
    )
    gradient = jax.grad(lambda h, w, t: jnp.sum(token_nll(h, w, None, t)))
    held = jax.jit(gradient).lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    assert held < n_tokens * vocab * 4 // 2  # with all of them it was several times that
