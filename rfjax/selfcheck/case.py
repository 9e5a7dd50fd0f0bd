"""One thing that a self-check tries: a kernel on small random arrays."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

LEAST_FINITE = 1e-30
"""Keeps the relative error of zeros defined."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """A kernel's arguments, and what it should make of them.

    Attributes:
        function: jitted and called once with `arguments`.
        arguments: arrays of the host.
        error: from the results, as arrays of the host, their relative error.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    error: Callable[[Any], float]


@dataclasses.dataclass(frozen=True)
class CheckCase:
    """A kernel at one setting.

    Attributes:
        kernel: its name in policies, such as "quantized_matvec:Q4_K"; of a launch with weights of
            several types "quantized_matvec:Q4_K+Q6_K" (see `policy_names`).
        label: what it is tried on; with the kernel unique.
        limit: largest relative error that passes.
        make: a trial of random numbers.
    """

    kernel: str
    label: str
    limit: float
    make: Callable[[np.random.Generator], Trial]

    @property
    def key(self) -> str:
        """By which its result is remembered."""
        return f"{self.kernel}, {self.label}"


def policy_names(kernel: str) -> tuple[str, ...]:
    """What policies call the kernels of a case: one name for each type of weights."""
    name, _, types = kernel.partition(":")
    return tuple(f"{name}:{type}" for type in types.split("+")) if types else (name,)


def relative_error(found: Any, expected: np.ndarray) -> float:
    """Norm of the difference over the norm of what is expected, over all elements, in f64."""
    found = np.asarray(found, np.float64)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    scale = max(float(np.linalg.norm(expected)), LEAST_FINITE)
    return float(np.linalg.norm(found - expected)) / scale
