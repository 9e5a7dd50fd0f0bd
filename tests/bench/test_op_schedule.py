"""Measuring the host's share: the load is what its case says, and times add up."""

import pytest

from rfjax.bench.op_schedule import ScheduleConfig, bench_schedule
from rfjax.bench.schedule_case import SHAPES, ScheduleCase, schedule_cases
from rfjax.errors import ConfigError

SMALL = ScheduleConfig(bursts=6, warm_up=2)


def test_cases():
    assert [case.name for case in schedule_cases()] == list(SHAPES)
    assert schedule_cases(["4x8@16/churn/window"]) == (
        ScheduleCase(4, 8, 16, window=True, churn=True),
    )
    for text in ("4x8", "4x8@16/full", "0x8@16", "1x1@16/churn/engine"):
        with pytest.raises(ConfigError):
            schedule_cases([text])


@pytest.mark.parametrize(
    "shape", ["5x4@16", "5x512@16/window", "5x4@16/plain", "5x4@16/engine/frozen"]
)
def test_every_sequence_makes_a_burst_of_tokens(shape):
    (result,) = bench_schedule(schedule_cases([shape]), SMALL)
    assert result.tokens == 5 * result.case.burst
    assert {name for name, seconds in result.parts.items() if not seconds} <= {"submit"}
    assert result.mean == pytest.approx(sum(result.parts.values()))
    assert result.worst >= result.mean
    record = result.record()
    assert (record["op"], record["shape"], record["page_size"]) == ("schedule", shape, 16)


def test_further_requests_take_the_places_of_those_that_ended():
    (result,) = bench_schedule(schedule_cases(["4x64@16/churn"]), SMALL)
    assert result.parts["submit"] > 0
