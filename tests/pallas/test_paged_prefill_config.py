"""Settings of paged prefill attention exist for every shape and fit what they are for."""

import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfjax.pallas import paged_prefill_config as module
from rfjax.pallas.paged_prefill_config import head_parts, heuristic, tuning_space

TARGETS = ("cuda", "gfx9", "gfx11", "interpret")


def test_the_parts_of_a_head():
    """They follow each other, are powers of two, and reach its end."""
    for head_dim in range(1, 257):
        end = 0
        for start, size in head_parts(head_dim):
            assert start == end < head_dim
            assert size >= 16
            assert size & (size - 1) == 0
            end += size
        assert end >= head_dim
    assert head_parts(80) == ((0, 64), (64, 16))


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 300),
    length=st.integers(1, 128),
    n_kv=st.integers(1, 16),
    group=st.integers(1, 16),
    pages=st.integers(1, 300),
    head_dim=st.integers(1, 256),
    dtype=st.sampled_from(["bfloat16", "float16", "float32"]),
    page_dtype=st.sampled_from(["bfloat16", "float32", "int8"]),
)
def test_the_heuristic_answers_for_every_shape(
    target, batch, length, n_kv, group, pages, head_dim, dtype, page_dtype
):
    dtypes = jnp.dtype(dtype), jnp.dtype(page_dtype)
    shape = (batch, length, (n_kv * group, n_kv), 16 * pages, head_dim, dtypes, target)
    config = heuristic(*shape)
    assert config.block_q & (config.block_q - 1) == 0 == config.block_k & (config.block_k - 1)
    assert min(config.block_q, config.block_k) >= 16
    space = tuning_space(*shape)
    assert space[0] == config
    assert len(set(space)) == len(space)


def test_with_more_shared_memory_loads_are_further_ahead(monkeypatch):
    half = jnp.dtype("bfloat16")
    shape = (128, 128, (32, 8), 4096, 128, (half, half), "cuda")
    assert heuristic(*shape).num_stages == 2
    monkeypatch.setattr(module, "shared_memory", lambda target: 227 << 10)
    assert heuristic(*shape).num_stages == 3


def test_few_rows_are_cut_for_more_programs():
    half = jnp.dtype("bfloat16")
    many, few = (
        heuristic(batch, 128, (32, 8), 4096, 128, (half, half), "cuda") for batch in (16, 1)
    )
    assert (many.block_q, few.block_q) == (128, 64)
