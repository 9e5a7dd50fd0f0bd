"""Figures of a divergence, against numpy on all values at once, and the lines that show them."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfjax.evals.kl import kl_report
from rfjax.evals.kl.kl_statistics import KLStatistics


def tokens(n, seed, spread=1.0):
    """Values of `n` tokens under two models whose log-likelihoods differ by about `spread`."""
    rng = np.random.default_rng(seed)
    base = rng.exponential(3.0, n).astype(np.float32)
    model = np.abs(base + rng.normal(0, spread, n)).astype(np.float32)
    return {
        "nll": model,
        "nll_base": base,
        "kld": rng.exponential(0.1 * spread, n).astype(np.float32),
        "p_diff": (np.exp(-model) - np.exp(-base)).astype(np.float32),
        "same_top": rng.random(n) < 0.8,
    }


def counted(values, *cuts):
    statistics = KLStatistics()
    edges = [0, *sorted(cuts), len(values["nll"])]
    for start, stop in itertools.pairwise(edges):
        statistics.add(**{name: value[start:stop] for name, value in values.items()})
    return statistics


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(11, 400), st.integers(0, 99), st.sampled_from([1.0, 1e-3]))
def test_figures_are_those_of_all_values_at_once(n, seed, spread):
    values = tokens(n, seed, spread)
    found = counted(values, n // 3, n // 2).summary()
    x, y, kld, dp = (values[k].astype(np.float64) for k in ("nll", "nll_base", "kld", "p_diff"))
    root = math.sqrt(n - 1)
    a, b = math.exp(x.mean()), math.exp(y.mean())
    expected = {
        "ppl": (a, a * x.std() / root),
        "ppl_base": (b, b * y.std() / root),
        "log_ppl_ratio": ((x - y).mean(), (x - y).std() / root),
        "ppl_ratio": (a / b, a / b * (x - y).std() / root),
        "ppl_difference": (a - b, (a * x - b * y).std() / root),
        "kld": (kld.mean(), kld.std() / root),
        "p_diff": (dp.mean(), dp.std() / root),
    }
    for name, (value, error) in expected.items():
        figure = getattr(found, name)
        assert figure.value == pytest.approx(value, rel=1e-9, abs=1e-12), name
        assert figure.error == pytest.approx(error, rel=1e-5, abs=1e-12), name
    assert found.count == n
    assert found.correlation == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-9)
    rms = math.sqrt((dp**2).mean())
    assert found.p_diff_rms.value == pytest.approx(rms, rel=1e-9)
    assert found.p_diff_rms.error == pytest.approx(0.5 / rms * (dp**2).std() / root, rel=1e-6)
    same = values["same_top"].mean()
    assert found.same_top.value == pytest.approx(same)
    assert found.same_top.error == pytest.approx(math.sqrt(same * (1 - same)) / root)
    for percent, value in found.kld_percentiles.items():
        assert value == pytest.approx(np.quantile(kld, percent / 100), rel=1e-12), percent
    assert found.p_diff_percentiles[100.0] == dp.max()
    assert found.p_diff_percentiles[50.0] == np.median(dp)


def test_the_means_are_the_summarys():
    statistics = counted(tokens(50, 1))
    means, summary = statistics.means(), statistics.summary()
    for field in dataclasses.fields(means):
        assert getattr(means, field.name) == getattr(summary, field.name)


def test_a_model_against_itself():
    values = tokens(200, 2)
    values |= {"nll": values["nll_base"], "kld": 0 * values["kld"], "p_diff": 0 * values["kld"]}
    values["same_top"] = np.ones(200, bool)
    found = counted(values, 100).summary()
    for name in ("log_ppl_ratio", "ppl_difference", "kld", "p_diff", "p_diff_rms"):
        figure = getattr(found, name)
        assert (figure.value, figure.error) == (0.0, 0.0), name
    assert (found.ppl_ratio.value, found.ppl_ratio.error) == (1.0, 0.0)
    assert (found.same_top.value, found.same_top.error) == (1.0, 0.0)
    assert found.correlation == pytest.approx(1.0, abs=1e-12)
    assert "nan" not in kl_report.report(found)


def test_a_few_tokens_have_no_error():
    found = counted(tokens(10, 3)).means()
    assert found.kld.error == found.ppl.error == found.log_ppl_ratio.error == 0.0
    assert math.isnan(found.correlation)
    alone = counted(tokens(1, 3)).summary()
    assert alone.same_top.error == 0.0


def test_a_perplexity_that_overflows_is_infinite():
    values = tokens(20, 4)
    values["nll"] = np.full(20, 1e4, np.float32)
    assert counted(values).means().ppl.value == math.inf


def test_a_summary_is_plain_enough_for_json():
    found = json.loads(json.dumps(dataclasses.asdict(counted(tokens(50, 5)).summary())))
    assert set(found["kld"]) == {"value", "error"}
    assert list(found["kld_percentiles"])[:2] == ["0.0", "0.1"]


def test_fewer_than_a_hundred_tokens_are_not_reported():
    assert kl_report.report(counted(tokens(99, 6)).summary()) == "\n"
    assert "Mean    KLD:" in kl_report.report(counted(tokens(100, 6)).summary())
