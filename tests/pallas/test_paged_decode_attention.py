"""The paged decode kernel, interpreted, against attention over pages in f64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from support.paged_reference import (
    dequantized,
    paged_attention_reference,
    poisoned,
    random_table,
)

from rfjax.cache.paged import PagedLayer, append_pages, quantize_heads
from rfjax.ops.mask import Mask
from rfjax.ops.norm import rms_norm
from rfjax.ops.rope import apply_rope
from rfjax.ops.scores import NO_TERMS, ScoreTerms
from rfjax.pallas.page_write import quantize_head
from rfjax.pallas.paged_decode_attention import declines, paged_decode_attention
from rfjax.pallas.paged_decode_config import (
    Config,
    heads_of_program,
    heuristic,
    tuning_space,
)

pytestmark = pytest.mark.quick_compile

MASKS = (Mask(), Mask("bidirectional"), Mask("window", 21), Mask("chunked", 12))
TARGETS = ("cuda", "gfx9", "gfx11", "interpret")


@dataclasses.dataclass(frozen=True)
class Case:
    """Shapes and mechanisms of one layer; `heads` are N and K."""

    heads: tuple[int, int] = (4, 2)
    max_pages: int = 4
    page_size: int = 16
    size: int = 16
    half: int = 8
    mask: Mask = MASKS[0]
    pairing: str = "half"
    norms: bool = False
    multiplier: bool = False
    softcap: float = 0.0
    sinks: bool = False
    slopes: bool = False
    dtype: str = "float32"
    page_dtype: str = "float32"

    @property
    def capacity(self) -> int:
        return self.max_pages * self.page_size


def draw(case: Case, seed: int, positions):
    """The kernel's arrays and options; NaN wherever no row may look."""
    rng = np.random.default_rng(seed)
    n_heads, n_kv = case.heads
    batch = len(positions)
    n_pages = 2 + batch * case.max_pages
    table = random_table(rng, batch, case.max_pages, n_pages)

    def normal(*shape, dtype=case.dtype):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    q, k, v = (normal(batch, n, case.size) for n in (n_heads, n_kv, n_kv))
    shape = (n_pages, n_kv, case.page_size, case.size)
    pages = []
    for _ in range(2):
        hold = np.asarray(normal(*shape, dtype="float32"))
        if case.page_dtype == "int8":
            values, scales = quantize_heads(jnp.asarray(hold))
            scales = poisoned(np.asarray(scales)[..., None], table, positions, case.mask)
            pages.append((values, jnp.asarray(scales[..., 0])))
        else:
            hold = poisoned(hold, table, positions, case.mask)
            pages.append((jnp.asarray(hold, case.page_dtype), None))
    (k_pages, k_scale), (v_pages, v_scale) = pages
    angles = rng.uniform(0, 6, (batch, case.half))
    tables = jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)
    options = {"terms": NO_TERMS}
    if case.norms:
        options |= {"q_norm": normal(case.size, dtype="float32")}
        options |= {"k_norm": normal(case.size, dtype="float32")}
    if case.multiplier:
        options |= {"q_multiplier": normal(batch, dtype="float32")}
    sinks = normal(n_heads, dtype="float32") if case.sinks else None
    slopes = -jnp.abs(normal(n_heads, dtype="float32")) / 4 if case.slopes else None
    options["terms"] = ScoreTerms(sinks, slopes, case.softcap)
    arrays = (q, k, v, (k_pages, v_pages, k_scale, v_scale), jnp.asarray(table), *tables)
    return arrays, options


@functools.partial(jax.jit, static_argnames=("case", "config"))
def kernel(case, config, arrays, positions, options):
    return paged_decode_attention(
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
def prepared(case, arrays, options):
    """Queries and keys after norm, rotation and multiplier."""
    q, k, _, _, _, cos, sin = arrays
    if case.norms:
        q, k = rms_norm(q, options["q_norm"], 1e-5), rms_norm(k, options["k_norm"], 1e-5)
    q, k = apply_rope(q, cos, sin, case.pairing), apply_rope(k, cos, sin, case.pairing)
    if case.multiplier:
        q = q.astype(jnp.float32) * options["q_multiplier"][:, None, None]
    return q.astype(case.dtype), k


def expected(case, arrays, positions, options):
    """The output in f64, and the pages in f64 after the write."""
    q, k = prepared(case, arrays, options)
    _, _, v, (k_pages, v_pages, k_scale, v_scale), table, *_ = arrays
    written = []
    for new, pages, scales in ((k, k_pages, k_scale), (v, v_pages, v_scale)):
        if scales is None:
            wide = np.array(pages, np.float64)
            new = np.asarray(new.astype(pages.dtype), np.float64)
        else:
            wide, new = dequantized(pages, scales), dequantized(*quantize_heads(new))
        for row, position in enumerate(positions):
            if 0 <= position < case.capacity:
                page = table[row, position // case.page_size]
                wide[page, :, position % case.page_size] = new[row]
        written.append(wide)
    positions = np.asarray(positions)
    lengths = positions + 1
    at = positions[:, None], lengths, case.mask, 0.3, options["terms"]
    out = paged_attention_reference(np.asarray(q)[:, None], *written, table, *at)
    return out[:, 0], written


def check(case, config, seed, positions, tolerance=1e-5):
    arrays, options = draw(case, seed, positions)
    found, pages = kernel(case, config, arrays, jnp.asarray(positions, jnp.int32), options)
    out, written = expected(case, arrays, positions, options)
    assert found.dtype == case.dtype
    scale = max(1.0, np.abs(out).max())
    assert_allclose(np.asarray(found, np.float64), out, atol=tolerance * scale)
    k_pages, v_pages, k_scale, v_scale = pages
    for values, scales, wanted in zip((k_pages, v_pages), (k_scale, v_scale), written, strict=True):
        assert values.dtype == case.page_dtype
        wide = np.asarray(values, np.float64) if scales is None else dequantized(values, scales)
        # What an 8-bit cache holds may differ by a unit where a rotation is rounded otherwise.
        unit = 0.0 if scales is None else np.nanmax(np.asarray(scales))
        assert_allclose(wide, wanted, atol=max(3e-6, 1.01 * unit))
    return found, pages


CONFIGS = {
    "dot": Config(16, 1, 64, 4, 1, True, False),
    "dot, split": Config(16, 2, 64, 4, 1, True, True),
    "dot, two pages a block, a block a split": Config(32, 2, 64, 4, 1, True, True),
    "lanes": Config(16, 1, 8, 1, 1, False, True),
    "lanes, ahead": Config(8, 1, 8, 1, 2, False, True),
    "lanes, two pages a block": Config(32, 1, 8, 1, 2, False, True),
    "lanes, split": Config(8, 4, 8, 1, 1, False, False),
    "lanes, split, ahead": Config(16, 2, 8, 1, 2, False, True),
}

EVERY_MASK_AND_CONFIG = pytest.mark.parametrize(
    ("mask", "name"),
    [
        (MASKS[0], "dot, split"),
        (MASKS[0], "lanes, two pages a block"),
        (MASKS[1], "dot, two pages a block, a block a split"),
        (MASKS[2], "dot"),
        (MASKS[2], "lanes, split, ahead"),
        (MASKS[3], "lanes, split"),
    ],
    ids=lambda value: getattr(value, "kind", value),
)


@EVERY_MASK_AND_CONFIG
@settings(max_examples=6, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), positions=st.tuples(*[st.integers(-1, 63)] * 3))
def test_any_position(mask, name, seed, positions):
    check(Case(mask=mask), CONFIGS[name], seed, positions)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        (Case(pairing="interleaved", norms=True, multiplier=True), "dot"),
        (Case(heads=(5, 1), size=20, half=10, norms=True), "dot"),
        (Case(heads=(3, 3), size=80, half=16, max_pages=1), "lanes"),
        (
            Case(heads=(2, 1), size=96, half=48, max_pages=3),
            "dot, two pages a block, a block a split",
        ),
        (Case(heads=(2, 2), size=256, half=128, max_pages=3, page_size=32), "lanes, split"),
    ],
)
def test_norms_rotations_and_sizes(case, name):
    check(case, CONFIGS[name], 1, [case.capacity - 1, 5, -1], 2e-5)


CAPPED = Case(softcap=0.7, sinks=True)
ALL_TERMS = Case(slopes=True, sinks=True, mask=MASKS[2], softcap=2.0)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        (CAPPED, "dot"),
        (CAPPED, "lanes, split, ahead"),
        (ALL_TERMS, "dot, split"),
        (ALL_TERMS, "lanes"),
    ],
)
def test_terms_of_the_scores(case, name):
    check(case, CONFIGS[name], 4, [63, 30, -1])


PACKED = Case(page_dtype="int8", heads=(6, 2), mask=MASKS[2])


@pytest.mark.parametrize("name", ["dot, split", "lanes, ahead"])
def test_pages_of_8_bits(name):
    check(PACKED, CONFIGS[name], 5, [63, 17, 0], 2e-5)


def test_8_bits_are_those_of_the_cache():
    """To the bit, of heads that no rotation has rounded."""
    positions = [40, 3, -1]
    arrays, options = draw(PACKED, 6, positions)
    q, k, v, pages, table, cos, sin = arrays
    k = k.at[0, 0].set(0.0).at[1, 1, 3].set(jnp.nan)
    arrays = (q, k, v, pages, table, jnp.ones_like(cos), jnp.zeros_like(sin))
    positions = jnp.asarray(positions, jnp.int32)
    _, found = kernel(PACKED, CONFIGS["lanes, ahead"], arrays, positions, options)
    wanted = append_pages(PagedLayer(*pages), table, k[:, None], v[:, None], positions[:, None])
    assert_array_equal(found[2], wanted.k_scale)
    assert_array_equal(found[3], wanted.v_scale)
    assert_array_equal(found[1], wanted.v)
    known = np.isfinite(np.asarray(wanted.k_scale))
    assert_array_equal(np.asarray(found[0])[known], np.asarray(wanted.k)[known])


@pytest.mark.parametrize("name", ["dot, split", "lanes, ahead"])
def test_a_new_token_that_is_not_a_number_stays_one(name):
    positions = [20, 30, 0]
    arrays, options = draw(PACKED, 7, positions)
    q, k, v, *rest = arrays
    arrays = (q, k, v.at[0, 0, 2].set(jnp.nan), *rest)
    found, _ = kernel(PACKED, CONFIGS[name], arrays, jnp.asarray(positions, jnp.int32), options)
    assert np.isnan(np.asarray(found)[0, :3]).all()
    assert np.isfinite(np.asarray(found)[0, 3:]).all()
    assert np.isfinite(np.asarray(found)[1:]).all()


@pytest.mark.parametrize(
    ("dtype", "page_dtype", "name"),
    [
        ("bfloat16", "bfloat16", "dot, split"),
        ("float16", "float16", "lanes, ahead"),
        ("float16", "int8", "dot"),
        ("float32", "bfloat16", "dot"),
        ("bfloat16", "float32", "lanes"),
    ],
)
def test_narrow_dtypes(dtype, page_dtype, name):
    case = Case(dtype=dtype, page_dtype=page_dtype)
    units = {"float32": 0.0, "float16": 2**-10, "bfloat16": 2**-7}
    check(case, CONFIGS[name], 2, [63, 17, 0], 2e-5 + units[dtype])


def test_a_program_may_serve_part_of_a_group():
    positions = [63, 17, 0]
    for case, config in (
        (Case(heads=(6, 1), sinks=True), Config(16, 2, 4, 1, 1, False, True)),  # three and three
        (Case(heads=(40, 2), slopes=True), Config(16, 1, 16, 4, 1, True, True)),  # 16 and 4
    ):
        check(case, config, 8, positions)


# What the tests above have compiled.
SHARED = ("dot, split", "lanes, two pages a block")


def test_one_array_of_all_heads():
    """Queries, keys and values as one projection gives them."""
    case, config = Case(), CONFIGS[SHARED[0]]
    positions = jnp.asarray([30, 2, -1], jnp.int32)
    arrays, options = draw(case, 5, [30, 2, -1])
    q, k, v, *rest = arrays
    apart = kernel(case, config, arrays, positions, options)
    together = jnp.concatenate([q, k, v], axis=1)
    fused = kernel(case, config, (together, None, None, *rest), positions, options)
    jax.tree.map(assert_array_equal, fused, apart)


@pytest.mark.parametrize("name", SHARED)
def test_a_full_row_is_not_overwritten(name):
    positions = [64, 100, 1 << 30]
    arrays, options = draw(Case(), 4, positions)
    positions = jnp.asarray(positions, jnp.int32)
    found, pages = kernel(Case(), CONFIGS[name], arrays, positions, options)
    jax.tree.map(assert_array_equal, pages, arrays[3])
    assert np.isfinite(np.asarray(found)).all()


@pytest.mark.parametrize("name", SHARED)
def test_rows_may_share_pages(name):
    """A prefix that two sequences have in common; what is beyond a row's end is another's."""
    positions = [37, 40, -1]
    arrays, options = draw(Case(), 9, [63, 63, 63])
    table = np.array(arrays[4])
    table[1, :2] = table[0, :2]
    table[0, 3] = table[2, 3] = table[1, 2]
    arrays = (*arrays[:4], jnp.asarray(table), *arrays[5:])
    at = jnp.asarray(positions, jnp.int32)
    found, _ = kernel(Case(), CONFIGS[name], arrays, at, options)
    out, _ = expected(Case(), arrays, positions, options)
    assert_allclose(np.asarray(found), out, atol=1e-5)


@pytest.mark.parametrize("name", SHARED)
def test_a_row_does_not_depend_on_the_row_beside_it(name):
    case, config = Case(), CONFIGS[name]
    positions = jnp.asarray([50, 33, -1], jnp.int32)
    arrays, options = draw(case, 6, [50, 33, -1])
    whole, _ = kernel(case, config, arrays, positions, options)
    q, k, v, pages, *rest = arrays
    turned = (*(x[::-1] for x in (q, k, v)), pages, *(x[::-1] for x in rest))
    other, _ = kernel(case, config, turned, positions[::-1], options)
    assert_array_equal(other, whole[::-1])


@pytest.mark.parametrize("page_dtype", ["float32", "int8"])
def test_donated_pages_are_updated_in_place(page_dtype):
    case = Case(page_dtype=page_dtype)
    arrays, options = draw(case, 7, [5, 6])
    positions = jnp.asarray([5, 6], jnp.int32)
    config = CONFIGS["dot"]
    jaxpr = jax.make_jaxpr(lambda *a: kernel(case, config, a, positions, options))(*arrays)
    calls = [e for e in _equations(jaxpr.jaxpr) if e.primitive.name == "pallas_call"]
    aliased = [
        call.invars[i].aval for call in calls for i, _ in call.params["input_output_aliases"]
    ]
    pages = [page for page in arrays[3] if page is not None]
    assert [(a.shape, a.dtype) for a in aliased] == [(p.shape, p.dtype) for p in pages]


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        inner = equation.params.get("jaxpr")
        if equation.primitive.name != "pallas_call" and inner is not None:
            yield from _equations(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 256),
    n_kv=st.integers(1, 64),
    group=st.integers(1, 128),
    capacity=st.integers(1, 4096).map(lambda pages: 16 * pages),
    head_dim=st.integers(1, 256),
    dtype=st.sampled_from(["bfloat16", "float32"]),
    page_dtype=st.sampled_from(["bfloat16", "float32", "int8"]),
)
def test_the_heuristic_answers_for_every_shape(
    target, batch, n_kv, group, capacity, head_dim, dtype, page_dtype
):
    dtypes = jnp.dtype(dtype), jnp.dtype(page_dtype)
    arguments = (batch, (n_kv * group, n_kv), capacity, head_dim, dtypes, target)
    config = heuristic(*arguments)
    for size in (config.block_k, config.splits, config.heads, config.num_warps):
        assert size & (size - 1) == 0 < size
    assert config.splits == 1 or config.block_k * config.splits <= capacity
    assert 1 <= heads_of_program(config, group) <= config.heads
    assert config.block_k >= (16 if config.dot else 1)
    space = tuning_space(*arguments)
    assert space[0] == config
    assert len(set(space)) == len(space)


def test_what_it_declines():
    def answer(case, scale=1.0, pages=None):
        arrays, _ = draw(case, 0, [0])
        return declines(arrays[0], pages or arrays[3], case.half, scale)

    def shaped(*shape, dtype="bfloat16", scales=None):
        array = jax.ShapeDtypeStruct(shape, dtype)
        return (array, array, scales, scales)

    assert answer(Case()) is None
    assert answer(Case(dtype="bfloat16", size=80, half=40, page_dtype="int8")) is None
    assert "int32" in (answer(Case(), pages=shaped(4, 2, 16, 16, dtype="int32")) or "")
    assert "power of two" in (answer(Case(), pages=shaped(4, 2, 48, 16)) or "")
    assert "power of two" in (answer(Case(), pages=shaped(4, 2, 8, 16)) or "")
    assert "have scales" in (answer(Case(), pages=shaped(4, 2, 16, 16, dtype="int8")) or "")
    scales = jax.ShapeDtypeStruct((1,), "float32")
    large = shaped(3 << 20, 8, 16, 8, dtype="int8", scales=scales)
    assert "2 and 4 GiB" in (answer(Case(), pages=large) or "")
    assert "256" in (answer(Case(size=257)) or "")
    assert "rotated" in (answer(Case(size=8, half=8)) or "")
    assert "positive" in (answer(Case(), scale=-1.0) or "")


def test_numbers_are_rounded_the_same_without_an_instruction_for_it():
    """As on GPUs; not compiled, lest XLA simplify what they do not."""
    x = jnp.concatenate([jnp.arange(-254, 255, dtype=jnp.float32) / 2, jnp.asarray([0.49999997])])
    for head in (x, x * 0.37):
        values, scale = quantize_head(head, "cuda")
        wanted, wanted_scale = quantize_heads(head)
        assert_array_equal(values, wanted)
        assert_array_equal(scale, wanted_scale)
