"""The metrics for Prometheus, under vLLM's names with the prefix `rfjax:`. No JAX."""

import importlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from rfjax.engine.metrics import Histogram, Metrics
from rfjax.errors import ConfigError

_GAUGES = (
    ("num_requests_running", "Sequences that have a slot.", "running"),
    ("num_requests_waiting", "Sequences that wait for one.", "waiting"),
    ("kv_cache_usage_perc", "Share of the pages in use, 1 for all.", "page_usage"),
)
_COUNTERS = (
    ("prefix_cache_queries", "Prompt tokens looked for in cached pages.", "prefix_queries"),
    ("prefix_cache_hits", "Prompt tokens found in cached pages.", "prefix_hits"),
    ("num_preemptions", "Sequences that lost their pages.", "preemptions"),
    ("prompt_tokens", "Tokens of admitted prompts.", "prompt_tokens"),
    ("generation_tokens", "Tokens of output.", "generation_tokens"),
)
_HISTOGRAMS = (
    ("time_to_first_token_seconds", "From arrival to the first token.", "time_to_first_token"),
    ("inter_token_latency_seconds", "Between tokens of output.", "inter_token_latency"),
    ("request_queue_time_seconds", "From arrival to admission.", "queue_time"),
    ("e2e_request_latency_seconds", "From arrival to the end.", "request_latency"),
    ("request_prompt_tokens", "Tokens of the prompt.", "prompt_length"),
    ("request_generation_tokens", "Tokens of the output.", "output_length"),
)


class MetricsCollector:
    """Gives the metrics of the moment to a registry of prometheus_client, when it asks."""

    def __init__(self, read: Callable[[], Metrics], model_name: str):
        """A collector, to be given to `CollectorRegistry.register`.

        Args:
            read: gives the metrics.
            model_name: the label of that name.

        Raises:
            ConfigError: prometheus_client is not installed.
        """
        try:
            self._core: Any = importlib.import_module("prometheus_client.core")
        except ImportError as error:
            raise ConfigError(
                "metrics for Prometheus: prometheus_client is not installed; "
                "pip install 'rfjax[server]'"
            ) from error
        self._read = read
        self._labels = {"model_name": model_name}

    def collect(self) -> Iterator[Any]:
        """Every metric, as prometheus_client's families."""
        metrics = self._read()
        names, values = list(self._labels), list(self._labels.values())
        for name, text, field in _GAUGES:
            gauge = self._core.GaugeMetricFamily(f"rfjax:{name}", text, labels=names)
            gauge.add_metric(values, getattr(metrics, field))
            yield gauge
        for name, text, field in _COUNTERS:
            counter = self._core.CounterMetricFamily(f"rfjax:{name}", text, labels=names)
            counter.add_metric(values, getattr(metrics, field))
            yield counter
        ends = self._core.CounterMetricFamily(
            "rfjax:request_success", "Sequences that ended.", labels=[*names, "finished_reason"]
        )
        for reason, count in metrics.finished.items():
            ends.add_metric([*values, reason], count)
        yield ends
        for name, text, field in _HISTOGRAMS:
            family = self._core.HistogramMetricFamily(f"rfjax:{name}", text, labels=names)
            histogram: Histogram = getattr(metrics, field)
            bounds = [*map(str, histogram.bounds), "+Inf"]
            counts = itertools.accumulate(histogram.counts)
            family.add_metric(
                values, list(zip(bounds, counts, strict=True)), sum_value=histogram.total
            )
            yield family
