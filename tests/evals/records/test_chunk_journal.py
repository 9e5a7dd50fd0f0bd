"""Chunks that a journal keeps: none is computed twice, and values keep their bits."""

import numpy as np
import pytest

import rfjax
import rfjax.evals.perplexity
from rfjax.errors import ModelFormatError
from rfjax.evals.perplexity import chunk_nll, perplexity
from rfjax.evals.records.chunk_journal import with_journal
from rfjax.evals.records.journal import Journal
from rfjax.evals.strided import strided_perplexity

pytestmark = pytest.mark.quick_compile

ROWS = np.asarray([[1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4], [9, 9, 9, 9]], np.int32)


@pytest.fixture(scope="module")
def model(tiny_llama_path):
    return rfjax.load(tiny_llama_path)


@pytest.fixture
def opened(tmp_path):
    """Opens the same journal each time."""
    return lambda: Journal.open(tmp_path / "chunks.jsonl", {})


@pytest.fixture
def n_computed(monkeypatch):
    """How many chunks each call computed."""
    counts = []
    real = rfjax.evals.perplexity.in_batches

    def in_batches(compute, rows, *args, **kwargs):
        counts.append(len(rows))
        return real(compute, rows, *args, **kwargs)

    monkeypatch.setattr(rfjax.evals.perplexity, "in_batches", in_batches)
    return counts


def hard(row):
    """Values that only their shortest decimals bring back: no two rows' alike."""
    return np.random.default_rng(row).random((2, 3), np.float32) ** 9


def test_values_keep_their_bits_and_order(opened):
    asked = []

    def compute(rows):
        for row in rows:
            asked.append(row.tolist())
            values = hard(len(asked))
            values[0, 0] = np.inf
            yield values

    arguments = {"kind": "a", "first": 1}
    with opened() as journal:
        values = with_journal(compute, ROWS, journal, **arguments)
        first = [next(values), next(values)]
    with opened() as journal:
        whole = list(with_journal(compute, ROWS, journal, **arguments))
        assert len(journal) == 4
    assert asked == ROWS.tolist()  # equal chunks, too, each once
    np.testing.assert_array_equal(whole[:2], first)
    np.testing.assert_array_equal(whole[2][0, 1:], hard(3)[0, 1:])
    with opened() as journal:
        again = list(with_journal(compute, ROWS, journal, **arguments))
        assert len(asked) == 4
        # Another kind, or other tokens scored, is something else.
        list(with_journal(compute, ROWS[:1], journal, kind="b", first=1))
        list(with_journal(compute, ROWS[:1], journal, kind="a", first=2))
        assert len(asked) == 6
    np.testing.assert_array_equal(again, whole)
    assert again[0].dtype == np.float32


@pytest.mark.parametrize(
    "measure",
    [
        lambda *args, **rest: perplexity(*args, n_ctx=256, **rest),
        lambda *args, **rest: strided_perplexity(*args, n_ctx=16, stride=64, **rest),
    ],
)
def test_an_interrupted_perplexity_goes_on(model, opened, n_computed, measure):
    ids = np.random.default_rng(3).integers(3, 300, 256 * 5).tolist()
    expected = measure(model, ids, batch_size=2, chunks=5)
    told = []

    def on_sums(done, total, sums):
        told.append((done, total, sums.perplexity))
        if len(told) == 2:
            raise KeyboardInterrupt

    with opened() as journal, pytest.raises(KeyboardInterrupt):
        measure(model, ids, batch_size=2, chunks=5, journal=journal, on_sums=on_sums)
    with opened() as journal:
        assert len(journal) == 2
        found = measure(model, ids, batch_size=2, chunks=5, journal=journal, on_sums=on_sums)
    with opened() as journal:
        assert measure(model, ids, batch_size=2, chunks=3, journal=journal).n_chunks == 3
    assert found == expected
    assert told[2:] == [(i + 1, 5, value) for i, value in enumerate(expected.running)]
    assert told[:2] == told[2:4]
    assert n_computed == [5, 5, 3]  # where nothing is missing, nothing is started


def test_what_is_no_number_is_not_kept(model, opened, monkeypatch):
    def in_batches(compute, rows, *_, **__):
        yield np.zeros(2, np.float32)
        yield np.asarray([0, np.nan], np.float32)

    monkeypatch.setattr(rfjax.evals.perplexity, "in_batches", in_batches)
    with opened() as journal:
        with pytest.raises(ModelFormatError, match="NaN"):
            list(chunk_nll(model, ROWS, first=1, batch_size=1, journal=journal))
        assert len(journal) == 1
