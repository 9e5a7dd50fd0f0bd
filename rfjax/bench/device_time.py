"""Time that kernels take on the device itself, by JAX's profiler: launches are not counted."""

import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from jax.profiler import ProfileData


def device_seconds(run: Callable[[], Any], name: str) -> list[float]:
    """Duration of every kernel of a name that a function launches, in the order of their start.

    Args:
        run: launches kernels; its results are waited for.
        name: that the kernels' names contain.

    Returns:
        Seconds; nothing where the profiler does not see the device.
    """
    with tempfile.TemporaryDirectory(prefix="rfjax-profile-") as folder:
        jax.profiler.start_trace(folder)
        try:
            jax.block_until_ready(run())
        finally:
            jax.profiler.stop_trace()
        files = sorted(pathlib.Path(folder).rglob("*.xplane.pb"))
        return durations((ProfileData.from_file(str(file)) for file in files), name)


def durations(profiles: Iterable[Any], name: str) -> list[float]:
    """Seconds of every kernel of a name in `ProfileData`s, in the order of their start."""
    spans = (span for profile in profiles for span in _spans(profile, name))
    return [duration for _, duration in sorted(spans)]


def _spans(profile: Any, name: str) -> Iterator[tuple[float, float]]:
    """Start and duration in seconds of kernels on streams of the devices."""
    for plane in profile.planes:
        if "GPU" not in plane.name:
            continue
        for line in plane.lines:
            if not line.name.startswith("Stream"):
                continue
            for event in line.events:
                if name in event.name:
                    yield event.start_ns * 1e-9, event.duration_ns * 1e-9
