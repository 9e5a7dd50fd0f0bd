"""The decode step's operation: its reference, and the choice between it and the kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rfjax.cache.dense import LayerCache, append
from rfjax.errors import UnsupportedError
from rfjax.ops.attention import attention
from rfjax.ops.decode_attention import decode_attention
from rfjax.ops.dispatch import DEFAULT_POLICY, KernelPolicy
from rfjax.ops.mask import Mask
from rfjax.ops.norm import rms_norm
from rfjax.ops.rope import apply_rope, identity_tables
from rfjax.ops.scores import ScoreTerms

pytestmark = pytest.mark.quick_compile

PALLAS = KernelPolicy("pallas")
POSITIONS = jnp.asarray([11, 0, -1], jnp.int32)


def draw(capacity=16):
    """Projections, cache, tables and options of 4 query heads and 2 kv heads of 8."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    q, k, v = normal(3, 4, 8), normal(3, 2, 8), normal(3, 2, 8)
    cache = LayerCache(k=normal(3, 2, capacity, 8), v=normal(3, 2, 8, capacity))
    options = {
        "positions": POSITIONS,
        "key_lengths": POSITIONS + 1,
        "mask": Mask(),
        "scale": 0.4,
        "pairing": "half",
        "eps": 1e-5,
        "q_norm": normal(8),
        "k_norm": normal(8),
        "q_multiplier": normal(3),
    }
    return (q, k, v, cache, normal(3, 4), normal(3, 4)), options


def test_it_is_the_composition_of_its_parts():
    (q, k, v, cache, cos, sin), options = draw()
    found, written = decode_attention(q, k, v, cache, cos, sin, **options)
    q = apply_rope(rms_norm(q, options["q_norm"], 1e-5), cos, sin, "half")
    k = apply_rope(rms_norm(k, options["k_norm"], 1e-5), cos, sin, "half")
    q = q * options["q_multiplier"][:, None, None]
    expected = append(cache, k[:, None], v[:, None], POSITIONS[:, None])
    out = attention(
        q[:, None],
        expected.k,
        expected.v,
        query_positions=POSITIONS[:, None],
        key_lengths=POSITIONS + 1,
        mask=Mask(),
        scale=0.4,
    )
    assert_array_equal(found, out.reshape(3, 32))
    assert_array_equal(written.k, expected.k)
    assert_array_equal(written.v, expected.v)


def test_one_array_of_all_heads():
    (q, k, v, *rest), options = draw()
    apart, _ = decode_attention(q, k, v, *rest, **options)
    together = jnp.concatenate([q, k, v], axis=1)
    fused, _ = decode_attention(together, None, None, *rest, **options)
    assert_array_equal(fused, apart)


@pytest.mark.parametrize("pairing", ["interleaved", "half"])
def test_heads_that_are_rotated_already(pairing):
    """Tables of one pair that turn nothing, for the kernel as well."""
    (q, k, v, cache, cos, sin), options = draw()
    options |= {"pairing": pairing, "q_norm": None, "k_norm": None}
    turned = (apply_rope(x, cos, sin, pairing) for x in (q, k))
    expected = decode_attention(q, k, v, cache, cos, sin, **options)
    q, k = turned
    for policy in (None, PALLAS):
        found = decode_attention(q, k, v, cache, *identity_tables(3), **options, policy=policy)
        assert_allclose(found[0][:2], expected[0][:2], atol=2e-6)
        assert_array_equal(found[1].k, expected[1].k)


def test_terms_are_those_of_attention():
    (q, k, v, cache, cos, sin), options = draw()
    for term in ({"softcap": 1.5}, {"slopes": jnp.ones(4)}, {"sinks": jnp.arange(4.0)}):
        terms = ScoreTerms(**term)
        found, written = decode_attention(q, k, v, cache, cos, sin, **options, terms=terms)
        q_turned = apply_rope(rms_norm(q, options["q_norm"], 1e-5), cos, sin, "half")
        out = attention(
            (q_turned * options["q_multiplier"][:, None, None])[:, None],
            written.k,
            written.v,
            query_positions=POSITIONS[:, None],
            key_lengths=POSITIONS + 1,
            mask=Mask(),
            scale=0.4,
            terms=terms,
        )
        assert_array_equal(found, out.reshape(3, 32))


def launches(function) -> int:
    """Kernels in a function's program."""
    return str(jax.make_jaxpr(function)()).count("pallas_call")


def test_who_runs_it():
    """Kernels by name only, here on the CPU; a reason not to take one is an error then."""
    arguments, options = draw()
    run = lambda policy: decode_attention(*arguments, **options, policy=policy)  # noqa: E731
    for policy in (None, DEFAULT_POLICY, KernelPolicy("xla")):
        assert launches(lambda policy=policy: run(policy)) == 0
    assert launches(lambda: run(PALLAS)) == 1
    assert_allclose(run(PALLAS)[0], run(None)[0], atol=2e-6)
    disabled = KernelPolicy("pallas", (("decode_attention", "it failed its self-check"),))
    with pytest.raises(UnsupportedError, match=r"decode_attention.*failed its self-check"):
        run(disabled)
    with pytest.raises(UnsupportedError, match=r"capacity must be a power of two.*got 24"):
        arguments, options = draw(capacity=24)
        run(PALLAS)


@pytest.mark.parametrize(
    ("term", "name"),
    [
        ({"softcap": 1.5}, "a soft cap"),
        ({"slopes": jnp.ones(4)}, "ALiBi's slopes"),
        ({"sinks": jnp.ones(4)}, "sinks"),
    ],
)
def test_the_kernel_leaves_terms_to_plain_jax(term, name):
    arguments, options = draw()
    options["terms"] = ScoreTerms(**term)
    run = lambda policy: decode_attention(*arguments, **options, policy=policy)  # noqa: E731
    with pytest.raises(UnsupportedError, match=rf"decode_attention.*does not take {name}"):
        run(PALLAS)
    assert launches(lambda: run(KernelPolicy(None, interpret=True))) == 0


def test_the_kernel_runs_by_default_on_a_gpu(monkeypatch):
    """Traced as for an AMD GPU; nothing of it runs."""
    monkeypatch.setattr("rfjax.ops.kernel_target.current_target", lambda: "gfx9")
    arguments, options = draw()
    count = lambda policy: launches(  # noqa: E731
        lambda: decode_attention(*arguments, **options, policy=policy)
    )
    assert count(DEFAULT_POLICY) == 1
    assert count(KernelPolicy(None, (("decode_attention", "failed"),))) == 0
    assert count(KernelPolicy("xla")) == 0


def test_it_says_that_it_has_no_derivative():
    (q, *rest), options = draw()
    loss = lambda q: decode_attention(q, *rest, **options, policy=PALLAS)[0].sum()  # noqa: E731
    with pytest.raises(NotImplementedError):
        jax.grad(loss)(q)
