"""Routing and the grouped expert product against NumPy that computes every expert densely."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rfjax.errors import UnsupportedError
from rfjax.ops.dispatch import DEFAULT_POLICY, KernelPolicy
from rfjax.ops.moe import expert_ffn, route
from rfjax.quant.qtensor import pack
from rfjax.quant.types import BLOCK_SIZES, GGMLType

pytestmark = pytest.mark.quick_compile

_D, _F = 6, 5

XLA, INTERPRET = KernelPolicy("xla"), KernelPolicy(interpret=True)

ffn = jax.jit(expert_ffn, static_argnames=("activation", "policy"))
router = jax.jit(route, static_argnums=1, static_argnames=("normalize",))


def softmax(logits):
    weights = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def experts_of(seed, n_experts, width=_D, ffn_width=_F):
    """Gate and up [E, F, D], down [E, D, F]."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    return (
        draw(n_experts, ffn_width, width),
        draw(n_experts, ffn_width, width),
        draw(n_experts, width, ffn_width),
    )


def dense(x, weights, chosen, gate, up, down):
    """Every expert on every token; then the chosen ones' weighted sum."""
    x = x.astype(np.float64)
    inner = np.einsum("td,efd->tef", x, gate)
    inner = inner / (1 + np.exp(-inner)) * np.einsum("td,efd->tef", x, up)
    every = np.einsum("tef,edf->ted", inner, down)
    picked = np.take_along_axis(every, chosen[:, :, None], axis=1)
    return (picked * weights[:, :, None]).sum(1)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.sampled_from([(1, 1, 1), (9, 2, 1), (7, 12, 5), (4, 6, 6)]),
    normalize=st.booleans(),
    scale=st.sampled_from([1.0, 2.5]),
)
def test_routing_takes_the_best_and_weighs_them(seed, sizes, normalize, scale):
    n_tokens, n_experts, n_used = sizes
    logits = np.random.default_rng(seed).standard_normal((n_tokens, n_experts), np.float32) * 3
    weights, chosen = router(logits, n_used, normalize=normalize, scale=scale)
    expected = np.argsort(-logits, axis=-1, kind="stable")[:, :n_used]
    assert_array_equal(chosen, expected)
    shares = np.take_along_axis(softmax(logits), expected, axis=-1)
    if normalize:
        shares = shares / np.maximum(shares.sum(-1, keepdims=True), 2.0**-14)
    assert_allclose(weights, shares * scale, rtol=1e-5)


def test_ties_go_to_distinct_experts():
    weights, chosen = router(jnp.zeros((3, 6)), 4, normalize=True, scale=1.0)
    assert all(len(set(row)) == 4 for row in np.asarray(chosen).tolist())
    assert_allclose(weights, 0.25)


def test_far_logits_give_finite_weights():
    logits = jnp.asarray([[1e4, -1e4, 0.0]])
    weights, chosen = router(logits, 2, normalize=True, scale=1.0)
    assert_allclose(weights, [[1.0, 0.0]])
    assert_array_equal(chosen, [[0, 2]])


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.sampled_from([(1, 5, 3), (2, 1, 1), (3, 2, 2), (17, 4, 1), (65, 8, 2)]),
    spread=st.sampled_from([0.0, 0.1, 20.0]),
)
def test_only_the_chosen_experts_count(seed, sizes, spread):
    """`spread` of 20 sends nearly all tokens to few experts; 0.1 spreads them."""
    n_tokens, n_experts, n_used = sizes
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n_tokens, _D), np.float32)
    bias = rng.standard_normal((1, n_experts), np.float32) * np.float32(spread)
    logits = rng.standard_normal((n_tokens, n_experts), np.float32) + bias
    weights, chosen = router(logits, n_used, normalize=True, scale=1.0)
    tensors = experts_of(seed, n_experts)
    found = ffn(x, weights, chosen, *tensors, activation="silu")
    expected = dense(x, np.asarray(weights), np.asarray(chosen), *tensors)
    assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("n_tokens", [1, 300])
def test_all_tokens_on_one_expert(n_tokens):
    """The worst balance: nothing is dropped."""
    x = np.random.default_rng(0).standard_normal((n_tokens, _D), np.float32)
    chosen = np.full((n_tokens, 1), 6, np.int32)
    weights = np.linspace(0.1, 1, n_tokens, dtype=np.float32)[:, None]
    tensors = experts_of(1, 8)
    found = ffn(x, weights, chosen, *tensors, activation="silu")
    assert_allclose(found, dense(x, weights, chosen, *tensors), rtol=1e-4, atol=1e-4)


def test_experts_that_nobody_chose_are_not_computed():
    """Their weights may hold anything."""
    gate, up, down = experts_of(2, 4)
    x = np.random.default_rng(3).standard_normal((9, _D), np.float32)
    chosen = np.tile(np.array([[1, 3]], np.int32), (9, 1))
    weights = np.full((9, 2), 0.5, np.float32)
    clean = np.asarray(ffn(x, weights, chosen, gate, up, down, activation="silu"))
    for tensor in (gate, up, down):
        tensor[[0, 2]] = np.nan
    assert_array_equal(ffn(x, weights, chosen, gate, up, down, activation="silu"), clean)


def test_the_work_follows_the_tokens_and_not_the_experts():
    """With many tokens, the rows computed stay near tokens times chosen experts."""
    n_tokens, n_used, n_experts = 512, 2, 8
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (
            ((n_tokens, _D), jnp.float32),
            ((n_tokens, n_used), jnp.float32),
            ((n_tokens, n_used), jnp.int32),
            ((n_experts, _F, _D), jnp.float32),
            ((n_experts, _F, _D), jnp.float32),
            ((n_experts, _D, _F), jnp.float32),
        )
    ]
    jaxpr = jax.make_jaxpr(lambda *a: expert_ffn(*a, "silu"))(*shapes)
    (scan,) = (e for e in jaxpr.eqns if e.primitive.name == "scan")
    n_blocks = scan.params["length"]
    (rows,) = {v.aval.shape[1] for v in scan.invars if v.aval.shape[::2] == (n_blocks, _D)}
    # At most one block an expert is not full.
    assert n_blocks * rows <= n_tokens * n_used + n_experts * rows < n_tokens * n_experts


@pytest.mark.parametrize("rows", [1, 3])
def test_a_token_does_not_depend_on_the_tokens_beside_it(rows):
    rng = np.random.default_rng(4)
    x = rng.standard_normal((40, 32), np.float32)
    logits = rng.standard_normal((40, 8), np.float32)
    tensors = experts_of(5, 8, 32, 48)

    @jax.jit
    def layer(x, logits):
        weights, chosen = route(logits, 2, normalize=True, scale=1.0)
        return expert_ffn(x, weights, chosen, *tensors, "silu")

    whole = np.asarray(layer(x, logits))
    part = layer(x[6 : 6 + rows], logits[6 : 6 + rows])
    assert_allclose(part, whole[6 : 6 + rows], rtol=1e-5, atol=1e-5)


def test_the_gradient_equals_the_dense_one():
    rng = np.random.default_rng(6)
    x = rng.standard_normal((7, _D), np.float32)
    logits = rng.standard_normal((7, 4), np.float32)
    chosen = jnp.asarray(np.argsort(-logits, axis=-1)[:, :2].astype(np.int32))
    tensors = tuple(jnp.asarray(t) for t in experts_of(7, 4))

    def weights_of(logits):
        return route(logits, 2, normalize=True, scale=1.0)[0]

    def sparse(x, logits, tensors):
        return jnp.sum(jnp.sin(expert_ffn(x, weights_of(logits), chosen, *tensors, "silu")))

    def every(x, logits, tensors):
        gate, up, down = tensors
        inner = jax.nn.silu(jnp.einsum("td,efd->tef", x, gate)) * jnp.einsum("td,efd->tef", x, up)
        out = jnp.einsum("tef,edf->ted", inner, down)
        picked = jnp.take_along_axis(out, chosen[:, :, None], axis=1)
        return jnp.sum(jnp.sin((picked * weights_of(logits)[:, :, None]).sum(1)))

    arguments = (jnp.asarray(x), jnp.asarray(logits), tensors)
    found = jax.jit(jax.grad(sparse, argnums=(0, 1, 2)))(*arguments)
    expected = jax.jit(jax.grad(every, argnums=(0, 1, 2)))(*arguments)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def packed(type, *shape, seed):
    """A stack `[E, N, K]` of random blocks with scales near 2^-9."""
    elements, size = BLOCK_SIZES[type]
    *leading, k = shape
    raw = np.random.default_rng(seed).integers(0, 256, (*leading, k // elements, size))
    raw = raw.astype(np.uint8)
    at = size - 2 if type == GGMLType.Q6_K else 0
    raw[..., at : at + 2] = np.full(1, 2**-9, np.float16).view(np.uint8)
    return jax.jit(pack, static_argnums=1)(jnp.asarray(raw), type)


def launches(n_tokens, stacks, policy):
    x, weights = jnp.ones((n_tokens, stacks[0].shape[2])), jnp.ones((n_tokens, 2))
    chosen = jnp.zeros((n_tokens, 2), jnp.int32)
    run = lambda: expert_ffn(x, weights, chosen, *stacks, "silu", policy=policy)  # noqa: E731
    return str(jax.make_jaxpr(run)()).count("name=grouped_matvec_")


def test_who_runs_experts():
    plain = tuple(map(jnp.asarray, experts_of(0, 4)))
    types = (GGMLType.Q4_0, GGMLType.Q4_0, GGMLType.Q8_0)
    quantized = tuple(packed(type, 4, 32, 32, seed=i) for i, type in enumerate(types))
    for stacks, name in ((plain, "plain_matvec:F32"), (quantized, "grouped_matvec:Q8_0")):
        assert launches(2, stacks, DEFAULT_POLICY) == launches(2, stacks, XLA) == 0
        assert launches(2, stacks, INTERPRET) == launches(2, stacks, KernelPolicy("pallas")) == 2
        assert launches(2, stacks, KernelPolicy(None, ((name, "failed"),), interpret=True)) == 0
        with pytest.raises(UnsupportedError, match="up to 256 pairs of token and expert"):
            launches(129, stacks, KernelPolicy("pallas"))
    with pytest.raises(UnsupportedError, match="some experts' weights are packed"):
        launches(1, (*quantized[:2], jnp.ones((4, 32, 32))), KernelPolicy("pallas"))


def test_the_kernel_equals_plain_jax():
    """Whether tokens share experts or not."""
    rng = np.random.default_rng(8)
    x = rng.standard_normal((3, 32), np.float32)
    weights = rng.random((3, 2), np.float32)
    stacks = [packed(GGMLType.Q8_0, 6, 32, 32, seed=seed) for seed in range(3)]
    for chosen in ([[0, 1], [2, 3], [4, 5]], [[5, 1], [1, 5], [5, 0]]):
        found, expected = (
            np.asarray(ffn(x, weights, np.int32(chosen), *stacks, activation="silu", policy=policy))
            for policy in (INTERPRET, XLA)
        )
        assert found.dtype == expected.dtype
        assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)


def test_gradients_of_plain_experts_are_those_of_plain_jax():
    rng = np.random.default_rng(9)
    x = jnp.asarray(rng.standard_normal((3, _D), np.float32))
    chosen = jnp.asarray([[0, 2], [1, 0], [2, 1]], jnp.int32)
    weights = jnp.asarray(rng.random((3, 2), np.float32))
    tensors = tuple(jnp.asarray(t) for t in experts_of(10, 3))

    def gradients(policy):
        def loss(x, weights, tensors):
            y = expert_ffn(x, weights, chosen, *tensors, "silu", policy=policy)
            return jnp.sum(jnp.sin(y))

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(x, weights, tensors)

    found, expected = jax.tree.leaves(gradients(INTERPRET)), jax.tree.leaves(gradients(XLA))
    for a, b in zip(found, expected, strict=True):
        # By norms: the sine of large sums turns their last bits into more in single elements.
        assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(b)
