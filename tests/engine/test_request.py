"""Prompts are checked before anything runs."""

import pytest

from rfjax.engine.request import make_request
from rfjax.engine.sampling_params import SamplingParams
from rfjax.errors import RequestError


def request(ids, **params):
    return make_request(
        ids, SamplingParams(**params), vocab_size=10, max_context=8, end_ids=frozenset({2, 9})
    )


def test_an_empty_prompt_is_refused():
    with pytest.raises(RequestError, match="prompt is empty"):
        request([])


@pytest.mark.parametrize("ids", [[10], [-1], [1.5], [True]])
def test_an_id_outside_the_vocabulary_is_refused(ids):
    with pytest.raises(RequestError, match="outside the vocabulary: expected integers from 0 to 9"):
        request(ids)


def test_a_stop_id_outside_the_vocabulary_is_refused():
    with pytest.raises(RequestError, match="token id 10"):
        request([1], stop_token_ids=(10,))


def test_a_prompt_that_fills_the_context_is_refused():
    assert request([1] * 7).limit == 8
    with pytest.raises(RequestError, match="the prompt has 8 tokens, and the context holds 8"):
        request([1] * 8)


def test_output_is_limited_by_max_tokens_or_by_the_context():
    assert request([1, 2], max_tokens=3).limit == 5
    assert request([1, 2], max_tokens=100).limit == 8
    assert request([1, 2], max_tokens=None).limit == 8


def test_stop_ids_are_the_models_and_the_users():
    assert request([1], stop_token_ids=(4,)).stop_ids == (2, 4, 9)
    assert request([1], stop_token_ids=(4,), ignore_eos=True).stop_ids == (4,)


def test_a_seed_is_drawn_where_none_is_given():
    assert request([1], seed=7).seed == 7
    assert len({request([1]).seed for _ in range(4)}) > 1


@pytest.mark.parametrize(
    ("field", "value"), [("request_id", ""), ("priority", 0.5), ("deadline", float("nan"))]
)
def test_terms_of_the_wrong_kind_are_refused(field, value):
    with pytest.raises(RequestError, match=f"{field}: got .*, expected"):
        make_request(
            [1],
            SamplingParams(),
            vocab_size=10,
            max_context=8,
            end_ids=frozenset(),
            **{field: value},
        )


@pytest.mark.parametrize("params", [{"allowed_token_ids": (10,)}, {"logit_bias": {10: 1.0}}])
def test_tokens_outside_the_vocabulary_are_refused_in_every_list(params):
    with pytest.raises(RequestError, match="token id 10"):
        request([1], **params)


def test_samples_have_seeds_of_their_own():
    assert [request([1], seed=2**32 - 1).seed_of(i) for i in (0, 1)] == [2**32 - 1, 0]


def test_a_name_is_drawn_where_none_is_given():
    assert request([1]).id != request([1]).id


def test_allowing_only_tokens_that_stop_leaves_nothing_before_min_tokens():
    with pytest.raises(RequestError, match=r"allowed_token_ids: got .*all of which stop"):
        request([1], min_tokens=2, allowed_token_ids=(2, 9))
    assert request([1], min_tokens=2, allowed_token_ids=(2, 3)).stop_ids == (2, 9)
    assert request([1], allowed_token_ids=(2,)).stop_ids == (2, 9)
