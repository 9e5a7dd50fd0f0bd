"""Sampling: the order of its steps, the distribution drawn, and what a draw depends on."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from support import sampling_state

from rfjax.ops.penalties import IN_PROMPT
from rfjax.ops.sampling import SamplingContext, SamplingState, greedy, sample

pytestmark = pytest.mark.quick_compile

V = 12
INF = np.inf

step = jax.jit(functools.partial(sample, n_top=20), static_argnames=("processors", "n_top"))


def state(batch: int, vocab: int = V, **values: Any):
    return sampling_state.state(batch, vocab, **values)


def positions(batch, start=0):
    return jnp.arange(start, start + batch, dtype=jnp.int32)


def run(logits, sampling, at, counts=None, rows=None, **static):
    """One step of rows whose slots are their own numbers, where no others are given.

    Rows are repeated up to one of two numbers, so that few programs serve all tests.
    """
    batch, vocab = logits.shape
    counts = np.zeros((batch, vocab), np.int32) if counts is None else counts
    n = 64 if batch <= 64 else 20_000
    repeated = lambda x: jnp.asarray(np.resize(np.asarray(x), (n, *x.shape[1:])))  # noqa: E731
    args = jax.tree.map(repeated, (logits, sampling, counts))
    slots = positions(n) if rows is None else repeated(rows)
    found = step(*args, slots, repeated(at), **static)
    return jax.tree.map(lambda x: np.asarray(x)[:batch], found)


def draw(logits, sampling, at, counts=None):
    return run(logits, sampling, at, counts).token_ids


def logits_of(seed, batch, vocab=V):
    return np.random.default_rng(seed).standard_normal((batch, vocab), np.float32) * 2


def edited(logits, *, bias=(), allowed=None, withheld=(), counts=None, penalties=(1, 0, 0)):
    """One row in f64 after all that greedy rows see, by the documentation's order."""
    x = logits.astype(np.float64)
    if allowed is not None:
        x[~np.isin(np.arange(x.size), list(allowed))] = -INF
    for token, value in dict(bias).items():
        x[token] += value
    x[list(withheld)] = -INF
    if counts is not None:
        repetition, frequency, presence = penalties
        times = counts & (IN_PROMPT - 1)
        x = np.where(counts != 0, np.where(x > 0, x / repetition, x * repetition), x)
        x = x - frequency * times - presence * (times > 0)
    return x


def drawn_from(x, temperature=1.0, min_p=0.0, top_k=0, typical_p=1.0, top_p=1.0):
    """The probabilities that one row's tokens are drawn with, by sorting; no ties in x."""
    kept = x > -INF
    scaled = np.where(kept, x - x.max(), -INF) / temperature

    def shares():
        weights = np.where(kept, np.exp(scaled), 0)
        return weights / weights.sum()

    def nearest(distance, wanted):
        ranked = [i for i in np.argsort(distance, kind="stable") if kept[i]]
        before = np.cumsum(shares()[ranked]) - shares()[ranked]
        return kept & np.isin(
            np.arange(x.size), [i for i, b in zip(ranked, before, strict=True) if b < wanted]
        )

    kept &= np.exp(scaled) >= min_p
    if top_k > 0:
        kept &= np.isin(np.arange(x.size), [i for i in np.argsort(-x) if kept[i]][:top_k])
    if typical_p < 1:
        surprise = -np.log(np.where(kept, shares(), 1))
        kept = nearest(np.abs(surprise - (shares() * surprise).sum()), typical_p)
    if top_p < 1:
        kept = nearest(-x, top_p)
    return shares()


def test_greedy_takes_the_best_whatever_the_filters():
    logits = logits_of(2, 5)
    filters = {"top_k": 3, "top_p": 0.5, "typical_p": 0.5, "min_p": 0.2, "seed": np.arange(5)}
    found = draw(logits, state(5, temperature=0.0, **filters), positions(5))
    assert_array_equal(found, logits.argmax(-1))


def test_greedy_takes_the_first_of_equal_ones():
    logits = np.zeros((2, V), np.float32)
    logits[1, [4, 9]] = 1
    assert_array_equal(draw(logits, state(2, temperature=0.0), positions(2)), [0, 4])


def test_a_low_temperature_is_greedy_and_a_high_one_uniform():
    logits = np.repeat(logits_of(3, 1), 4000, axis=0)
    cold = draw(logits, state(4000, temperature=0.01), positions(4000))
    assert (cold == logits[0].argmax()).all()
    hot = np.bincount(draw(logits, state(4000, temperature=1e4), positions(4000)), minlength=V)
    assert (np.abs(hot - 4000 / V) < 5 * np.sqrt(4000 / V)).all()


@pytest.mark.parametrize("temperature", [1e-38, 1e-6, 1e-5, 2e-5])
def test_the_smallest_temperatures_are_greedy(temperature):
    logits = np.array([[5.0, -3.0, 7.0, 6.999]], np.float32)
    assert draw(logits, state(1, 4, temperature=temperature), positions(1)).tolist() == [2]


@pytest.mark.parametrize(
    "settings_",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 4},
        {"top_p": 0.7},
        {"min_p": 0.15},
        {"typical_p": 0.6},
        {"temperature": 1.7, "min_p": 0.05, "top_k": 8, "typical_p": 0.9, "top_p": 0.8},
    ],
)
@pytest.mark.parametrize("vary", ["position", "seed"])
def test_draws_follow_the_filtered_softmax(settings_, vary):
    """Chi-square over 20000 draws, along positions and along seeds, at five standard deviations."""
    n = 20_000
    row = np.random.default_rng(10).permutation(np.linspace(-2, 1, V, dtype=np.float32))
    expected = drawn_from(row.astype(np.float64), **settings_) * n
    seeds = np.arange(n) if vary == "seed" else 5
    at = positions(n) if vary == "position" else jnp.full(n, 9, jnp.int32)
    found = draw(np.repeat(row[None], n, axis=0), state(n, seed=seeds, **settings_), at)
    counts = np.bincount(found, minlength=V)
    assert counts[expected == 0].sum() == 0
    some = expected > 0
    chi_square = ((counts - expected)[some] ** 2 / expected[some]).sum()
    freedom = some.sum() - 1
    assert freedom > 1
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_everything_together_is_what_the_documentation_says(data):
    """63 draws of a row, never one outside of the expected set; greedy takes its best."""

    def pick(*values):
        return data.draw(st.sampled_from(values))

    n = 64
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    logits = (rng.standard_normal(V) * 2).astype(np.float32)
    counts = (rng.integers(0, 3, V) + IN_PROMPT * rng.integers(0, 2, V)).astype(np.int32)
    bias = {0: pick(0.0, 50.0), 7: -1.25}
    allowed = pick(None, {0, 1, 2, 5, 7, 9, 11}, {3, 9})
    waits = pick(False, True)
    penalties = pick(1.0, 1.3), pick(0.0, 0.4), pick(0.0, -0.7)
    filters = {
        "min_p": pick(0.0, 0.07),
        "top_k": pick(-1, 0, 1, 6),
        "typical_p": pick(1.0, 0.83),
        "top_p": pick(1.0, 1e-4, 0.77),
    }
    x = edited(
        logits,
        bias=bias,
        allowed=allowed,
        withheld=[9, 5] if waits else [],
        counts=counts,
        penalties=penalties,
    )
    sampling = state(
        n,
        temperature=[0.0] + [0.8] * (n - 1),
        bias=bias,
        allowed=range(V) if allowed is None else allowed,
        stop_ids=[9, 5, -1],
        min_length=401 if waits else 0,
        repetition_penalty=penalties[0],
        frequency_penalty=penalties[1],
        presence_penalty=penalties[2],
        seed=np.arange(n),
        **filters,
    )
    found = run(
        np.repeat(logits[None], n, 0),
        sampling,
        jnp.full(n, 400, jnp.int32),
        np.repeat(counts[None], n, 0),
    )
    assert not found.failed.any()
    assert found.token_ids[0] == x.argmax()
    shares = drawn_from(x, 0.8, **filters)
    times = np.bincount(found.token_ids[1:], minlength=V)
    assert times[shares == 0].sum() == 0
    assert (times[shares > 0.2] > 0).all()
    exact = logits - np.log(np.exp(logits.astype(np.float64)).sum())
    assert_allclose(found.logprobs, exact[np.asarray(found.token_ids)], atol=1e-5)


def test_a_bias_moves_greedy_and_cannot_bring_back_what_is_not_allowed():
    logits = np.zeros((1, V), np.float32)
    logits[0, 3] = 2
    cold = functools.partial(state, 1, temperature=0.0)
    assert draw(logits, cold(bias={6: 2.5}), positions(1)) == [6]
    assert draw(logits, cold(bias={6: 100.0}, allowed={3, 4}), positions(1)) == [3]
    assert draw(logits, cold(bias={3: -100.0}, allowed={3, 4}), positions(1)) == [4]
    assert draw(logits, cold(bias={3: -100.0}, allowed={3}), positions(1)) == [3]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 100.0])
def test_one_allowed_token_is_the_one_chosen(temperature):
    filters = {"top_k": 1, "top_p": 0.1, "typical_p": 0.1, "min_p": 1.0}
    sampling = state(50, temperature=temperature, allowed={8}, seed=np.arange(50), **filters)
    assert (draw(logits_of(1, 50), sampling, positions(50)) == 8).all()


def test_stop_tokens_wait_until_min_tokens_others_are_out():
    """A prompt of 5 tokens and min_tokens 3: positions 5, 6 and 7 take none, 8 may."""
    logits = np.zeros((6, V), np.float32)
    logits[:, 2], logits[:, 4] = 3, 2
    sampling = state(6, temperature=0.0, stop_ids=[2, -1], min_length=[8] * 5 + [0])
    at = jnp.array([5, 6, 7, 8, 9, 5], jnp.int32)
    assert draw(logits, sampling, at).tolist() == [4, 4, 4, 2, 2, 2]


def test_the_penalties_of_a_row_are_those_of_its_slot():
    logits = np.zeros((2, V), np.float32)
    logits[:, 3], logits[:, 7] = 2.0, 1.9
    counts = np.zeros((3, V), np.int32)
    counts[2, 3] = IN_PROMPT
    rows = jnp.array([2, 0], jnp.int32)
    for penalty, expected in (
        ({"repetition_penalty": 1.2}, [7, 3]),
        ({"frequency_penalty": 0.2}, [3, 3]),
    ):
        sampling = state(2, V, temperature=0.0, **penalty)
        found = run(logits, sampling, positions(2), counts, rows)
        assert found.token_ids.tolist() == expected


def forbid_what_was_seen(logits, context):
    return jnp.where(context.seen() | (context.output_counts() > 5), -jnp.inf, logits)


def favour_by_position(logits, context):
    ids = jnp.arange(logits.shape[1], dtype=jnp.int32)
    return jnp.where(ids[None, :] == context.positions[:, None] % V, 90.0, logits)


def not_a_number(logits, context):
    return jnp.where(context.positions[:, None] == 1, jnp.nan, logits)


def test_processors_run_in_turn_between_biases_and_stop_tokens():
    logits = logits_of(6, 3)
    sampling = state(3, temperature=0.0, stop_ids=[4], min_length=100, bias={1: 50.0})
    counts = np.zeros((3, V), np.int32)
    counts[:, 1] = IN_PROMPT
    at = jnp.array([4, 5, 6], jnp.int32)
    found = run(logits, sampling, at, counts, processors=(favour_by_position,))
    assert found.token_ids.tolist() == [1, 5, 6]
    own = run(logits, state(3, temperature=0.0, allowed={5}), at).logprobs[1]
    assert found.logprobs[1] == own  # the model's own, whatever is made of its logits
    both = favour_by_position, forbid_what_was_seen
    found = run(logits, sampling, at, counts, processors=both).token_ids.tolist()
    assert found[1:] == [5, 6] and found[0] not in (1, 4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_fails_its_row_and_no_other(temperature):
    logits = logits_of(7, 6)
    sampling = state(6, temperature=temperature, seed=3, n_logprobs=2)
    clean = run(logits, sampling, positions(6))
    bad = logits.copy()
    bad[1, 4], bad[3, 0], bad[4] = np.nan, INF, -INF
    found = run(bad, sampling, positions(6))
    assert_array_equal(found.failed, [False, True, False, True, True, False])
    assert np.isnan(found.logprobs[found.failed]).all()
    assert (found.token_ids[found.failed] == 0).all()
    for name in ("token_ids", "logprobs", "top_ids", "top_logprobs"):
        assert_array_equal(getattr(found, name)[~found.failed], getattr(clean, name)[~found.failed])


def test_nothing_allowed_and_a_processors_nan_fail():
    logits = logits_of(8, 3)
    nothing = run(logits, state(3, allowed={4}, stop_ids=[4], min_length=[0, 9, 9]), positions(3))
    assert_array_equal(nothing.failed, [False, True, True])
    assert_array_equal(np.isnan(nothing.logprobs), nothing.failed)
    processed = run(logits, state(3), positions(3), processors=(not_a_number,))
    assert_array_equal(processed.failed, [False, True, False])


def test_each_row_gets_the_log_probabilities_that_it_asks_for():
    vocab = 300
    logits = logits_of(9, 4, vocab)
    asked = [-1, 0, 3, 20]
    found = run(logits, state(4, vocab, n_logprobs=asked, seed=4), positions(4))
    exact = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    for row, n in enumerate(asked):
        n = max(n, 0)
        best = np.argsort(-logits[row], kind="stable")[:n]
        assert_array_equal(found.top_ids[row], [*best, *[-1] * (20 - n)])
        assert_allclose(found.top_logprobs[row, :n], exact[row, best], atol=1e-5)
        assert (found.top_logprobs[row, n:] == -INF).all()
    cold = run(logits, state(4, vocab, n_logprobs=1, temperature=0.0), positions(4))
    assert_array_equal(cold.top_ids[:, 0], cold.token_ids)
    assert_array_equal(cold.top_logprobs[:, 0], cold.logprobs)


def test_the_same_seed_and_position_draw_the_same_token():
    logits = np.repeat(logits_of(7, 1), 64, axis=0)
    same = jnp.full(64, 3, jnp.int32)
    assert len(set(draw(logits, state(64, seed=11), same).tolist())) == 1
    by_seed = draw(logits, state(64, seed=np.arange(64)), same)
    by_position = draw(logits, state(64, seed=11), positions(64))
    assert len(set(by_seed.tolist())) > 3 and len(set(by_position.tolist())) > 3


def test_the_largest_seed_works():
    token = draw(logits_of(8, 1), state(1, seed=2**32 - 1), positions(1))
    assert 0 <= int(token[0]) < V


def test_one_program_serves_every_mixture():
    traces = []

    @jax.jit
    def traced(logits, sampling, counts, at):
        traces.append(1)
        return sample(logits, sampling, counts, jnp.arange(3, dtype=jnp.int32), at, n_top=20)

    for parameters in (
        {"temperature": 0.0},
        {"temperature": [0.0, 1.0, 2.0], "top_k": [0, 5, 1], "min_length": [9, 0, 0]},
        {"top_p": 0.3, "min_p": [0.0, 0.1, 0.9], "repetition_penalty": 1.3, "seed": [1, 2, 3]},
    ):
        sampling = state(3, V, **parameters, stop_ids=[1], bias={2: 1.0})
        traced(logits_of(9, 3), sampling, jnp.zeros((3, V), jnp.int32), positions(3))
    assert len(traces) == 1


def test_a_context_is_made_of_the_steps_rows():
    context = SamplingContext(
        greedy(2, V),
        jnp.arange(3 * V, dtype=jnp.int32).reshape(3, V),
        jnp.array([2, 5]),
        positions(2),
    )
    assert_array_equal(context.row_counts()[:, 0], [2 * V, 2 * V])  # padding is clipped
    assert isinstance(context.state, SamplingState)
