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
        ("include_stop_str_in_output", 1),
        ("typical_p", 0.0),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("logit_bias", {1: 200.0}),
        ("logit_bias", {-1: 0.5}),
        ("logit_bias", {"a": 0.5}),
        ("logit_bias", 3),
        ("allowed_token_ids", ()),
        ("allowed_token_ids", (-1,)),
        ("min_tokens", -1),
        ("min_tokens", 129),
        ("stop", ""),
        ("stop", ("a", 3)),
        ("stop", 3),
        ("n", 0),
        ("logprobs", 21),
        ("prompt_logprobs", -1),
    ],
)
def test_a_value_out_of_range_is_refused(field, value):
    with pytest.raises(RequestError, match=rf"{field}: got .*, expected"):
        SamplingParams(**{field: value})


def test_edges_of_the_ranges_are_fine():
    SamplingParams(max_tokens=None, temperature=0, top_k=-1, top_p=1, min_p=1, seed=2**32 - 1)
    assert SamplingParams(stop_token_ids=[3, 4]).stop_token_ids == (3, 4)


def test_texts_and_biases_are_kept_in_one_form():
    params = SamplingParams(stop="a", logit_bias={"7": 1, 3: -0.5}, allowed_token_ids=[7, 3])
    assert (params.stop, params.stop_strings) == (("a",), ("a",))
    assert params.logit_biases == ((3, -0.5), (7, 1.0))
    assert params.allowed_token_ids == (7, 3)
    assert hash(params) == hash(SamplingParams(**vars(params)))


def test_several_greedy_samples_are_refused():
    with pytest.raises(RequestError, match="n: got 2, expected 1 with temperature 0"):
        SamplingParams(n=2, temperature=0)
