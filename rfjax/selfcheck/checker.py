"""Runs self-checks: compiles many at a time, then runs one after the other."""

import concurrent.futures
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxlib.mlir.ir import MLIRError

from rfjax.compile_threads import compiling_pool, n_processors
from rfjax.errors import CapacityError, UnsupportedError
from rfjax.pallas.target import default_device
from rfjax.selfcheck.case import CheckCase, Trial

logger = logging.getLogger(__name__)

FAILURES = (
    *(RuntimeError, MLIRError, TypeError, ValueError),
    *(AssertionError, AttributeError, LookupError),
)
"""What JAX raises where a kernel cannot be traced, lowered, compiled or run on a device."""

_SHOWN_CHARACTERS = 300

Watch = Callable[[CheckCase], contextlib.AbstractContextManager[None]]
"""What a case is compiled and run within, such as `rfjax.selfcheck.record.Record.under_way`."""


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """What became of one case.

    Attributes:
        kernel, label, limit: the case's.
        verdict: "ok", "wrong" (the error exceeds the limit), "failed" (it does not compile or
            run), "died" (its process ended while it was tried), or "declines" (it does not take
            such arguments on this device).
        error: relative; None where nothing ran, or for NaN.
        reason: why it is not ok.
    """

    kernel: str
    label: str
    limit: float
    verdict: Literal["ok", "wrong", "failed", "died", "declines"]
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


def run_checks(
    cases: Sequence[CheckCase],
    *,
    seed: int | None = None,
    watch: Watch = lambda case: contextlib.nullcontext(),
) -> Iterator[CheckResult]:
    """Try every case on the default device.

    Args:
        cases: what to try.
        seed: of the random numbers; None takes others each time.
        watch: entered while a case is compiled, and again while it runs; several are compiled at
            a time, and one runs at a time when none is compiled any more.

    Yields:
        A result a case, in order, each when it is there. A kernel that does not compile or run is a
        result as well. Where one leaves the device unusable, it is the last: nothing can run in
        this process any more.

    Raises:
        CapacityError: the device's memory is used up.
        KeyboardInterrupt: at once while cases are compiled. No other is begun then, and the process
            does not end before those are compiled that were begun.
    """
    start = time.perf_counter()
    entropy = np.random.SeedSequence(seed)
    logger.info("self-check of %d cases, seed %d", len(cases), entropy.entropy)
    generators = np.random.default_rng(entropy).spawn(len(cases))
    device = default_device()  # a default set for this thread holds for all of them

    def compile_case(case: CheckCase, rng: np.random.Generator) -> tuple[Any, Trial]:
        with jax.default_device(device), watch(case):
            trial = case.make(rng)
            with turn:
                lowered = jax.jit(trial.function).lower(*trial.arguments)
            return lowered.compile(), trial

    # Tracing holds Python's lock: in turns, so that the first is compiled while others are traced.
    pool, turn = compiling_pool(n_processors()), threading.Lock()
    try:
        prepared = [
            pool.submit(compile_case, *pair) for pair in zip(cases, generators, strict=True)
        ]
        concurrent.futures.wait(prepared)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    logger.info("compiled in %.1f s", time.perf_counter() - start)
    for case in cases:
        with watch(case):
            result = _result(case, prepared.pop(0))
            alive = result.verdict != "failed" or _device_answers()
        yield result
        if not alive:
            break
    logger.info("self-check took %.1f s", time.perf_counter() - start)


def _device_answers() -> bool:
    """Whether the device still computes: a wrong access to its memory ends that."""
    try:
        return float(jax.jit(lambda x: x + 1)(jnp.ones(()))) == 2
    except jax.errors.JaxRuntimeError:
        return False


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
