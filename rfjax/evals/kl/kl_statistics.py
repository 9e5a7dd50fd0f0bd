"""How far a model's probabilities are from a base's: figures over tokens, with their errors.

The figures are those that llama-perplexity prints for `--kl-divergence`, counted as it counts
them, in f64.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

KLD_PERCENTS = (0.0, 0.1, 1.0, 5.0, 10.0, 50.0, 90.0, 95.0, 99.0, 99.9, 100.0)
P_DIFF_PERCENTS = (0.0, 0.1, 1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 100.0)

_LEAST_FOR_ERRORS = 11
"""Fewer tokens say nothing of their spread (llama-perplexity's rule); their error reads 0."""


@dataclasses.dataclass(frozen=True, slots=True)
class Uncertain:
    """A figure and its standard error, in the same unit."""

    value: float
    error: float


@dataclasses.dataclass(frozen=True, slots=True)
class KLMeans:
    """Means over the tokens so far; "ratio" and "difference" are of the model to its base.

    Attributes:
        count: tokens.
        ppl: perplexity of the model.
        ppl_base: perplexity of the base.
        correlation: of the two models' log-likelihoods over tokens, -1 to 1; NaN where one of
            them does not vary.
        log_ppl_ratio: `ln(ppl / ppl_base)`, in nats.
        ppl_ratio: `ppl / ppl_base`.
        ppl_difference: `ppl - ppl_base`.
        kld: Kullback-Leibler divergence of the model from the base, nats per token.
        p_diff: change of the probability of the text's token, -1 to 1.
        p_diff_rms: root of the mean of its square.
        same_top: share of tokens where both models find the same token most likely, 0 to 1.
    """

    count: int
    ppl: Uncertain
    ppl_base: Uncertain
    correlation: float
    log_ppl_ratio: Uncertain
    ppl_ratio: Uncertain
    ppl_difference: Uncertain
    kld: Uncertain
    p_diff: Uncertain
    p_diff_rms: Uncertain
    same_top: Uncertain


@dataclasses.dataclass(frozen=True, slots=True)
class KLSummary(KLMeans):
    """The means, and how the values are spread.

    Attributes:
        kld_percentiles: divergence below which so many percent of the tokens lie, nats; keys are
            `KLD_PERCENTS`, 0 being the minimum, 50 the median and 100 the maximum.
        p_diff_percentiles: the same of the change of probability; keys are `P_DIFF_PERCENTS`.
    """

    kld_percentiles: Mapping[float, float]
    p_diff_percentiles: Mapping[float, float]


class KLStatistics:
    """Sums over tokens in f64; single values are kept, in f32, for the percentiles."""

    def __init__(self):
        self.count = 0
        self._same_top = 0
        self._base = _Moments()
        self._model = _Moments()
        self._kld = _Moments()
        self._p_diff = _Moments()
        self._p_diff_squared = _Moments()
        # Of the log-likelihoods' difference, whose variance the ratio's error is: as the variances
        # of both less twice their covariance it would drown in rounding where the models agree.
        self._difference = _Moments()
        self._base_with_difference = 0.0
        self._kld_values: list[np.ndarray] = []
        self._p_diff_values: list[np.ndarray] = []

    def add(
        self,
        nll: np.ndarray,
        nll_base: np.ndarray,
        kld: np.ndarray,
        p_diff: np.ndarray,
        same_top: np.ndarray,
    ) -> None:
        """Count some tokens.

        Args:
            nll: negative log-likelihoods under the model, in nats, f32 [n].
            nll_base: under the base.
            kld: divergences, in nats, f32 [n].
            p_diff: the token's probability under the model less that under the base, f32 [n].
            same_top: whether both models find the same token most likely, bool [n].
        """
        wide, wide_base = nll.astype(np.float64), nll_base.astype(np.float64)
        self.count += len(nll)
        self._same_top += int(np.count_nonzero(same_top))
        self._model.add(wide)
        self._base.add(wide_base)
        self._difference.add(wide - wide_base)
        self._base_with_difference += float(np.dot(wide_base, wide - wide_base))
        self._kld.add(kld.astype(np.float64))
        self._p_diff.add(p_diff.astype(np.float64))
        self._p_diff_squared.add(p_diff.astype(np.float64) ** 2)
        self._kld_values.append(np.array(kld, np.float32))
        self._p_diff_values.append(np.array(p_diff, np.float32))

    def means(self) -> KLMeans:
        """What is known without sorting the values; cheap after every chunk.

        At least one token must have been counted.
        """
        return KLMeans(**self._mean_fields())

    def summary(self) -> KLSummary:
        """Everything; sorts the values. At least one token must have been counted."""
        return KLSummary(
            **self._mean_fields(),
            kld_percentiles=_percentiles(self._kld_values, KLD_PERCENTS),
            p_diff_percentiles=_percentiles(self._p_diff_values, P_DIFF_PERCENTS),
        )

    def _mean_fields(self) -> dict:
        n = self.count
        model, base = self._model.mean(n), self._base.mean(n)
        log_ratio = self._difference.mean(n)
        ppl, ppl_base = _exp(model.value), _exp(base.value)
        ratio = _exp(log_ratio.value)
        mean_square = self._p_diff_squared.mean(n)
        rms = math.sqrt(mean_square.value)
        same = self._same_top / n
        # Of the mean of the base times the mean of the difference.
        covariance = self._base_with_difference / n - base.value * log_ratio.value
        covariance = covariance / (n - 1) if n >= _LEAST_FOR_ERRORS else 0.0
        return {
            "count": n,
            "ppl": Uncertain(ppl, ppl * model.error),
            "ppl_base": Uncertain(ppl_base, ppl_base * base.error),
            "correlation": _correlation(model.error, base.error, covariance),
            "log_ppl_ratio": log_ratio,
            "ppl_ratio": Uncertain(ratio, ratio * log_ratio.error),
            "ppl_difference": Uncertain(
                ppl - ppl_base,
                _difference_error(ppl, ppl_base, base.error, log_ratio.error, covariance),
            ),
            "kld": self._kld.mean(n),
            "p_diff": self._p_diff.mean(n),
            "p_diff_rms": Uncertain(rms, 0.5 / rms * mean_square.error if rms else 0.0),
            "same_top": Uncertain(same, math.sqrt(same * (1 - same) / (n - 1)) if n > 1 else 0.0),
        }


class _Moments:
    """Sums of values and of their squares."""

    def __init__(self):
        self._sum = 0.0
        self._squares = 0.0

    def add(self, values: np.ndarray) -> None:
        self._sum += float(values.sum())
        self._squares += float(np.dot(values, values))

    def mean(self, n: int) -> Uncertain:
        mean = self._sum / n
        if n < _LEAST_FOR_ERRORS:
            return Uncertain(mean, 0.0)
        variance = self._squares / n - mean * mean
        return Uncertain(mean, math.sqrt(max(0.0, variance) / (n - 1)))


def _exp(nats: float) -> float:
    """Infinite where it overflows."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def _correlation(error: float, base_error: float, covariance: float) -> float:
    """Of x and y, from the covariance of y and x - y."""
    if not error or not base_error:
        return math.nan
    return (base_error**2 + covariance) / (error * base_error)


def _difference_error(
    ppl: float, ppl_base: float, base_error: float, ratio_error: float, covariance: float
) -> float:
    """Error of `exp(x) - exp(y)`, by propagation.

    The same as `a*x - b*y` with the perplexities a and b, which is `a*(x - y) + (a - b)*y`.
    """
    apart = ppl - ppl_base
    variance = (ppl * ratio_error) ** 2 + (apart * base_error) ** 2 + 2 * ppl * apart * covariance
    return math.sqrt(max(0.0, variance))


def _percentiles(values: list[np.ndarray], percents: tuple[float, ...]) -> dict[float, float]:
    """Linear between the two nearest values, as llama-perplexity has it."""
    found = np.percentile(np.concatenate(values).astype(np.float64), percents)
    return dict(zip(percents, found.tolist(), strict=True))
