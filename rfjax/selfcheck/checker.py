"""Runs self-checks: compiles many at a time, runs one after the other."""

import concurrent.futures
import dataclasses
import logging
import os
import time
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxlib.mlir.ir import MLIRError

from rfjax.errors import CapacityError, UnsupportedError
from rfjax.selfcheck.case import CheckCase, Trial

logger = logging.getLogger(__name__)

FAILURES = (jax.errors.JaxRuntimeError, MLIRError, NotImplementedError, TypeError, ValueError)
"""What JAX raises where a kernel cannot be lowered, compiled or run on a device."""

_SHOWN_CHARACTERS = 300


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """What became of one case.

    Attributes:
        kernel, label, limit: the case's.
        verdict: "ok", "wrong" (the error exceeds the limit), "failed" (it does not compile or
            run), or "declines" (it does not take such arguments on this device).
        error: relative; None where nothing ran, or for NaN.
        reason: why it is not ok.
    """

    kernel: str
    label: str
    limit: float
    verdict: Literal["ok", "wrong", "failed", "declines"]
    error: float | None = None
    reason: str | None = None

    @property
    def key(self) -> str:
        """That of the case."""
        return f"{self.kernel}, {self.label}"

    @property
    def usable(self) -> bool:
        """Whether nothing speaks against the kernel."""
        return self.verdict in ("ok", "declines")


def run_checks(cases: Sequence[CheckCase], *, seed: int | None = None) -> tuple[CheckResult, ...]:
    """Try every case on the default device.

    Args:
        cases: what to try.
        seed: of the random numbers; None takes others each time.

    Returns:
        A result a case, in order. A kernel that does not compile or run is a result as well. Where
        one leaves the device unusable, it is the last: nothing can run in this process any more.

    Raises:
        CapacityError: the device's memory is used up.
    """
    start = time.perf_counter()
    entropy = np.random.SeedSequence(seed)
    logger.info("self-check of %d cases, seed %d", len(cases), entropy.entropy)
    generators = np.random.default_rng(entropy).spawn(len(cases))
    with concurrent.futures.ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
        prepared = [
            pool.submit(_compile, case.make(rng))
            for case, rng in zip(cases, generators, strict=True)
        ]
        results = []
        for case, future in zip(cases, prepared, strict=True):
            results.append(_result(case, future))
            if results[-1].verdict == "failed" and not _device_answers():
                break
    logger.info("self-check took %.1f s", time.perf_counter() - start)
    return tuple(results)


def _device_answers() -> bool:
    """Whether the device still computes: a wrong access to its memory ends that."""
    try:
        return float(jax.jit(lambda x: x + 1)(jnp.ones(()))) == 2
    except jax.errors.JaxRuntimeError:
        return False


def _compile(trial: Trial) -> tuple[Any, Trial]:
    return jax.jit(trial.function).lower(*trial.arguments).compile(), trial


def _result(
    case: CheckCase, prepared: "concurrent.futures.Future[tuple[Any, Trial]]"
) -> CheckResult:
    common = (case.kernel, case.label, case.limit)
    try:
        compiled, trial = prepared.result()
        found = jax.device_get(compiled(*trial.arguments))
    except UnsupportedError as error:
        return CheckResult(*common, "declines", reason=str(error))
    except FAILURES as error:
        if "out of memory" in str(error).lower():  # says nothing about the kernel
            raise CapacityError(
                "self-check: the device's memory is used up. Close what else uses it, or leave the "
                "check out by selfcheck=False"
            ) from error
        text = f"{type(error).__name__}: {error}"[:_SHOWN_CHARACTERS]
        return CheckResult(*common, "failed", reason=text)
    error = trial.error(found)
    if error <= case.limit:
        return CheckResult(*common, "ok", error)
    if np.isnan(error):
        return CheckResult(*common, "wrong", reason="results are NaN")
    return CheckResult(
        *common, "wrong", error, f"its error of {error:.2g} exceeds {case.limit:.2g}"
    )
