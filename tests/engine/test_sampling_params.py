"""Sampling parameters out of range are refused by name."""

import math

import pytest

from rfjax.engine.sampling_params import SamplingParams
from rfjax.errors import RequestError


@pytest.mark.parametrize(
    "field, value",
    [
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("top_k", -2),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("seed", -1),
        ("seed", 2**32),
        ("stop_token_ids", (-1,)),
        ("stop_token_ids", ("a",)),
        ("stop_token_ids", 5),
        ("ignore_eos", "no"),
    ],
)
def test_a_value_out_of_range_is_refused(field, value):
    with pytest.raises(RequestError, match=rf"{field}: got .*, expected"):
        SamplingParams(**{field: value})


def test_edges_of_the_ranges_are_fine():
    SamplingParams(max_tokens=None, temperature=0, top_k=-1, top_p=1, min_p=1, seed=2**32 - 1)
    assert SamplingParams(stop_token_ids=[3, 4]).stop_token_ids == (3, 4)
