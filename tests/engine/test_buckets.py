"""Bucketed sizes cover what is asked, and little more."""

from hypothesis import given
from hypothesis import strategies as st

from rfjax.engine.buckets import (
    PIECE,
    most_prompt_tokens,
    piece_bucket,
    round_up_power_of_two,
    row_bucket,
)


@given(st.integers(1, 10**6), st.sampled_from([1, 2, 64]))
def test_rounding_up_gives_the_nearest_power_of_two(n, least):
    power = round_up_power_of_two(n, least)
    assert power & (power - 1) == 0
    assert power >= n and power >= least
    assert power == least or power // 2 < n


@given(st.integers(1, 10**6))
def test_pieces_and_rows_are_padded_to_few_sizes(n):
    pieces = piece_bucket(n, few_programs=False)
    assert n <= pieces
    assert 2 * pieces < 3 * n or pieces == n
    assert any(pieces == times << shift for times in (1, 3) for shift in range(21))
    rows = row_bucket(n, few_programs=False)
    assert rows == round_up_power_of_two(n)


@given(st.integers(1, 10**6))
def test_where_programs_are_to_be_few_they_are_fewer(n):
    rows = row_bucket(n, few_programs=True)
    assert n <= rows < 4 * n
    assert rows & (rows - 1) == 0 and rows.bit_length() % 2 == 1  # of four
    pieces = piece_bucket(n, few_programs=True)
    assert n <= pieces and (pieces < 2 * n or pieces == 4)
    assert pieces == 1 or pieces in [4 << shift for shift in range(20)]


@given(st.integers(1, 10**6), st.booleans())
def test_a_step_takes_one_prompt_of_the_whole_budget(budget, few_programs):
    pieces = piece_bucket(-(-budget // PIECE), few_programs=few_programs)
    assert PIECE * pieces <= most_prompt_tokens(budget) <= max(4 * PIECE, 2 * budget + 2 * PIECE)
