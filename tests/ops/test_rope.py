"""RoPE against complex rotation, and YaRN against the paper's formulas written out anew."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rfjax.ops.rope import (
    Rope,
    apply_rope,
    frequencies,
    identity_tables,
    rope_tables,
    yarn_magnitude,
)

pytestmark = pytest.mark.quick_compile

PLAIN = Rope("interleaved", 8, 10000.0)

apply = jax.jit(apply_rope, static_argnames="pairing")
tables_of = jax.jit(rope_tables, static_argnames="rope")


def rotate(x, positions, rope, per_pair, magnitude=1.0):
    """Every pair as a complex number times e^(i angle); `per_pair` f64 [dimension/2]."""
    half = rope.dimension // 2
    x = x.astype(np.float64)
    if rope.pairing == "interleaved":
        pairs = x[..., 0 : rope.dimension : 2] + 1j * x[..., 1 : rope.dimension : 2]
    else:
        pairs = x[..., :half] + 1j * x[..., half : rope.dimension]
    angles = positions[:, None].astype(np.float64) * per_pair
    pairs = pairs * (magnitude * np.exp(1j * angles))[:, None, :]
    out = x.copy()
    if rope.pairing == "interleaved":
        out[..., 0 : rope.dimension : 2], out[..., 1 : rope.dimension : 2] = pairs.real, pairs.imag
    else:
        out[..., :half], out[..., half : rope.dimension] = pairs.real, pairs.imag
    return out


def plain_steps(rope):
    return np.array([rope.base ** (-2 * i / rope.dimension) for i in range(rope.dimension // 2)])


def yarn(rope):
    """Steps and magnitude by the wavelengths of the paper's section 3.2 and llama.cpp's rounding.

    A pair's turns within the original context decide: above beta_fast it stays, below beta_slow it
    is interpolated, between them linearly in the pair's index, from the last whole index that turns
    at least beta_fast times to the first that turns at most beta_slow times.
    """
    n, base = rope.dimension, rope.base

    def index(turns):  # of the pair whose wavelength is original / turns
        return (
            (n / 2)
            * (math.log(rope.original_context / turns) - math.log(2 * math.pi))
            / (math.log(base))
        )

    first = max(math.floor(index(rope.beta_fast)), 0)
    last = min(math.ceil(index(rope.beta_slow)), n - 1)
    steps = []
    for i, step in enumerate(plain_steps(rope)):
        if i <= first:
            interpolated = 0.0
        elif i >= last:
            interpolated = 1.0
        else:
            interpolated = (i - first) / (last - first)
        if first == last and i == first:
            interpolated = 0.0
        steps.append(interpolated * step / rope.factor + (1 - interpolated) * step)
    magnitude = 1.0
    if rope.factor > 1:
        magnitude = 0.1 * math.log(rope.factor) + 1
        if rope.log_multiplier:
            magnitude /= 0.1 * rope.log_multiplier * math.log(rope.factor) + 1
    return np.array(steps), magnitude * rope.attention_factor


def heads(rng, tokens, n_heads, size):
    return rng.standard_normal((tokens, n_heads, size), np.float32)


@pytest.mark.parametrize("pairing", ["interleaved", "half"])
@pytest.mark.parametrize(("dimension", "size"), [(8, 8), (2, 2), (6, 10), (64, 64)])
def test_both_pairings_are_a_complex_rotation(pairing, dimension, size):
    rope = Rope(pairing, dimension, 10000.0)
    x = heads(np.random.default_rng(dimension), 5, 3, size)
    positions = np.array([0, 1, 2, 77, 900], np.int32)
    found = apply(jnp.asarray(x), *tables_of(rope, jnp.asarray(positions)), pairing)
    assert_allclose(found, rotate(x, positions, rope, plain_steps(rope)), atol=2e-4)
    assert_array_equal(found[0], x[0])  # position 0 does not turn
    assert_array_equal(found[..., dimension:], x[..., dimension:])


def test_the_pairings_differ():
    x = heads(np.random.default_rng(0), 3, 1, 8)
    tables = tables_of(PLAIN, jnp.arange(3, dtype=jnp.int32))
    interleaved = np.asarray(apply(jnp.asarray(x), *tables, "interleaved"))
    half = np.asarray(apply(jnp.asarray(x), *tables, "half"))
    assert np.abs(interleaved - half)[1:].max() > 0.1


def test_frequency_factors_divide_the_angles():
    factors = np.array([1.0, 2.0, 8.0, 0.5], np.float32)
    positions = np.array([3, 50], np.int32)
    x = heads(np.random.default_rng(1), 2, 2, 8)
    tables = tables_of(PLAIN, jnp.asarray(positions), jnp.asarray(factors))
    expected = rotate(x, positions, PLAIN, plain_steps(PLAIN) / factors)
    assert_allclose(apply(jnp.asarray(x), *tables, PLAIN.pairing), expected, atol=1e-5)


def test_linear_scaling_divides_positions_and_leaves_the_magnitude():
    rope = dataclasses.replace(PLAIN, scaling="linear", factor=4.0)
    steps, magnitude = frequencies(rope)
    assert_allclose(steps, plain_steps(PLAIN) / 4)
    assert magnitude == 1.0
    at = jnp.asarray([40], jnp.int32)
    quarter = jnp.asarray([10], jnp.int32)
    assert_allclose(tables_of(rope, at)[0], tables_of(PLAIN, quarter)[0], rtol=1e-6)


@pytest.mark.parametrize("scaling", ["none", "linear", "yarn"])
def test_the_attention_factor_multiplies_cosine_and_sine(scaling):
    rope = dataclasses.replace(PLAIN, scaling=scaling, factor=2.0, original_context=64)
    stretched = dataclasses.replace(rope, attention_factor=1.5)
    at = jnp.arange(6, dtype=jnp.int32)
    for plain, scaled in zip(tables_of(rope, at), tables_of(stretched, at), strict=True):
        assert_allclose(scaled, 1.5 * np.asarray(plain), rtol=1e-6)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    half=st.integers(1, 64),
    base=st.sampled_from([500.0, 10000.0, 500000.0, 1e6]),
    factor=st.sampled_from([0.5, 1.0, 1.5, 4.0, 40.0]),
    original=st.sampled_from([8, 64, 4096, 32768]),
    fast=st.sampled_from([4.0, 8.0, 32.0]),
    slow=st.sampled_from([1.0, 2.0]),
    multiplier=st.sampled_from([0.0, 0.1, 0.7, 1.0]),
)
def test_yarn_matches_the_formulas_of_the_paper(
    half, base, factor, original, fast, slow, multiplier
):
    rope = Rope(
        "half",
        2 * half,
        base,
        "yarn",
        factor,
        original_context=original,
        attention_factor=1.25,
        beta_fast=fast,
        beta_slow=slow,
        log_multiplier=multiplier,
    )
    steps, magnitude = frequencies(rope)
    expected, expected_magnitude = yarn(rope)
    # A ramp without length is a step; llama.cpp widens it to 0.001, which meets whole indices only.
    assert_allclose(steps, expected, rtol=1e-9)
    assert magnitude == pytest.approx(expected_magnitude)


def test_yarn_of_a_published_model():
    """Qwen2.5's setting: the fast pairs keep their speed, the slow ones turn 4 times slower."""
    rope = Rope("half", 128, 1e6, "yarn", 4.0, original_context=32768)
    steps, magnitude = frequencies(rope)
    plain = plain_steps(rope)
    ratio = steps / plain
    assert_allclose(ratio[:23], 1.0)  # pair 23 turns 32 times within 32768 tokens
    assert_allclose(ratio[40:], 0.25)  # pair 40 turns once
    assert (np.diff(ratio[23:41]) < 0).all()
    assert magnitude == pytest.approx(0.1 * math.log(4) + 1)


@pytest.mark.parametrize("factor", [1.0, 4.0, 40.0])
@pytest.mark.parametrize("attention_factor", [1.0, 1.25])
def test_deepseek_s_correction_is_in_the_scale_of_its_scores_alone(factor, attention_factor):
    """mscale equals mscale_all_dim in its configurations: their quotient is exactly 1."""
    rope = Rope(
        "interleaved",
        64,
        10000.0,
        "yarn",
        factor,
        original_context=4096,
        attention_factor=attention_factor,
        log_multiplier=1.0,
    )
    steps, magnitude = frequencies(rope)
    assert magnitude == attention_factor
    assert_allclose(steps, yarn(rope)[0], rtol=1e-9)
    cos, sin = tables_of(rope, jnp.asarray([0, 7], jnp.int32))
    assert_array_equal(cos[0], np.float32(attention_factor))
    assert_allclose(np.hypot(cos, sin), attention_factor, rtol=1e-6)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5, 40.0, 160.0])
@pytest.mark.parametrize("multiplier", [0.0, 0.707, 1.0])
def test_the_magnitude_of_yarn(factor, multiplier):
    expected = 1 + 0.1 * multiplier * math.log(max(factor, 1))
    assert yarn_magnitude(factor, multiplier) == pytest.approx(expected, rel=1e-15)
    assert yarn_magnitude(factor) == yarn_magnitude(factor, 1.0)


def test_the_scale_of_deepseek_2_lite():
    """0.1147 for heads of 128 + 64 and the factor 40, as its own code computes it."""
    mscale = yarn_magnitude(40.0, 0.707)
    assert mscale == pytest.approx(1.2608037774)
    assert mscale**2 / math.sqrt(192) == pytest.approx(0.1147213867, rel=1e-6)


@pytest.mark.parametrize("pairing", ["interleaved", "half"])
@pytest.mark.parametrize("half", [1, 4])
def test_identity_tables_leave_heads_as_they_are(pairing, half):
    rng = np.random.default_rng(3)
    x = heads(rng, 5, 3, 8) * np.float32(10.0) ** rng.integers(-30, 30, (5, 3, 8))
    x = x.astype(np.float32)
    for dtype in (jnp.float32, jnp.bfloat16):
        given_ = jnp.asarray(x, dtype)
        found = apply(given_, *identity_tables(5, half), pairing)
        assert found.dtype == dtype
        assert_array_equal(found.astype(jnp.float32), given_.astype(jnp.float32))


def test_factors_and_yarn_together():
    """Factors divide both speeds that YaRN blends, and do not move where it blends."""
    rope = Rope("half", 16, 10000.0, "yarn", 4.0, original_context=64)
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    at = np.array([3, 50], np.int32)
    x = heads(np.random.default_rng(9), 2, 2, 16)
    steps, magnitude = yarn(rope)
    tables = tables_of(rope, jnp.asarray(at), jnp.asarray(factors))
    expected = rotate(x, at, rope, steps / factors, magnitude)
    assert_allclose(apply(jnp.asarray(x), *tables, "half"), expected, atol=2e-5)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    pairing=st.sampled_from(["interleaved", "half"]),
    scaling=st.sampled_from(["none", "linear", "yarn"]),
    difference=st.integers(0, 50),
    start=st.integers(0, 200),
    shift=st.integers(1, 200),
)
def test_a_product_depends_on_the_distance_only(pairing, scaling, difference, start, shift):
    rope = Rope(pairing, 16, 1000.0, scaling, 4.0, original_context=64)
    q, k = heads(np.random.default_rng(7), 2, 1, 16)[:, None]

    def product(query_at, key_at):
        turned = [
            apply(jnp.asarray(x), *tables_of(rope, jnp.asarray([at], jnp.int32)), pairing)
            for x, at in ((q, query_at), (k, key_at))
        ]
        return float((turned[0] * turned[1]).sum())

    near = product(start + difference, start)
    assert product(start + shift + difference, start + shift) == pytest.approx(near, abs=2e-3)
    if difference == 0 and scaling != "yarn":
        assert near == pytest.approx(float((q * k).sum()), abs=2e-4)


def test_a_product_changes_with_the_distance():
    q = heads(np.random.default_rng(8), 1, 1, 8)
    at = [apply(jnp.asarray(q), *tables_of(PLAIN, jnp.asarray([p])), "half") for p in (0, 5)]
    assert abs(float((at[0] * at[1]).sum()) - float((q * q).sum())) > 0.1


def test_the_dtype_is_kept_and_angles_are_f32():
    """bf16 cannot tell positions 1000 and 1001 apart."""
    x = jnp.ones((2, 1, 8), jnp.bfloat16)
    tables = tables_of(PLAIN, jnp.asarray([1000, 1001], jnp.int32))
    assert tables[0].dtype == jnp.float32
    found = apply(x, *tables, "half")
    assert found.dtype == jnp.bfloat16
    assert not np.array_equal(found[0].astype(jnp.float32), found[1].astype(jnp.float32))


def test_a_rotation_is_hashable_data():
    assert hash(PLAIN) == hash(Rope("interleaved", 8, 10000.0))
    assert dataclasses.replace(PLAIN, base=10001.0) != PLAIN
