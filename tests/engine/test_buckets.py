"""Bucketed sizes cover what is asked, and little more."""

from hypothesis import given
from hypothesis import strategies as st

from rfjax.engine.buckets import round_up_bucket, round_up_power_of_two


@given(st.integers(1, 10**6), st.sampled_from([1, 2, 64]))
def test_rounding_up_gives_the_nearest_power_of_two(n, least):
    power = round_up_power_of_two(n, least)
    assert power & (power - 1) == 0
    assert power >= n and power >= least
    assert power == least or power // 2 < n


@given(st.integers(1, 10**6))
def test_rounding_up_to_a_bucket_wastes_less_than_half(n):
    bucket = round_up_bucket(n)
    assert n <= bucket
    assert 2 * bucket < 3 * n or bucket == n
    assert any(bucket == times << shift for times in (1, 3) for shift in range(21))
