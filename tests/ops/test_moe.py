"""Routing and the grouped expert product against NumPy that computes every expert densely."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rfjax.errors import UnsupportedError
from rfjax.ops.dispatch import DEFAULT_POLICY, KernelPolicy
from rfjax.ops.linear import Projection
from rfjax.ops.moe import expert_ffn, route
from rfjax.quant.qtensor import pack
from rfjax.quant.types import BLOCK_SIZES, GGMLType

pytestmark = pytest.mark.quick_compile

_D, _F = 6, 5
_NO_BIAS = (None,) * 3

XLA, INTERPRET = KernelPolicy("xla"), KernelPolicy(interpret=True)


@functools.partial(jax.jit, static_argnames=("activation", "policy"))
def ffn(x, weights, chosen, *stacks, biases=_NO_BIAS, activation="silu", policy=DEFAULT_POLICY):
    projections = map(Projection, stacks, biases)
    return expert_ffn(x, weights, chosen, *projections, activation, policy=policy)


router = jax.jit(
    route, static_argnames=("n_used", "normalize", "gating", "n_groups", "n_groups_used")
)


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


def biases_of(seed, n_experts, width=_D, ffn_width=_F):
    """Of gate and up [E, F], and of down [E, D]."""
    rng = np.random.default_rng(seed)
    shapes = [(n_experts, n) for n in (ffn_width, ffn_width, width)]
    return tuple(2 * rng.standard_normal(shape, np.float32) for shape in shapes)


def silu(gate, up):
    return gate / (1 + np.exp(-gate)) * up


def swiglu_oai(gate, up):
    gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
    return gate / (1 + np.exp(-1.702 * gate)) * (up + 1)


def dense(x, weights, chosen, gate, up, down, biases=_NO_BIAS, gated=silu):
    """Every expert on every token; then the chosen ones' weighted sum."""
    x = x.astype(np.float64)
    of_gate, of_up, of_down = (0 if bias is None else bias[None] for bias in biases)
    gates = np.einsum("td,efd->tef", x, gate) + of_gate
    ups = np.einsum("td,efd->tef", x, up) + of_up
    every = np.einsum("tef,edf->ted", gated(gates, ups), down) + of_down
    picked = np.take_along_axis(every, chosen[:, :, None], axis=1)
    return (picked * weights[:, :, None]).sum(1)


def routed(logits, n_used, *, normalize, scale, gating, bias, n_groups, n_groups_used):
    """Expert by expert, in f64: weights and ids of every token's chosen ones, best first."""
    weights, ids = [], []
    for row in logits.astype(np.float64):
        gates = {
            "softmax": softmax(row[None])[0],
            "sigmoid": 1 / (1 + np.exp(-row)),
            "softmax_of_chosen": row,
        }[gating]
        scores = gates if bias is None else gates + bias
        groups = np.split(scores, n_groups)
        by_group = [sum(sorted(group)[-2:]) for group in groups]
        taken = sorted(range(n_groups), key=lambda g: -by_group[g])[:n_groups_used]
        size = len(row) // n_groups
        able = [e for e in range(len(row)) if e // size in taken]
        chosen = sorted(able, key=lambda e: -scores[e])[:n_used]
        weight = gates[chosen]
        if gating == "softmax_of_chosen":
            weight = softmax(weight[None])[0]
        if normalize:
            weight = weight / max(weight.sum(), 2.0**-14)
        weights.append(weight * scale)
        ids.append(chosen)
    return np.array(weights), np.array(ids)


GATINGS = ("softmax", "sigmoid", "softmax_of_chosen")


@settings(max_examples=24, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.sampled_from([(1, 1, 1, 1, 1), (9, 6, 2, 1, 1), (7, 12, 5, 4, 2), (4, 6, 6, 1, 1)]),
    how=st.sampled_from([(0, True, True), (0, False, False), (1, True, True), (2, False, True)]),
    scale=st.sampled_from([1.0, 2.5]),
)
def test_routing_takes_the_best_and_weighs_them(seed, sizes, how, scale):
    n_tokens, n_experts, n_used, n_groups, n_groups_used = sizes
    gating, biased, normalize = how
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((n_tokens, n_experts), np.float32) * 3
    bias = rng.standard_normal(n_experts, np.float32) if biased else None
    options = {
        "normalize": normalize,
        "gating": GATINGS[gating],
        "n_groups": n_groups,
        "n_groups_used": n_groups_used,
    }
    weights, chosen = router(logits, n_used=n_used, scale=scale, selection_bias=bias, **options)
    expected, ids = routed(logits, n_used, scale=scale, bias=bias, **options)
    assert_array_equal(chosen, ids)
    assert_allclose(weights, expected, rtol=1e-5)
    assert weights.dtype == jnp.float32 and chosen.dtype == jnp.int32


def test_every_part_of_the_routing_counts():
    """Each argument changes the result of these logits."""
    logits = np.random.default_rng(0).standard_normal((64, 16), np.float32)
    bias = np.linspace(-0.3, 0.3, 16, dtype=np.float32)
    plain = {"n_used": 4, "normalize": False, "scale": 1.0}
    changes = [
        {"normalize": True},
        {"scale": 2.0},
        {"gating": "sigmoid"},
        {"gating": "softmax_of_chosen"},
        {"selection_bias": bias},
        {"n_groups": 4, "n_groups_used": 2},
    ]
    usual = router(logits, **plain)
    for change in changes:
        weights, chosen = router(logits, **{**plain, **change})
        assert np.abs(weights - usual[0]).max() > 1e-2
        choosing = change.keys() & {"selection_bias", "n_groups"}
        assert bool(choosing) == bool((np.asarray(chosen) != usual[1]).any())


def test_the_bias_chooses_and_does_not_weigh():
    logits, bias = jnp.asarray([[2.0, 1.0, 0.0]]), jnp.asarray([0.0, 0.0, 9.0])
    weights, chosen = router(
        logits, n_used=2, normalize=False, scale=1.0, gating="sigmoid", selection_bias=bias
    )
    assert_array_equal(chosen, [[2, 0]])
    assert_allclose(weights, [[0.5, 1 / (1 + np.exp(-2.0))]], rtol=1e-6)


def test_a_group_counts_by_its_two_best():
    """The best expert of all is in a group that is not taken."""
    logits = jnp.asarray([[4.0, -9.0, -9.0, 2.0, 3.0, -9.0]])
    how = {"normalize": False, "scale": 1.0, "gating": "softmax_of_chosen", "n_groups": 2}
    _, chosen = router(logits, n_used=2, n_groups_used=1, **how)
    assert_array_equal(chosen, [[4, 3]])
    _, chosen = router(logits, n_used=2, n_groups_used=2, **how)
    assert_array_equal(chosen, [[0, 4]])


def test_groups_of_one_expert_and_more_experts_than_the_taken_groups_have():
    logits = jnp.asarray([[1.0, 3.0, 2.0, 0.0]])
    how = {"normalize": True, "scale": 1.0, "gating": "sigmoid"}
    _, chosen = router(logits, n_used=2, n_groups=4, n_groups_used=2, **how)
    assert_array_equal(chosen, [[1, 2]])
    weights, chosen = router(logits, n_used=3, n_groups=2, n_groups_used=1, **how)
    assert_array_equal(chosen, [[1, 0, 2]])
    assert np.isfinite(np.asarray(weights)).all()


@pytest.mark.parametrize(("gating", "groups"), [("softmax", (1, 1)), ("sigmoid", (3, 2))])
def test_of_equals_the_lower_numbers_are_taken(gating, groups):
    n_groups, n_groups_used = groups
    how = {"gating": gating, "n_groups": n_groups, "n_groups_used": n_groups_used}
    weights, chosen = router(jnp.zeros((3, 6)), n_used=4, normalize=True, scale=1.0, **how)
    assert_array_equal(chosen, [[0, 1, 2, 3]] * 3)
    assert_allclose(weights, 0.25)


def test_a_vanishing_sum_is_not_divided_by():
    how = {"n_used": 2, "normalize": True, "scale": 1.0, "gating": "sigmoid"}
    weights, _ = router(jnp.full((1, 4), -20.0), **how)
    assert_allclose(weights, np.exp(-20.0) * 2.0**14, rtol=1e-5)


@pytest.mark.parametrize("gating", GATINGS)
def test_far_logits_give_finite_weights(gating):
    logits = jnp.asarray([[1e4, -1e4, 0.0]])
    weights, chosen = router(logits, n_used=2, normalize=True, scale=1.0, gating=gating)
    assert_allclose(weights, [[2 / 3, 1 / 3] if gating == "sigmoid" else [1.0, 0.0]], rtol=1e-6)
    assert_array_equal(chosen, [[0, 2]])


@pytest.mark.parametrize(
    ("gating", "n_experts", "biased", "groups"),
    [
        ("softmax", 5, False, (1, 1)),
        ("sigmoid", 60, True, (4, 2)),
        ("softmax_of_chosen", 8, True, (1, 1)),
    ],
)
def test_a_token_s_routing_does_not_depend_on_the_tokens_beside_it(
    gating, n_experts, biased, groups
):
    """Not in a single bit."""
    rng = np.random.default_rng(n_experts)
    logits = rng.standard_normal((700, n_experts), np.float32) * 3
    bias = rng.standard_normal(n_experts, np.float32) if biased else None
    route_all = lambda logits: router(  # noqa: E731
        logits,
        n_used=3,
        normalize=True,
        scale=1.5,
        gating=gating,
        selection_bias=bias,
        n_groups=groups[0],
        n_groups_used=groups[1],
    )
    whole = [np.asarray(part) for part in route_all(logits)]
    for rows in (1, 7):
        for first in range(0, 700 - rows, 131):
            part = route_all(logits[first : first + rows])
            for found, expected in zip(part, whole, strict=True):
                assert_array_equal(found, expected[first : first + rows])


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
    weights, chosen = router(logits, n_used=n_used, normalize=True, scale=1.0)
    tensors = experts_of(seed, n_experts)
    found = ffn(x, weights, chosen, *tensors)
    expected = dense(x, np.asarray(weights), np.asarray(chosen), *tensors)
    assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("n_tokens", [1, 300])
def test_all_tokens_on_one_expert(n_tokens):
    """The worst balance: nothing is dropped."""
    x = np.random.default_rng(0).standard_normal((n_tokens, _D), np.float32)
    chosen = np.full((n_tokens, 1), 6, np.int32)
    weights = np.linspace(0.1, 1, n_tokens, dtype=np.float32)[:, None]
    tensors = experts_of(1, 8)
    found = ffn(x, weights, chosen, *tensors)
    assert_allclose(found, dense(x, weights, chosen, *tensors), rtol=1e-4, atol=1e-4)


def test_experts_that_nobody_chose_are_not_computed():
    """Their weights may hold anything."""
    gate, up, down = experts_of(2, 4)
    x = np.random.default_rng(3).standard_normal((9, _D), np.float32)
    chosen = np.tile(np.array([[1, 3]], np.int32), (9, 1))
    weights = np.full((9, 2), 0.5, np.float32)
    clean = np.asarray(ffn(x, weights, chosen, gate, up, down))
    for tensor in (gate, up, down):
        tensor[[0, 2]] = np.nan
    assert_array_equal(ffn(x, weights, chosen, gate, up, down), clean)


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
    jaxpr = jax.make_jaxpr(ffn.__wrapped__)(*shapes)
    (scan,) = (e for e in jaxpr.eqns if e.primitive.name == "scan")
    n_blocks = scan.params["length"]
    (rows,) = {v.aval.shape[1] for v in scan.invars if v.aval.shape[::2] == (n_blocks, _D)}
    # At most one block an expert is not full.
    assert n_blocks * rows <= n_tokens * n_used + n_experts * rows < n_tokens * n_experts


@pytest.mark.parametrize(
    ("biased", "activation", "ffn_width"), [(False, "silu", 48), (True, "swiglu_oai", 33)]
)
def test_a_token_does_not_depend_on_the_tokens_beside_it(biased, activation, ffn_width):
    """Not in a single bit, whether its block is full or not."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((300, 32), np.float32)
    logits = rng.standard_normal((300, 8), np.float32)
    tensors = experts_of(5, 8, 32, ffn_width)
    biases = biases_of(6, 8, 32, ffn_width) if biased else _NO_BIAS
    weights, chosen = (np.asarray(a) for a in router(logits, n_used=2, normalize=True, scale=1.0))
    run = lambda at: np.asarray(  # noqa: E731
        ffn(x[at], weights[at], chosen[at], *tensors, biases=biases, activation=activation)
    )
    whole = run(slice(None))
    for rows in (1, 5):
        for first in range(0, 300, 43):
            at = slice(first, first + rows)
            assert_array_equal(run(at), whole[at])


@pytest.mark.parametrize("n_tokens", [1, 40])
def test_biases_and_limited_gates_of_experts(n_tokens):
    rng = np.random.default_rng(11)
    x = 3 * rng.standard_normal((n_tokens, _D), np.float32)
    logits = rng.standard_normal((n_tokens, 4), np.float32)
    weights, chosen = (np.asarray(a) for a in router(logits, n_used=2, normalize=True, scale=1.0))
    tensors, biases = experts_of(12, 4), biases_of(13, 4)
    run = functools.partial(ffn, x, weights, chosen, *tensors, activation="swiglu_oai")
    expected = dense(x, weights, chosen, *tensors, biases, swiglu_oai)
    assert_allclose(run(biases=biases), expected, rtol=2e-4, atol=2e-3)
    for i in range(3 if n_tokens == 1 else 0):
        others = tuple(None if i == j else bias for j, bias in enumerate(biases))
        found = run(biases=others)
        expected = dense(x, weights, chosen, *tensors, others, swiglu_oai)
        assert_allclose(found, expected, rtol=2e-4, atol=2e-3)
        assert np.abs(found - run(biases=biases)).max() > 0.1


def test_the_gradient_equals_the_dense_one():
    rng = np.random.default_rng(6)
    x = rng.standard_normal((7, _D), np.float32)
    logits = rng.standard_normal((7, 4), np.float32)
    chosen = jnp.asarray(np.argsort(-logits, axis=-1)[:, :2].astype(np.int32))
    tensors = tuple(jnp.asarray(t) for t in experts_of(7, 4))

    def weights_of(logits):
        return route(logits, 2, normalize=True, scale=1.0)[0]

    def sparse(x, logits, tensors):
        return jnp.sum(jnp.sin(ffn(x, weights_of(logits), chosen, *tensors)))

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


@pytest.mark.parametrize("gating", GATINGS)
def test_the_gradient_of_every_gating(gating):
    """Whether experts are chosen by more than the logits or not, only the weights have one."""
    rng = np.random.default_rng(17)
    logits = jnp.asarray(rng.standard_normal((5, 8), np.float32))
    towards = jnp.asarray(rng.standard_normal((5, 3), np.float32))
    how = {"selection_bias": jnp.linspace(-1, 1, 8), "n_groups": 4, "n_groups_used": 2}

    def routed(logits):
        options = {"normalize": gating == "sigmoid", "scale": 2.0, "gating": gating, **how}
        weights, chosen = route(logits, 3, **options)
        return jnp.sum(weights * towards), chosen

    def reference(logits, chosen):
        picked = jnp.take_along_axis(logits, chosen, axis=1)
        if gating == "sigmoid":
            weights = jax.nn.sigmoid(picked)
            weights = weights / jnp.sum(weights, axis=1, keepdims=True)
        elif gating == "softmax":
            weights = jnp.take_along_axis(jax.nn.softmax(logits), chosen, axis=1)
        else:
            weights = jax.nn.softmax(picked)
        return jnp.sum(2.0 * weights * towards)

    found, chosen = jax.jit(jax.grad(routed, has_aux=True))(logits)
    expected = jax.jit(jax.grad(reference))(logits, chosen)
    assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def packed(type, *shape, seed):
    """A stack `[E, N, K]` of random blocks with small scales."""
    elements, size = BLOCK_SIZES[type]
    *leading, k = shape
    raw = np.random.default_rng(seed).integers(0, 256, (*leading, k // elements, size))
    raw = raw.astype(np.uint8)
    if type == GGMLType.MXFP4:
        raw[..., 0] = 124  # a power of two
    else:
        at = size - 2 if type == GGMLType.Q6_K else 0
        raw[..., at : at + 2] = np.full(1, 2**-9, np.float16).view(np.uint8)
    return jax.jit(pack, static_argnums=1)(jnp.asarray(raw), type)


def launches(n_tokens, stacks, policy, **options):
    x, weights = jnp.ones((n_tokens, stacks[0].shape[2])), jnp.ones((n_tokens, 2))
    chosen = jnp.zeros((n_tokens, 2), jnp.int32)
    run = lambda: ffn(x, weights, chosen, *stacks, policy=policy, **options)  # noqa: E731
    return str(jax.make_jaxpr(run)()).count("name=grouped_matvec_")


def test_who_runs_experts():
    plain = tuple(map(jnp.asarray, experts_of(0, 4)))
    types = (GGMLType.Q4_0, GGMLType.Q4_0, GGMLType.Q8_0)
    quantized = tuple(packed(type, 4, 32, 32, seed=i) for i, type in enumerate(types))
    for stacks, name in ((plain, "plain_matvec:F32"), (quantized, "grouped_matvec:Q8_0")):
        assert launches(2, stacks, DEFAULT_POLICY) == launches(2, stacks, XLA) == 0
        assert launches(2, stacks, INTERPRET) == launches(2, stacks, KernelPolicy("pallas")) == 2
        biased = {"biases": biases_of(0, 4, 6, 5) if stacks is plain else biases_of(0, 4, 32, 32)}
        assert launches(2, stacks, INTERPRET, **biased, activation="swiglu_oai") == 2
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
            np.asarray(ffn(x, weights, np.int32(chosen), *stacks, policy=policy))
            for policy in (INTERPRET, XLA)
        )
        assert found.dtype == expected.dtype
        assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("type", "activation"), [(GGMLType.MXFP4, "swiglu_oai"), (None, "gelu_erf")]
)
def test_biases_in_the_kernel(type, activation):
    """And a gate that is applied behind it."""
    rng = np.random.default_rng(14)
    x, weights = rng.standard_normal((3, 32), np.float32), rng.random((3, 2), np.float32)
    chosen, biases = np.int32([[0, 1], [1, 3], [2, 0]]), biases_of(15, 4, 32, 32)
    stacks = experts_of(16, 4, 32, 32)
    if type is not None:
        stacks = [packed(type, 4, 32, 32, seed=seed) for seed in range(3)]
    found, expected = (
        np.asarray(
            ffn(x, weights, chosen, *stacks, biases=biases, activation=activation, policy=policy)
        )
        for policy in (INTERPRET, XLA)
    )
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)


def test_gradients_of_plain_experts_are_those_of_plain_jax():
    rng = np.random.default_rng(9)
    x = jnp.asarray(rng.standard_normal((3, _D), np.float32))
    chosen = jnp.asarray([[0, 2], [1, 0], [2, 1]], jnp.int32)
    weights = jnp.asarray(rng.random((3, 2), np.float32))
    tensors = tuple(jnp.asarray(t) for t in experts_of(10, 3))

    def gradients(policy):
        def loss(x, weights, tensors):
            y = ffn(x, weights, chosen, *tensors, policy=policy)
            return jnp.sum(jnp.sin(y))

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(x, weights, tensors)

    found, expected = jax.tree.leaves(gradients(INTERPRET)), jax.tree.leaves(gradients(XLA))
    for a, b in zip(found, expected, strict=True):
        # By norms: the sine of large sums turns their last bits into more in single elements.
        assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(b)
