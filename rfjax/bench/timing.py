"""Wall-clock time of compiled functions on a device that runs asynchronously."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one call, from several samples of many calls each."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """The sample in the middle."""
        return statistics.median(self.samples)

    @property
    def fastest(self) -> float:
        """The smallest sample."""
        return min(self.samples)


def seconds_per_call(
    function: Callable[..., Any], *args: Any, repeats: int = 5, sample_seconds: float = 0.02
) -> Timing:
    """Time a compiled function.

    Calls follow each other without a look at their results, so that the device never waits for
    the host; a sample is as many calls as fill `sample_seconds`, ended by waiting for the last.

    Args:
        function: a jitted function of `args`.
        repeats: samples.
        sample_seconds: least length of a sample.
    """
    jax.block_until_ready(function(*args))  # compiles
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    calls = max(1, round(sample_seconds / max(1e-6, time.perf_counter() - start)))
    samples = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = None
        for _ in range(calls):
            result = function(*args)
        jax.block_until_ready(result)
        samples.append((time.perf_counter() - start) / calls)
    return Timing(tuple(samples))
