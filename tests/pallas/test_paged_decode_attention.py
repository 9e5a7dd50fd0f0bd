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

from rfjax.cache.paged import quantize_heads
from rfjax.ops.mask import Mask
from rfjax.ops.norm import rms_norm
from rfjax.ops.rope import apply_rope
from rfjax.ops.scores import NO_TERMS, ScoreTerms
from rfjax.pallas.paged_decode_attention import declines, paged_decode_attention
from rfjax.pallas.paged_decode_config import Config, heuristic, tuning_space

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
        (MASKS[1], "lanes"),
        (MASKS[1], "dot, two pages a block, a block a split"),
        (MASKS[2], "dot"),
        (MASKS[2], "lanes, split, ahead"),
        (MASKS[3], "lanes, split"),
        (MASKS[3], "lanes, ahead"),
    ],
    ids=lambda value: getattr(value, "kind", value),
)


@EVERY_MASK_AND_CONFIG
@settings(max_examples=6, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), positions=st.tuples(*[st.integers(-1, 63)] * 3))
def test_any_position(mask, name, seed, positions):
    check(Case(mask=mask), CONFIGS[name], seed, positions)
