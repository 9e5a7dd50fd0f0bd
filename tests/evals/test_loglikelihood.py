"""Likelihoods of texts: how they are split, cut and summed, resumed, and what is refused."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rfjax
from rfjax.errors import RequestError
from rfjax.evals.loglikelihood import (
    encode_pair,
    loglikelihood,
    loglikelihood_rolling,
    prefix_token,
    rolling_windows,
)
from rfjax.evals.records.journal import Journal
from rfjax.evals.scoring.scorer import Scorer

BUNDLED = pathlib.Path(__file__).parents[2] / "examples" / "models" / "shakespeare.gguf"


@pytest.fixture(scope="module")
def llm():
    return rfjax.LLM(BUNDLED, compilation_cache=False)


@pytest.fixture(scope="module")
def scorer(llm):
    return Scorer(llm.model, step_tokens=64)


@pytest.fixture(scope="module")
def reference(llm):
    """Sum of log-probabilities of the last tokens of a row, and whether all are likeliest."""
    forward = jax.jit(rfjax.forward, static_argnames="config")

    def score(ids, first):
        padded = np.zeros(256, np.int32)
        padded[: len(ids)] = ids
        model = llm.model
        logits = np.asarray(forward(model.params, padded, config=model.config), np.float64)
        logits = logits[first - 1 : len(ids) - 1]
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        total = logprobs[np.arange(len(ids) - first), ids[first:]].sum()
        return total, bool((logits.argmax(-1) == ids[first:]).all())

    return score


QUESTIONS = [
    ("GLOUCESTER:\nGood morrow to my", " lord"),
    ("GLOUCESTER:\nGood morrow to my", " horse"),
    ("GLOUCESTER:\nGood morrow to my ", "sweet sovereign"),
    ("", "First Citizen:"),
]


def test_texts_are_scored_after_their_contexts(llm, scorer, reference):
    found = loglikelihood(scorer, llm.tokenizer, QUESTIONS)
    encode = llm.tokenizer.encode
    for (context, continuation), (logprob, is_greedy) in zip(QUESTIONS, found, strict=True):
        first = len(encode(context.rstrip()))
        total, greedy = reference(encode(context + continuation), first)
        assert logprob == pytest.approx(total, abs=1e-3)
        assert is_greedy == greedy
    assert found[0].logprob > found[1].logprob


def test_the_class_scores_the_same(llm, scorer):
    expected = loglikelihood(scorer, llm.tokenizer, QUESTIONS)
    assert llm.loglikelihood(QUESTIONS, progress=True) == expected
    (text,) = llm.loglikelihood_rolling("Good morrow")
    assert text == loglikelihood_rolling(scorer, llm.tokenizer, ["Good morrow"])[0]


def test_ids_are_taken_as_they_are(llm, scorer, reference):
    ids = llm.tokenizer.encode("Good morrow to my lord")
    (found,) = loglikelihood(scorer, None, [(ids[:3], ids[3:])])
    assert found.logprob == pytest.approx(reference(ids, 3)[0], abs=1e-3)


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation(llm):
    pairs = [("To be", " or not"), ("To be ", "or not")]
    first, second = (encode_pair(llm.tokenizer, *pair, "it") for pair in pairs)
    assert first == second
    assert first[0] == llm.tokenizer.encode("To be")


def test_long_contexts_lose_their_beginning(llm, scorer, caplog):
    limit = scorer.max_inputs
    ids = np.random.default_rng(0).integers(3, llm.config.vocab_size, limit + 40).tolist()
    long, short = loglikelihood(
        scorer, None, [(ids[:-5], ids[-5:]), (ids[-limit - 1 : -5], ids[-5:])]
    )
    assert long == short
    assert "1 of 2 contexts do not fit and lose their beginning" in caplog.text


def test_a_text_is_scored_in_windows(llm, reference):
    config = dataclasses.replace(llm.config, context_length=24)
    scorer = Scorer(dataclasses.replace(llm.model, config=config), step_tokens=64)
    text = "First Citizen:\nBefore we proceed any further, hear me speak. " * 4
    ids = llm.tokenizer.encode(text, add_special_tokens=False)
    (found,) = loglikelihood_rolling(scorer, llm.tokenizer, [text])
    assert found.n_tokens == len(ids) > 48
    row, total = [llm.tokenizer.bos_id, *ids], 0.0
    for start in range(0, len(ids), 24):
        end = min(start + 24, len(ids))
        before = row[max(0, end - 24) : start + 1]
        total += reference([*before, *ids[start:end]], len(before))[0]
    assert found.logprob == pytest.approx(total, abs=2e-3)


@given(st.integers(1, 100), st.integers(1, 40))
def test_windows_score_every_token_once_with_as_much_context_as_fits(n, length):
    ids = list(range(100, 100 + n))
    windows = rolling_windows(ids, 1, length)
    assert [token for window in windows for token in window.tokens] == ids
    row = [1, *ids]
    for window in windows:
        assert window.n_inputs <= length
        whole = (*window.context, *window.tokens)
        assert whole == tuple(row[row.index(whole[0]) :][: len(whole)])
    assert n <= length or windows[-1].n_inputs == length


def test_an_interrupted_evaluation_goes_on_where_it_stopped(llm, scorer, tmp_path):
    path = tmp_path / "journal.jsonl"
    everything = loglikelihood(scorer, llm.tokenizer, QUESTIONS)

    class Interrupted(Exception):
        pass

    def interrupt(done, total):
        if done == 2:
            raise Interrupted

    with pytest.raises(Interrupted), Journal.open(path, {"model": "it"}) as journal:
        loglikelihood(scorer, llm.tokenizer, QUESTIONS * 2, journal=journal, on_progress=interrupt)
    told = []
    with Journal.open(path, {"model": "it"}) as journal:
        assert len(journal) == 2
        resumed = loglikelihood(
            scorer,
            llm.tokenizer,
            QUESTIONS * 2,
            journal=journal,
            on_progress=lambda done, total: told.append((done, total)),
        )
        assert len(journal) == 4
    assert told == [(2, 4), (3, 4), (4, 4)]  # of eight requests four are distinct
    assert resumed == everything * 2


def test_the_class_keeps_a_journal_of_its_model(llm, tiny_llama_path, tmp_path):
    path = tmp_path / "journal.jsonl"
    first = llm.loglikelihood(QUESTIONS, journal=path)
    written = path.read_bytes()
    assert llm.loglikelihood(QUESTIONS, journal=path) == first
    assert path.read_bytes() == written
    other = rfjax.LLM(tiny_llama_path, compilation_cache=False)
    with pytest.raises(RequestError, match="weights"):
        other.loglikelihood([([5], [6])], journal=path)


@pytest.mark.parametrize(
    "request_, message",
    [
        (("text", [5]), "request 1: got text and ids"),
        (([5], []), "request 1: got a continuation of 0 tokens"),
        (("text", ""), "request 1: got a continuation of 0 tokens"),
        (([5], [5] * 2000), "request 1: got a continuation of 2000 tokens"),
        ((5, [6]), "token ids"),
        ("ab", "request 1: got 'ab', expected a pair of context and continuation"),
        (("a", "b", "c"), "request 1: got"),
    ],
)
def test_what_cannot_be_scored_is_refused(llm, scorer, request_, message):
    with pytest.raises(RequestError, match=message):
        loglikelihood(scorer, llm.tokenizer, [("a", " b"), request_])


def test_texts_need_a_tokenizer_and_tokens(llm, scorer):
    with pytest.raises(RequestError, match="request 0: the model has no tokenizer"):
        loglikelihood(scorer, None, [("a", "b")])
    with pytest.raises(RequestError, match="text 0: got no tokens"):
        loglikelihood_rolling(scorer, llm.tokenizer, [""])
    with pytest.raises(RequestError, match="names no token to begin a text with"):
        prefix_token(None)
