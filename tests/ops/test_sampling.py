"""Sampling: the sets that filters keep, the distribution drawn, and what a draw depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rfjax.ops.sampling import SamplingState, filter_logits, penalize, sample

pytestmark = pytest.mark.quick_compile

V = 12

draw = jax.jit(sample)
filtered = jax.jit(filter_logits)


def state(
    batch,
    vocab=V,
    *,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    penalty=1.0,
    seed=0,
    seen=None,
):
    """A state in which a number stands for every sequence, an array for one each."""

    def rows(value, dtype):
        return jnp.asarray(np.broadcast_to(np.asarray(value), (batch,)).astype(dtype))

    return SamplingState(
        temperature=rows(temperature, np.float32),
        top_k=rows(top_k, np.int32),
        top_p=rows(top_p, np.float32),
        min_p=rows(min_p, np.float32),
        repetition_penalty=rows(penalty, np.float32),
        seed=rows(seed, np.uint32),
        seen=jnp.zeros((batch, vocab), bool) if seen is None else jnp.asarray(seen),
    )


def positions(batch, start=0):
    return jnp.arange(start, start + batch, dtype=jnp.int32)


def logits_of(seed, batch, vocab=V):
    return np.random.default_rng(seed).standard_normal((batch, vocab), np.float32) * 2


def kept_by(logits, top_k, top_p, min_p):
    """The kept set of one row by the definitions, or None where rounding would decide.

    min-p, then top-k, then top-p over what is left; ties of the last one kept stay.
    """
    logits = logits.astype(np.float64)
    probabilities = np.exp(logits - logits.max())
    if 0 < min_p < 1 and np.any(np.abs(probabilities / min_p - 1) < 1e-5):
        return None
    ranked = [i for i in np.argsort(-logits, kind="stable") if probabilities[i] >= min_p]
    candidates = set(ranked)
    ranked = ranked[: top_k or None]
    shares = probabilities[ranked] / probabilities[ranked].sum()
    before = np.cumsum(shares) - shares
    if top_p < 1:
        if np.any(np.abs(before[1:] - top_p) < 1e-5):
            return None
        ranked = [i for i, share in zip(ranked, before, strict=True) if share < top_p]
    return {int(i) for i in candidates if logits[i] >= logits[ranked[-1]]}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    quarters=st.lists(st.integers(-12, 12), min_size=V, max_size=V),
    top_k=st.integers(0, V + 2),
    top_p=st.sampled_from([0.01, 0.3, 0.5, 0.9, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 0.03, 0.11, 0.6, 1.0]),
)
def test_filters_keep_the_sets_of_their_definitions(quarters, top_k, top_p, min_p):
    """Quarter steps make ties frequent."""
    logits = np.array(quarters, np.float32) / 4
    expected = kept_by(logits, top_k, top_p, min_p)
    assume(expected is not None)
    one = lambda value, dtype: jnp.asarray([value], dtype)  # noqa: E731
    found = np.asarray(
        filtered(
            logits[None], one(top_k, jnp.int32), one(top_p, jnp.float32), one(min_p, jnp.float32)
        )
    )[0]
    assert set(np.flatnonzero(found > -np.inf).tolist()) == expected
    assert_array_equal(found[sorted(expected)], logits[sorted(expected)])


def test_filters_that_are_off_change_nothing():
    logits = logits_of(0, 3)
    off = filtered(
        logits, jnp.zeros(3, jnp.int32), jnp.ones(3, jnp.float32), jnp.zeros(3, jnp.float32)
    )
    assert_array_equal(off, logits)


def test_one_row_filters_without_the_others():
    """A row whose filters are off is untouched by a neighbour whose filters are on."""
    logits = logits_of(1, 2)
    logits[0, 5] = 60.0  # so likely that the others' probabilities round to nothing
    found = filtered(logits, jnp.asarray([0, 2], jnp.int32), jnp.ones(2), jnp.zeros(2))
    assert_array_equal(found[0], logits[0])
    assert int((found[1] > -jnp.inf).sum()) == 2


def test_greedy_takes_the_best_whatever_the_filters():
    logits = logits_of(2, 5)
    greedy = state(5, temperature=0.0, top_k=3, top_p=0.5, min_p=0.2, seed=np.arange(5))
    assert_array_equal(draw(logits, greedy, positions(5)), logits.argmax(-1))


def test_a_low_temperature_is_greedy_and_a_high_one_uniform():
    logits = np.repeat(logits_of(3, 1), 4000, axis=0)
    cold = draw(logits, state(4000, temperature=0.01), positions(4000))
    assert (np.asarray(cold) == logits[0].argmax()).all()
    hot = np.bincount(draw(logits, state(4000, temperature=1e4), positions(4000)), minlength=V)
    assert (np.abs(hot - 4000 / V) < 5 * np.sqrt(4000 / V)).all()


@pytest.mark.parametrize(
    "settings_", [{}, {"temperature": 0.5}, {"top_k": 4}, {"top_p": 0.7}, {"min_p": 0.15}]
)
@pytest.mark.parametrize("vary", ["position", "seed"])
def test_draws_follow_the_filtered_softmax(settings_, vary):
    """Chi-square over 20000 draws, along positions and along seeds, at five standard deviations."""
    n = 20_000
    row = np.random.default_rng(10).permutation(np.linspace(-2, 1, V, dtype=np.float32))
    temperature = settings_.get("temperature", 1.0)
    kept = kept_by(
        row / np.float32(temperature),
        settings_.get("top_k", 0),
        settings_.get("top_p", 1.0),
        settings_.get("min_p", 0.0),
    )
    assert kept is not None
    expected = np.exp(row.astype(np.float64) / temperature) * np.isin(np.arange(V), list(kept))
    expected = expected / expected.sum() * n
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
@given(
    seed=st.integers(0, 10**6),
    penalty=st.sampled_from([0.5, 1.0, 1.1, 2.0]),
    seen=st.lists(st.booleans(), min_size=V, max_size=V),
)
def test_the_penalty_lowers_seen_tokens_only(seed, penalty, seen):
    logits = logits_of(seed, 1)
    mask = np.array([seen])
    found = penalize(jnp.asarray(logits), jnp.asarray(mask), jnp.asarray([penalty], jnp.float32))
    expected = np.where(logits > 0, logits / np.float32(penalty), logits * np.float32(penalty))
    assert_allclose(found, np.where(mask, expected, logits), rtol=1e-6)


def test_the_penalty_acts_before_greedy_too():
    logits = np.zeros((1, V), np.float32)
    logits[0, 3], logits[0, 7] = 2.0, 1.9
    seen = np.zeros((1, V), bool)
    seen[0, 3] = True
    greedy = {"temperature": 0.0, "seen": seen}
    assert draw(logits, state(1, penalty=1.0, **greedy), positions(1))[0] == 3
    assert draw(logits, state(1, penalty=1.2, **greedy), positions(1))[0] == 7


def test_a_draw_does_not_depend_on_neighbours_or_their_order():
    n = 16
    logits = logits_of(5, n)
    mixed = {
        "temperature": np.linspace(0, 2, n),
        "top_k": np.arange(n) % 5,
        "top_p": np.linspace(0.5, 1, n),
        "min_p": np.arange(n) % 3 * 0.05,
        "seed": np.arange(n) * 7,
    }
    at = positions(n, 100)
    together = np.asarray(draw(logits, state(n, **mixed), at))
    order = np.random.default_rng(6).permutation(n)
    shuffled = state(n, **{name: values[order] for name, values in mixed.items()})
    assert_array_equal(draw(logits[order], shuffled, at[order]), together[order])
    for i in range(0, n, 3):
        alone = state(1, **{name: values[i : i + 1] for name, values in mixed.items()})
        assert draw(logits[i : i + 1], alone, at[i : i + 1])[0] == together[i]


def test_the_same_seed_and_position_draw_the_same_token():
    logits = np.repeat(logits_of(7, 1), 64, axis=0)
    same = jnp.full(64, 3, jnp.int32)
    assert len(set(np.asarray(draw(logits, state(64, seed=11), same)).tolist())) == 1
    by_seed = np.asarray(draw(logits, state(64, seed=np.arange(64)), same))
    by_position = np.asarray(draw(logits, state(64, seed=11), positions(64)))
    assert len(set(by_seed.tolist())) > 3 and len(set(by_position.tolist())) > 3


def test_the_largest_seed_works():
    token = draw(logits_of(8, 1), state(1, seed=2**32 - 1), positions(1))
    assert 0 <= int(token[0]) < V


def test_one_program_serves_every_mixture():
    traces = []

    @jax.jit
    def counted(logits, sampling, at):
        traces.append(1)
        return sample(logits, sampling, at)

    for parameters in (
        {"temperature": 0.0},
        {"temperature": [0.0, 1.0, 2.0], "top_k": [0, 5, 1]},
        {"top_p": 0.3, "min_p": [0.0, 0.1, 0.9], "penalty": 1.3, "seed": [1, 2, 3]},
    ):
        counted(logits_of(9, 3), state(3, **parameters), positions(3))
    assert len(traces) == 1


@pytest.mark.parametrize("temperature", [1e-38, 1e-37, 1e-6])
def test_the_smallest_temperatures_are_greedy(temperature):
    logits = jnp.asarray([[5.0, -3.0, 7.0, 6.999]], jnp.float32)
    assert sample(logits, state(1, 4, temperature=temperature), positions(1)).tolist() == [2]
