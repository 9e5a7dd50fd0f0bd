"""Finds the fastest settings of the kernels for few rows on this device."""

import concurrent.futures
import dataclasses
import functools
import logging
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from rfjax.bench.device_time import device_seconds
from rfjax.bench.timing import seconds_per_call
from rfjax.bench.tune_case import TuneCase
from rfjax.errors import UnsupportedError
from rfjax.io.memory import free_bytes
from rfjax.models.random_params import random_weight
from rfjax.ops.dispatch import KernelPolicy
from rfjax.ops.linear import linear
from rfjax.pallas import plain_matvec as plain
from rfjax.pallas import quantized_matvec as quantized
from rfjax.pallas.pack_activations import pack_activations_reference
from rfjax.pallas.target import Target, current_target
from rfjax.pallas.tuned_config import Entry
from rfjax.pallas.tuning_space import plain_space, quantized_space
from rfjax.selfcheck.checker import FAILURES
from rfjax.typing import Array

logger = logging.getLogger(__name__)

Config = quantized.Config | plain.Config
Launch = Callable[[Sequence[Any]], list[Array]]

_LIMIT = 1e-4
"""Largest relative error of a candidate's results."""


@dataclasses.dataclass(frozen=True)
class TuneConfig:
    """How to measure.

    Attributes:
        working_set: bytes of weights that launches take in turn: more than caches hold.
        max_copies: most copies of a launch's weights.
        repeats: launches of a candidate, of which the median counts.
        seed: of weights and activations.
        interpret: try on the CPU, where kernels are interpreted and times mean nothing: for tests.
    """

    working_set: int = 1 << 29
    max_copies: int = 32
    repeats: int = 24
    seed: int = 0
    interpret: bool = False


@dataclasses.dataclass(frozen=True)
class TuneResult:
    """The best setting of one launch.

    Attributes:
        case: the launch.
        config: the fastest setting whose results are right.
        seconds: of a launch with it.
        heuristic_seconds: with what the heuristic takes; None where that does not work.
        tried: settings timed.
        failed: settings that do not compile, or whose results are wrong.
        clock: "device" counts the kernel alone, "host" its launch as well.
        packed_bytes: of the weights.
    """

    case: TuneCase
    config: Config
    seconds: float
    heuristic_seconds: float | None
    tried: int
    failed: int
    clock: Literal["device", "host"]
    packed_bytes: int

    @property
    def gb_per_s(self) -> float:
        """Packed bytes read, in 1e9 a second."""
        return self.packed_bytes / self.seconds / 1e9

    def entry(self) -> Entry:
        """As a file of tuned settings holds it."""
        before = ""
        if self.heuristic_seconds is not None:
            before = f", {self.packed_bytes / self.heuristic_seconds / 1e9:.0f} by the heuristic"
        return Entry(
            kernel=self.case.kernel,
            type=self.case.types[0].name,
            n=min(self.case.sizes),
            k=self.case.k,
            m=self.case.m,
            config=dataclasses.asdict(self.config),
            comment=f"{self.case}: {self.gb_per_s:.0f} GB/s of packed bytes{before}, "
            f"{self.clock} time, JAX {jax.__version__}",
        )


def tune(cases: Sequence[TuneCase], config: TuneConfig | None = None) -> Iterator[TuneResult]:
    """Try the whole space for each launch; results in order.

    Raises:
        UnsupportedError: no kernels run on the default device, or none of a space is right.
    """
    config = config or TuneConfig()
    target = current_target()
    if target == "interpret" and not config.interpret:
        raise UnsupportedError(
            "tuning: the default device is a CPU, where plain JAX computes everything and there is "
            "nothing to tune. Run it where the GPU is; see `rfjax doctor`"
        )
    for case in cases:
        yield _tune(case, config, target)


def _tune(case: TuneCase, config: TuneConfig, target: Target) -> TuneResult:
    copies = _weights(case, config)
    x = jax.random.normal(jax.random.key(config.seed + 1), (case.m, case.k), jnp.float32)
    expected = _expected(x, copies[0])
    operand = x if case.kernel == "plain_matvec" else pack_activations_reference(x)
    shape = min(case.sizes), case.k, case.m, target
    space = plain_space(*shape) if case.kernel == "plain_matvec" else quantized_space(*shape)

    def compiled(candidate: Config) -> Launch:
        kernel: Any = (
            plain.plain_matvec
            if isinstance(candidate, plain.Config)
            else (quantized.quantized_matvec)
        )
        launch = functools.partial(
            kernel, out_dtype=jnp.dtype("float32"), config=candidate, target=target
        )
        program = jax.jit(launch).lower(operand, copies[0]).compile()
        return functools.partial(program, operand)

    launches: dict[Config, Launch] = {}
    with concurrent.futures.ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
        prepared = {candidate: pool.submit(compiled, candidate) for candidate in space}
        for candidate, future in prepared.items():
            try:
                launch = future.result()
                error = _error(launch(copies[0]), expected)
            except FAILURES as failure:
                logger.info("%s: %s fails: %s", case, candidate, failure)
                continue
            if error <= _LIMIT:
                launches[candidate] = launch
            else:
                logger.warning("%s: %s is wrong, its error is %.2g", case, candidate, error)
    if not launches:
        raise UnsupportedError(
            f"tuning {case}: none of {len(space)} settings works on this device; "
            "see `rfjax selfcheck`"
        )
    seconds, clock = _seconds(case, launches, copies, config)
    best = min(seconds, key=seconds.__getitem__)
    return TuneResult(
        case=case,
        config=best,
        seconds=seconds[best],
        heuristic_seconds=seconds.get(space[0]),
        tried=len(launches),
        failed=len(space) - len(launches),
        clock=clock,
        packed_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(copies[0])),
    )


def _seconds(
    case: TuneCase, launches: dict[Config, Launch], copies: list[list[Any]], config: TuneConfig
) -> tuple[dict[Config, float], Literal["device", "host"]]:
    """Seconds of a launch of every candidate, by the profiler, or else by the host's clock."""

    def run() -> list[Array]:
        out: list[Array] = []
        for launch in launches.values():
            for i in range(config.repeats):
                out = launch(copies[i % len(copies)])
        return out

    found = device_seconds(run, case.kernel)
    if len(found) == len(launches) * config.repeats:
        each = [found[i * config.repeats : (i + 1) * config.repeats] for i in range(len(launches))]
        return {c: statistics.median(s) for c, s in zip(launches, each, strict=True)}, "device"
    logger.info("the profiler shows %d launches of %s: the host's clock counts", len(found), case)

    def all_copies(launch: Launch) -> list[list[Array]]:
        return [launch(weights) for weights in copies]

    return {
        candidate: seconds_per_call(all_copies, launch).median / len(copies)
        for candidate, launch in launches.items()
    }, "host"


def _weights(case: TuneCase, config: TuneConfig) -> list[list[Any]]:
    """Copies of a launch's weights, together larger than caches."""
    keys = iter(jax.random.split(jax.random.key(config.seed), config.max_copies * len(case.sizes)))

    def make() -> list[Any]:
        return [
            random_weight(next(keys), (n, case.k), type)
            for n, type in zip(case.sizes, case.types, strict=True)
        ]

    first = make()
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(first))
    free = free_bytes(jax.devices()[0])
    room = config.working_set if free is None else min(config.working_set, free // 4)
    count = min(config.max_copies, max(1, -(-room // nbytes)))
    return [first, *(make() for _ in range(count - 1))]


def _expected(x: Array, weights: list[Any]) -> list[np.ndarray]:
    product = jax.jit(lambda x, w: linear(x, w, policy=KernelPolicy("xla")))
    return [np.asarray(product(x, weight), np.float64) for weight in weights]


def _error(found: list[Array], expected: list[np.ndarray]) -> float:
    """The largest relative error of any weight's results."""
    errors = [
        np.linalg.norm(np.asarray(f, np.float64) - e) / np.linalg.norm(e)
        for f, e in zip(found, expected, strict=True)
    ]
    return float(np.max(errors))
