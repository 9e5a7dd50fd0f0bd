"""Bucketed sizes cover what is asked, and stay within the bucketed capacity."""

from hypothesis import given
from hypothesis import strategies as st

from rfjax.engine.buckets import SMALLEST_CHUNK, prefill_chunks, round_up_power_of_two


@given(st.integers(1, 10**6), st.sampled_from([1, 2, 64]))
def test_rounding_up_gives_the_nearest_power_of_two(n, least):
    power = round_up_power_of_two(n, least)
    assert power & (power - 1) == 0
    assert power >= n and power >= least
    assert power == least or power // 2 < n


@given(st.integers(0, 5000), st.sampled_from([16, 64, 512]))
def test_chunks_cover_all_tokens_without_overlap(n_tokens, chunk):
    steps = prefill_chunks(n_tokens, chunk)
    done = 0
    for start, length in steps:
        assert start == done
        assert length <= max(chunk, SMALLEST_CHUNK)
        done += length
    assert done >= n_tokens
    assert not steps or steps[-1][0] < n_tokens
    # A slice beyond the token buffer would be moved back silently, so none may reach beyond it.
    assert done <= round_up_power_of_two(max(n_tokens, 1), 64)
