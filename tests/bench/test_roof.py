"""The measured ceilings are there; how high they are depends on the machine."""

import rfjax.bench.roof
from rfjax.bench.roof import measure_roof
from rfjax.bench.timing import seconds_per_call


def test_ceilings_are_positive(monkeypatch):
    monkeypatch.setattr(rfjax.bench.roof, "_COPY_BYTES", {"cpu": 1 << 20})
    monkeypatch.setattr(rfjax.bench.roof, "_MATMUL_SIZE", {"cpu": 64})
    roof = measure_roof("float32")
    assert roof.copy_bytes_per_s > 0
    assert roof.matmul_flop_per_s > 0
    assert roof.dtype == "float32"


def test_every_sample_is_of_a_call():
    calls = []
    timing = seconds_per_call(lambda: calls.append(1), repeats=3, sample_seconds=1e-6)
    assert len(timing.samples) == 3
    assert timing.fastest <= timing.median
    assert len(calls) >= 5
