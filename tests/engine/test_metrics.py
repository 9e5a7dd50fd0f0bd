"""Counters, gauges and latencies follow from what the scheduler's transitions show."""

import dataclasses

import pytest
from support.fake_device import FakeDevice

from rfjax.engine.metrics import Histogram, Metrics, recorded
from rfjax.engine.page_table import CacheGroup
from rfjax.engine.prometheus import MetricsCollector
from rfjax.engine.request import make_request
from rfjax.engine.sampling_params import SamplingParams
from rfjax.engine.scheduler import Cancel, Received, Submit, Tick, transition
from rfjax.engine.scheduler_config import SchedulerConfig
from rfjax.engine.scheduler_state import initial_state

CONFIG = SchedulerConfig(
    groups=(CacheGroup("full", 21),), page_size=4, max_context=32, slots=1, burst=4, mixed_burst=2
)


def request(name, max_tokens, arrival):
    return make_request(
        list(range(1, 10)),
        SamplingParams(max_tokens=max_tokens, seed=1),
        vocab_size=50,
        max_context=32,
        end_ids=frozenset(),
        request_id=name,
        arrival=arrival,
    )


@pytest.fixture
def metrics():
    """After: a request of 6 tokens, one of the same prompt under way, and one cancelled."""
    state, measured, device = initial_state(CONFIG), Metrics(), FakeDevice(CONFIG)

    def send(event):
        nonlocal state, measured
        state, effects = transition(state, event)
        measured = recorded(measured, state, effects)
        return effects.plan

    for event in (
        Submit(request("a", 6, 0.0)),
        Submit(request("b", 6, 1.0)),
        Submit(request("c", 6, 2.0)),
        Cancel("c", 2.5),
    ):
        send(event)
    for now in (3.0, 4.0, 5.0):
        plan = send(Tick(now))
        send(Received(plan.burst, device.run(plan), now + 0.5))
    return measured


def test_the_numbers_are_those_of_what_happened(metrics):
    assert (metrics.running, metrics.waiting) == (1, 0)
    assert metrics.page_usage == 3 / 20
    assert (metrics.prompt_tokens, metrics.prefix_queries, metrics.prefix_hits) == (18, 18, 8)
    assert metrics.generation_tokens == 8
    assert {reason: n for reason, n in metrics.finished.items() if n} == {"length": 1, "abort": 1}
    assert metrics.time_to_first_token.total == 3.5 + (5.5 - 1.0)
    assert metrics.inter_token_latency.count == 4
    assert metrics.inter_token_latency.total == pytest.approx(1.0)
    assert metrics.queue_time.total == 3.0 + 4.0
    assert metrics.request_latency.total == 4.5 + 0.5
    assert metrics.output_length.total == 6


def test_a_value_on_a_bound_is_below_it():
    histogram = Histogram((1.0, 2.0), (0, 0, 0)).observed([(1.0, 1), (1.5, 2), (3.0, 1)])
    assert histogram.counts == (1, 2, 1)
    assert (histogram.count, histogram.total) == (4, 7.0)


def test_prometheus_gets_them_under_vllms_names(metrics):
    client = pytest.importorskip("prometheus_client")
    registry = client.CollectorRegistry()
    registry.register(MetricsCollector(lambda: metrics, "tiny"))
    text = client.generate_latest(registry).decode()
    label = 'model_name="tiny"'
    for line in (
        f"rfjax:num_requests_running{{{label}}} 1.0",
        f"rfjax:prefix_cache_hits_total{{{label}}} 8.0",
        f"rfjax:generation_tokens_total{{{label}}} 8.0",
        f'rfjax:request_success_total{{finished_reason="length",{label}}} 1.0',
        f"rfjax:time_to_first_token_seconds_count{{{label}}} 2.0",
        f'rfjax:time_to_first_token_seconds_bucket{{le="5.0",{label}}} 2.0',
        f"rfjax:time_to_first_token_seconds_sum{{{label}}} 8.0",
    ):
        assert line in text, line


def test_an_unused_engine_has_metrics_too():
    assert dataclasses.asdict(Metrics())["finished"]["stop"] == 0
