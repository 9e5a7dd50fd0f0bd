"""Scores of continuations: those of `forward`, and the same bits in any company."""

import dataclasses

import jax
import numpy as np
import pytest

import rfjax
from rfjax.errors import RequestError, UnsupportedError
from rfjax.evals.scoring.continuation import Continuation, ContinuationScore
from rfjax.evals.scoring.scorer import Scorer
from rfjax.ops.mask import Mask
from rfjax.sharding import make_mesh


@pytest.fixture(scope="module")
def model(tiny_llama_path):
    return rfjax.load(tiny_llama_path)


@pytest.fixture(scope="module")
def scorer(model):
    return Scorer(model, step_tokens=64)  # small steps: one number of rows each, few programs


@pytest.fixture(scope="module")
def wanted(model):
    """Questions with answers, some of which share more than their question."""
    rng = np.random.default_rng(0)
    ids = lambda n: tuple(rng.integers(3, model.config.vocab_size, n).tolist())  # noqa: E731
    begin = ids(70)
    made = []
    for i in range(17):
        context = begin[: 5 * i + 1] + ids(i % 5)
        made += [Continuation(context, ids(n)) for n in (1, 2 + i, 40 if i % 3 else 70)]
    return made


@pytest.fixture(scope="module")
def scores(scorer, wanted):
    return scorer.score(wanted)


def same_bits(got: ContinuationScore, expected: ContinuationScore) -> bool:
    return (
        got.logprobs.tobytes() == expected.logprobs.tobytes()
        and got.greedy.tobytes() == expected.greedy.tobytes()
    )


def test_scores_are_those_of_forward(model, wanted, scores):
    forward = jax.jit(rfjax.forward, static_argnames="config")
    for one, score in zip(wanted, scores, strict=True):
        row = np.asarray(one.context + one.tokens)
        padded = np.zeros(256, np.int32)
        padded[: len(row)] = row
        logits = np.asarray(forward(model.params, padded, config=model.config), np.float64)
        begin = len(one.context) - 1
        logits = logits[begin : len(row) - 1]
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        chosen = logprobs[np.arange(len(one.tokens)), one.tokens]
        np.testing.assert_allclose(score.logprobs, chosen, atol=2e-5)
        assert (score.greedy == (logits.argmax(-1) == one.tokens)).all()
        assert score.total == pytest.approx(chosen.sum(), abs=1e-3)
        assert score.is_greedy == bool((logits.argmax(-1) == one.tokens).all())


@pytest.mark.parametrize("size", [1, 3, 8, 64])
def test_scores_have_the_same_bits_in_batches_of_any_size_and_order(scorer, wanted, scores, size):
    order = np.random.default_rng(size).permutation(len(wanted))[: 8 * size]
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        got = scorer.score([wanted[i] for i in batch])
        for index, score in zip(batch, got, strict=True):
            assert same_bits(score, scores[index])


def test_steps_of_fixed_shape_have_the_same_bits_in_bfloat16(tiny_llama_path, wanted):
    """Where bits may depend on the shape of a step, every step has the same."""
    model = rfjax.load(tiny_llama_path, dtype="bfloat16")
    scorer = Scorer(model, step_tokens=256)
    chosen = [one for one in wanted if one.n_inputs <= 16]
    together = scorer.score(chosen)
    for index in (0, 2, len(chosen) - 1):
        assert same_bits(scorer.score([chosen[index]])[0], together[index])


def test_scores_do_not_depend_on_the_room_for_pages(model, wanted, scores):
    few = Scorer(model, step_tokens=64, cache_tokens=256)
    for got, expected in zip(few.score(wanted[12:24]), scores[12:24], strict=True):
        assert same_bits(got, expected)


@pytest.mark.parametrize("data, model_axis", [(8, 1), (4, 2)])
def test_eight_devices_score_as_one(tiny_llama_path, wanted, scores, data, model_axis):
    mesh = make_mesh(data=data, model=model_axis)
    spread = Scorer(rfjax.load(tiny_llama_path, mesh=mesh), step_tokens=128)
    short = [i for i, one in enumerate(wanted) if one.n_inputs <= 16]  # few programs
    for got, expected in zip(
        spread.score([wanted[i] for i in short]), (scores[i] for i in short), strict=True
    ):
        np.testing.assert_allclose(got.logprobs, expected.logprobs, atol=2e-6, rtol=2e-6)


def test_each_is_told_once(scorer, wanted, scores):
    told = {}
    scorer.score(wanted, on_scored=lambda i, score: told.setdefault(i, []).append(score))
    assert sorted(told) == list(range(len(wanted)))
    assert all(len(given) == 1 and same_bits(given[0], scores[i]) for i, given in told.items())


def test_nothing_is_scored_without_requests(scorer):
    assert scorer.score([]) == []


@pytest.mark.parametrize(
    "context, tokens, message",
    [
        ((), (5,), "continuation 1: got 0 tokens of context and 1 to score"),
        ((5,), (), "continuation 1: got 1 tokens of context and 0 to score"),
        ((5,) * 200, (5,) * 58, "continuation 1: got 257 tokens, and the model's context holds"),
        ((5, 99999), (5,), "continuation 1: got token ids from 5 to 99999"),
        ((5,), (-1,), "continuation 1: got token ids from -1 to 5"),
    ],
)
def test_what_cannot_be_scored_is_refused(scorer, context, tokens, message):
    with pytest.raises(RequestError, match=message):
        scorer.score([Continuation((5,), (5,)), Continuation(context, tokens)])


@pytest.mark.parametrize("n", [32, 100])
def test_sizes_of_steps_are_powers_of_two(model, n):
    with pytest.raises(RequestError, match=f"step_tokens: got {n}, expected a power of two"):
        Scorer(model, step_tokens=n)


def test_bidirectional_models_are_refused(model):
    layers = tuple(
        dataclasses.replace(layer, mask=Mask("bidirectional")) for layer in model.config.layers
    )
    config = dataclasses.replace(model.config, layers=layers)
    with pytest.raises(UnsupportedError, match="predicts no token after another"):
        Scorer(dataclasses.replace(model, config=config))
