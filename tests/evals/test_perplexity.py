"""Perplexity: what is scored, how it is added up, and what bad input gets."""

import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rfjax
from rfjax.errors import RequestError
from rfjax.evals.perplexity import RunningPerplexity, chunk_tokens, perplexity
from rfjax.evals.score import score
from rfjax.sharding import make_mesh


@pytest.fixture(scope="module")
def model(tiny_llama_path):
    return rfjax.load(tiny_llama_path)


@pytest.fixture(scope="module")
def forward():
    return jax.jit(rfjax.forward, static_argnames="config")


@given(st.lists(st.floats(0, 20, width=32), min_size=2, max_size=50))
def test_the_estimate_is_the_mean_and_its_error(values):
    running = RunningPerplexity()
    for value in values:
        running.add(np.asarray([value], np.float32))
    wide = np.asarray(values, np.float64)
    assert running.perplexity == pytest.approx(math.exp(wide.mean()), rel=1e-9)
    error = math.exp(wide.mean()) * wide.std() / math.sqrt(len(values) - 1)
    assert running.stderr == pytest.approx(error, rel=1e-4, abs=1e-4 * running.perplexity)


def test_an_estimate_that_overflows_is_infinite():
    running = RunningPerplexity()
    running.add(np.asarray([1e4, 1e4], np.float32))
    assert running.perplexity == math.inf


@settings(deadline=None)
@given(st.integers(4, 12), st.integers(0, 80), st.integers(1, 5))
def test_chunks_are_disjoint_and_start_with_bos(n_ctx, extra, chunks):
    ids = list(range(100, 100 + 2 * n_ctx + extra))
    rows = chunk_tokens(ids, n_ctx, chunks, bos_id=1)
    assert rows.shape == (min(chunks, len(ids) // n_ctx), n_ctx)
    assert (rows[:, 0] == 1).all()
    for i, row in enumerate(rows):
        assert row[1:].tolist() == ids[i * n_ctx + 1 : (i + 1) * n_ctx]
    assert chunk_tokens(ids, n_ctx, None, None)[0, 0] == ids[0]


@pytest.mark.parametrize("n_ctx", [16, 33])
def test_scores_are_those_of_forward(model, forward, n_ctx):
    """Each scored token against the log-softmax of `forward`, one chunk at a time, in f64."""
    ids = np.random.default_rng(0).integers(3, 300, 3 * n_ctx + 5)
    result = perplexity(model, ids.tolist(), n_ctx=n_ctx, batch_size=2)
    nll = []
    for i in range(3):
        row = ids[i * n_ctx : (i + 1) * n_ctx].copy()
        row[0] = model.tokenizer.bos_id
        logits = np.asarray(
            forward(model.params, row.astype(np.int32), config=model.config), np.float64
        )
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for position in range(n_ctx // 2 + 1, n_ctx):
            nll.append(-logprobs[position - 1, row[position]])
    assert result.n_chunks == 3
    assert result.n_tokens == len(nll) == 3 * (n_ctx - 1 - n_ctx // 2)
    assert result.perplexity == pytest.approx(math.exp(np.mean(nll)), rel=1e-5)
    assert result.running[-1] == result.perplexity
    assert result.mean_nll == pytest.approx(np.mean(nll), rel=1e-5)


def test_the_result_does_not_depend_on_the_batch(model):
    ids = np.random.default_rng(1).integers(3, 300, 16 * 7).tolist()
    seen = [perplexity(model, ids, n_ctx=16, batch_size=n).running for n in (2, 3)]
    np.testing.assert_allclose(seen[0], seen[1], rtol=1e-6)


@pytest.mark.parametrize(("data", "parallel"), [(8, 1), (4, 2)])
def test_eight_devices_give_the_result_of_one(model, tiny_llama_path, data, parallel):
    ids = np.random.default_rng(2).integers(3, 300, 16 * 9).tolist()  # the last batch is not full
    spread = rfjax.load(tiny_llama_path, mesh=make_mesh(data=data, model=parallel))
    expected = perplexity(model, ids, n_ctx=16, batch_size=3)
    found = perplexity(spread, ids, n_ctx=16, batch_size=3)
    assert (found.n_tokens, found.n_chunks) == (expected.n_tokens, expected.n_chunks)
    np.testing.assert_allclose(found.running, expected.running, rtol=1e-6)
    assert found.stderr == pytest.approx(expected.stderr, rel=1e-5)


def test_progress_is_told_chunk_by_chunk(model):
    told = []
    ids = list(range(3, 3 + 64))
    result = perplexity(
        model,
        ids,
        n_ctx=16,
        chunks=3,
        on_chunk=lambda i, n, estimate: told.append((i, n, estimate)),
    )
    assert told == [(i + 1, 3, result.running[i]) for i in range(3)]


def test_logits_of_all_tokens_are_never_held(model):
    """No array of the scoring program has a row for every token and a column for every entry."""
    batch, length = 64, 128
    rows = np.zeros((batch, length), np.int32)
    mask = np.ones(rows.shape, bool)
    jaxpr = jax.make_jaxpr(
        lambda params, tokens: score(params, tokens, mask, first=64, config=model.config)
    )(model.params, rows)
    vocab = model.config.vocab_size
    assert f",{vocab}]" in str(jaxpr)  # the chunk's logits are there
    for eqn in _equations(jaxpr.jaxpr):
        for var in eqn.outvars:
            shape = getattr(var.aval, "shape", ())
            if vocab in shape:
                assert math.prod(shape) <= 1024 * vocab


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _equations(inner)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n_ctx": 64}, "the text has 100 tokens, and a context of 64 needs at least 128"),
        ({"n_ctx": 3}, "n_ctx: got 3, expected an integer of at least 4"),
        ({"n_ctx": "16"}, "n_ctx: got '16', expected an integer"),
        ({"n_ctx": 16.0}, "n_ctx: got 16.0, expected an integer"),
        ({"n_ctx": 257}, "the model's context holds 256"),
        ({"n_ctx": 16, "chunks": 0}, "chunks: got 0"),
        ({"n_ctx": 16, "chunks": 1.5}, "chunks: got 1.5"),
        ({"n_ctx": 16, "batch_size": 0}, "batch_size: got 0"),
    ],
)
def test_what_cannot_be_scored_is_refused(model, arguments, message):
    with pytest.raises(RequestError, match=message):
        perplexity(model, [5] * 100, **arguments)


def test_ids_outside_the_vocabulary_are_refused(model):
    with pytest.raises(RequestError, match="token ids from 5 to 99999"):
        perplexity(model, [5] * 31 + [99999], n_ctx=16)
    with pytest.raises(RequestError, match=f"token ids from 5 to {2**40}"):
        perplexity(model, [5] * 31 + [2**40], n_ctx=16)


@pytest.mark.parametrize("text", [[5.5] * 40, ["a", "b"] * 20, b"bytes" * 10, None])
def test_what_is_neither_text_nor_ids_is_refused(model, text):
    with pytest.raises(RequestError, match="token ids, which are integers"):
        perplexity(model, text, n_ctx=16)
