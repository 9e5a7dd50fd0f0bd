"""Perplexity with a stride: which tokens are scored, after what, and what bad input gets."""

import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rfjax
from rfjax.errors import RequestError
from rfjax.evals.strided import strided_perplexity, strided_windows, window_length

pytestmark = pytest.mark.quick_compile


@pytest.fixture(scope="module")
def model(tiny_llama_path):
    return rfjax.load(tiny_llama_path)


@pytest.mark.parametrize(
    "n_ctx, stride, expected",
    [(128, 64, 256), (224, 64, 256), (225, 64, 512), (512, 1, 512), (512, 256, 768)],
)
def test_windows_are_as_long_as_llama_cpps_contexts(n_ctx, stride, expected):
    assert window_length(n_ctx, stride) == expected


@settings(deadline=None, derandomize=True)
@given(st.integers(4, 12), st.data())
def test_scored_tokens_follow_each_other_without_a_gap(window, data):
    stride = data.draw(st.integers(1, window - 1))
    length = data.draw(st.integers(2 * window, 60))
    rows = strided_windows(list(range(length)), window, stride, None)
    scored = rows[:, window - stride :].ravel().tolist()
    assert scored == list(range(window - stride, window - stride + len(scored)))
    assert length - stride <= scored[-1] + 1 <= length
    # As llama-perplexity, which leaves the last window out where it would fit exactly.
    assert (scored[-1] + 1 == length - stride) == ((length - window) % stride == 0)
    some = data.draw(st.integers(1, 3))
    np.testing.assert_array_equal(
        strided_windows(list(range(length)), window, stride, some), rows[:some]
    )


def test_scores_are_those_of_forward_without_bos(model):
    ids = np.random.default_rng(0).integers(3, 300, 520).astype(np.int32)
    told = []
    result = strided_perplexity(
        model,
        ids.tolist(),
        n_ctx=16,
        stride=100,
        batch_size=2,
        on_sums=lambda done, total, sums: told.append((done, total, sums.perplexity)),
    )
    forward = jax.jit(rfjax.forward, static_argnames="config")
    nll = []
    for start in (0, 100, 200):
        row = ids[start : start + 256]
        logits = np.asarray(forward(model.params, row, config=model.config), np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        nll += [-logprobs[i - 1, row[i]] for i in range(156, 256)]
    assert (result.n_chunks, result.n_tokens) == (3, 300)
    assert (result.n_ctx, result.window, result.stride) == (16, 256, 100)
    assert result.perplexity == pytest.approx(math.exp(np.mean(nll)), rel=1e-5)
    assert told == [(i + 1, 3, value) for i, value in enumerate(result.running)]


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"stride": 0}, "stride: got 0, expected an integer of at least 1"),
        ({"stride": 64, "n_ctx": 2}, "n_ctx: got 2"),
        ({"stride": 64, "n_ctx": 250}, "windows of 512 tokens, and the model's context holds 256"),
        ({"stride": 256, "n_ctx": 16}, "expected less than the windows' 256 tokens"),
        ({"stride": 64, "n_ctx": 16}, "has 300 tokens, and windows of 256 need at least 512"),
        ({"stride": 64, "chunks": 0}, "chunks: got 0"),
        ({"stride": 64, "batch_size": 0}, "batch_size: got 0"),
    ],
)
def test_what_makes_no_sense_is_refused(model, sizes, message):
    with pytest.raises(RequestError, match=message):
        strided_perplexity(model, [5] * 300, **{"n_ctx": 128} | sizes)
