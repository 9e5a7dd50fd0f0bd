"""The decode kernel, interpreted, against the composition of plain operations."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rfjax.cache.dense import LayerCache
from rfjax.ops.decode_attention import decode_attention as reference
from rfjax.ops.mask import Mask
from rfjax.ops.scores import NO_TERMS, ScoreTerms
from rfjax.pallas.decode_attention import (
    Config,
    declines,
    decode_attention,
    heuristic,
    tuning_space,
)

pytestmark = pytest.mark.quick_compile

MASKS = (Mask(), Mask("bidirectional"), Mask("window", 21), Mask("chunked", 12))
TARGETS = ("cuda", "gfx9", "gfx11", "interpret")
CONFIGS = {
    "dot": Config(16, 1, 4, 1, True),
    "dot, split": Config(16, 2, 4, 1, True),
    "dot, a block a split": Config(16, 4, 4, 1, True),
    "sums": Config(16, 1, 4, 1, False),
    "sums, one block": Config(64, 1, 4, 1, False),
    "sums, split": Config(8, 4, 4, 1, False),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """Shapes and mechanisms of one layer; `heads` are N and K."""

    heads: tuple[int, int] = (4, 2)
    capacity: int = 64
    size: int = 16
    half: int = 8
    mask: Mask = MASKS[0]
    pairing: str = "half"
    norms: bool = False
    multiplier: bool = False
    dtype: str = "float32"


def draw(case: Case, seed: int, batch: int):
    """The kernel's arrays: projections, caches (all slots hold something), tables, options."""
    rng = np.random.default_rng(seed)
    n_heads, n_kv = case.heads

    def normal(*shape, dtype=case.dtype):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    q, k, v = (normal(batch, n, case.size) for n in (n_heads, n_kv, n_kv))
    k_cache = normal(batch, n_kv, case.capacity, case.size)
    v_cache = normal(batch, n_kv, case.size, case.capacity)
    angles = rng.uniform(0, 6, (batch, case.half))
    tables = jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)
    options = {}
    if case.norms:
        options |= {"q_norm": normal(case.size, dtype="float32")}
        options |= {"k_norm": normal(case.size, dtype="float32")}
    if case.multiplier:
        options |= {"q_multiplier": normal(batch, dtype="float32")}
    return (q, k, v, k_cache, v_cache, *tables), options


@functools.partial(jax.jit, static_argnames=("case", "config"))
def kernel(case, config, arrays, positions, options):
    return decode_attention(
        *arrays,
        positions=positions,
        pairing=case.pairing,
        mask=case.mask,
        scale=0.3,
        eps=1e-5,
        target="interpret",
        config=config,
        **options,
    )


@functools.partial(jax.jit, static_argnames="case")
def plain(case, arrays, positions, options):
    """The reference, with zeros for rows at position -1."""
    q, k, v, k_cache, v_cache, cos, sin = arrays
    out, cache = reference(
        q,
        k,
        v,
        LayerCache(k=k_cache, v=v_cache),
        cos,
        sin,
        positions=positions,
        key_lengths=positions + 1,
        mask=case.mask,
        scale=0.3,
        pairing=case.pairing,
        eps=1e-5,
        **options,
    )
    out = jnp.where(positions[:, None] >= 0, out, 0)
    return out.reshape(q.shape), cache.k, cache.v


def check(case, config, seed, positions, tolerance=3e-6):
    positions = jnp.asarray(positions, jnp.int32)
    arrays, options = draw(case, seed, len(positions))
    found = kernel(case, config, arrays, positions, options)
    expected = plain(case, arrays, positions, options)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert_allclose(*(np.asarray(x, np.float32) for x in (a, b)), atol=tolerance)
    # Only the slots of the new tokens have changed.
    k_old, k_new = np.asarray(arrays[3], np.float32), np.asarray(found[1], np.float32)
    changed = np.argwhere((k_old != k_new).any(axis=(1, 3)))
    assert {tuple(map(int, pair)) for pair in changed} == {
        (b, int(p)) for b, p in enumerate(positions) if 0 <= p < case.capacity
    }


EVERY_MASK_AND_CONFIG = pytest.mark.parametrize(
    ("mask", "name"),
    [
        (MASKS[0], "dot, split"),
        (MASKS[0], "sums, one block"),
        (MASKS[1], "sums"),
        (MASKS[2], "dot"),
        (MASKS[2], "sums, split"),
        (MASKS[3], "dot, a block a split"),
    ],
    ids=lambda value: getattr(value, "kind", value),
)


@EVERY_MASK_AND_CONFIG
@settings(max_examples=6, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), positions=st.tuples(*[st.integers(-1, 63)] * 3))
def test_any_position(mask, name, seed, positions):
    check(Case(mask=mask), CONFIGS[name], seed, positions)


@pytest.mark.parametrize(
    ("case", "dot"),
    [
        (Case(pairing="interleaved", norms=True, multiplier=True), True),
        (Case(pairing="interleaved", norms=True, multiplier=True), False),
        (Case(pairing="half", norms=True, half=5), True),
        (Case(pairing="interleaved", half=3), False),
        (Case(heads=(5, 1), size=20, half=10, norms=True), True),
        (Case(heads=(3, 3), size=80, half=40, capacity=16), False),
    ],
)
def test_norms_rotations_and_sizes(case, dot):
    check(case, Config(16, 1, 4, 1, dot), 1, [case.capacity - 1, 5, -1], 1e-5)


@pytest.mark.parametrize(("dtype", "dot"), [("bfloat16", True), ("float16", False)])
def test_narrow_dtypes(dtype, dot):
    """Beside the reference in f32 on the same numbers, so that only the kernel's error counts."""
    case = Case(dtype=dtype, norms=True)
    positions = jnp.asarray([63, 17, 0], jnp.int32)
    arrays, options = draw(case, 2, 3)
    found = kernel(case, Config(16, 2, 4, 1, dot), arrays, positions, options)
    wide = tuple(x.astype(jnp.float32) for x in arrays)
    expected = plain(case, wide, positions, options)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.linalg.norm(a - b) < np.linalg.norm(b) * (6e-3 if dtype == "bfloat16" else 8e-4)


@EVERY_MASK_AND_CONFIG
def test_slots_from_the_position_on_may_hold_anything(mask, name):
    case, config = Case(mask=mask), CONFIGS[name]
    positions = jnp.asarray([37, 0, -1], jnp.int32)
    arrays, options = draw(case, 3, 3)
    clean = kernel(case, config, arrays, positions, options)
    unwritten = jnp.arange(64)[None, :] >= positions[:, None]
    q, k, v, k_cache, v_cache, *tables = arrays
    k_cache = jnp.where(unwritten[:, None, :, None], jnp.nan, k_cache)
    v_cache = jnp.where(unwritten[:, None, None, :], jnp.nan, v_cache)
    found = kernel(case, config, (q, k, v, k_cache, v_cache, *tables), positions, options)
    assert_array_equal(found[0], clean[0])


def test_a_row_that_is_full_is_not_overwritten():
    case = Case()
    positions = jnp.asarray([64, 100], jnp.int32)
    arrays, options = draw(case, 4, 2)
    _, k_cache, v_cache = kernel(case, CONFIGS["dot"], arrays, positions, options)
    assert_array_equal(k_cache, arrays[3])
    assert_array_equal(v_cache, arrays[4])


def test_one_array_of_all_heads():
    """Queries, keys and values as one projection gives them."""
    case, config = Case(), CONFIGS["dot"]
    positions = jnp.asarray([30, 2], jnp.int32)
    arrays, options = draw(case, 5, 2)
    q, k, v, *rest = arrays
    apart = kernel(case, config, arrays, positions, options)
    together = jnp.concatenate([q, k, v], axis=1)
    fused = kernel(case, config, (together, None, None, *rest), positions, options)
    for a, b in zip(fused, apart, strict=True):
        assert_array_equal(a, b)


def test_a_row_does_not_depend_on_the_row_beside_it():
    case, config = Case(), CONFIGS["dot, split"]
    positions = jnp.asarray([50, 33, -1], jnp.int32)
    arrays, options = draw(case, 6, 3)
    whole = kernel(case, config, arrays, positions, options)
    alone = kernel(case, config, tuple(x[1:2] for x in arrays), positions[1:2], options)
    for a, b in zip(alone, whole, strict=True):
        assert_array_equal(a, b[1:2])


def test_donated_caches_are_updated_in_place():
    case = Case()
    arrays, options = draw(case, 7, 2)
    positions = jnp.asarray([5, 6], jnp.int32)

    def step(q, k, v, caches, cos, sin):
        return decode_attention(
            q,
            k,
            v,
            *caches,
            cos,
            sin,
            positions=positions,
            pairing="half",
            mask=Mask(),
            scale=0.3,
            eps=1e-5,
            target="interpret",
            config=CONFIGS["dot"],
        )

    q, k, v, k_cache, v_cache, cos, sin = arrays
    arguments = (q, k, v, (k_cache, v_cache), cos, sin)
    (jitted,) = jax.make_jaxpr(step)(*arguments).eqns
    (call,) = (e for e in jitted.params["jaxpr"].eqns if e.primitive.name == "pallas_call")
    aliased = {call.invars[i].aval.shape for i, _ in call.params["input_output_aliases"]}
    assert aliased == {k_cache.shape, v_cache.shape}
    assert not options


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 256),
    n_kv=st.integers(1, 64),
    group=st.integers(1, 64),
    capacity=st.integers(4, 17).map(lambda bits: 1 << bits),
    head_dim=st.integers(1, 256),
    dtype=st.sampled_from(["bfloat16", "float32"]),
)
def test_the_heuristic_answers_for_every_shape(
    target, batch, n_kv, group, capacity, head_dim, dtype
):
    arguments = (batch, (n_kv * group, n_kv), capacity, head_dim, jnp.dtype(dtype), target)
    config = heuristic(*arguments)
    assert config.block_k & (config.block_k - 1) == 0 == config.splits & (config.splits - 1)
    assert config.block_k * config.splits <= capacity
    assert config.dot or group <= 8
    assert not config.dot or config.block_k >= 16
    space = tuning_space(*arguments)
    assert space[0] == config
    assert len(set(space)) == len(space)


def test_what_it_declines():
    def answer(case, scale=1.0, terms=NO_TERMS):
        arrays, _ = draw(case, 0, 1)
        return declines(arrays[0], arrays[3], arrays[4], case.half, scale, terms)

    assert answer(Case()) is None
    assert answer(Case(dtype="bfloat16", size=80, half=40)) is None
    assert "int32" in (answer(Case(dtype="int32")) or "")
    assert "power of two" in (answer(Case(capacity=48)) or "")
    assert "power of two" in (answer(Case(capacity=8)) or "")
    assert "256" in (answer(Case(size=257)) or "")
    assert "rotated" in (answer(Case(size=8, half=8)) or "")
    assert "positive" in (answer(Case(), scale=-1.0) or "")
    one = np.ones(2, np.float32)
    assert "soft cap" in (answer(Case(), terms=ScoreTerms(softcap=1.0)) or "")
    assert "ALiBi" in (answer(Case(), terms=ScoreTerms(slopes=one)) or "")
    assert "sinks" in (answer(Case(), terms=ScoreTerms(sinks=one)) or "")
