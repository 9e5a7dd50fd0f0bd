"""Programs compiled before they are needed, many at a time. No JAX.

XLA compiles without holding Python's lock, so threads compile side by side. Tracing holds it: where
all trace at once, all are through at the end only, so they take turns, and the first one is with
XLA while the next is traced.
"""

import concurrent.futures
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence

from rfjax.compile_threads import compiling_pool, n_processors
from rfjax.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Program:
    """One program that a device will run.

    Attributes:
        name: of the step and its sizes, by which it is known; no other of its device has it.
        trace: trace and lower it, and return what compiles it, such that its first call finds it
            compiled; both from any thread. Both raise what that call would raise.
    """

    name: str
    trace: Callable[[], Callable[[], object]]


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
    """A program that is ready.

    Attributes:
        name: as of `Program`.
        seconds: it took, waiting for its turn left out; next to nothing where it was compiled
            before.
    """

    name: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class WarmUp:
    """What was compiled ahead.

    Attributes:
        programs: in the order in which they were begun.
        seconds: for all of them together.
    """

    programs: tuple[CompiledProgram, ...]
    seconds: float

    def __str__(self) -> str:
        return f"{len(self.programs)} programs in {self.seconds:.1f} s"


def compile_all(programs: Sequence[Program], *, threads: int | None = None) -> WarmUp:
    """Compile programs side by side, and wait for them.

    An interrupt or an error is raised at once. Nothing is begun after it; what is being compiled
    then cannot be stopped, and the process does not end before it is through.

    Args:
        programs: the longest should come first.
        threads: compile at a time; None takes one for each processor.

    Raises:
        ConfigError: `threads` is not a positive integer.
        Whatever a program raises, of the first one that fails.
    """
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ConfigError(f"threads: got {threads!r}, expected an integer of at least 1, or None")
    start = time.perf_counter()
    pool, turn = compiling_pool(threads or n_processors()), threading.Lock()
    try:
        begun = [pool.submit(_compiled, program, turn) for program in programs]
        for ended in concurrent.futures.as_completed(begun):
            ended.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    done = WarmUp(tuple(one.result() for one in begun), time.perf_counter() - start)
    logger.info("compiled ahead: %s", done)
    return done


class UnderWay:
    """Programs that are compiled beside what the caller does, each under a key of its own."""

    def __init__(self):
        self._under_way: dict[Hashable, concurrent.futures.Future] = {}

    def begin(self, programs: Mapping[Hashable, Program]) -> None:
        """Begin to compile all of them at once."""
        pool, turn = compiling_pool(len(programs)), threading.Lock()
        try:
            for key, program in programs.items():
                self._under_way[key] = pool.submit(_compiled, program, turn)
        except RuntimeError as error:  # the interpreter is ending
            logger.debug("nothing is compiled ahead: %s", error)
        finally:
            pool.shutdown(wait=False)

    def wait(self, key: Hashable) -> None:
        """Wait for a program before it is called, if it is under way.

        Says nothing of one that failed: the call fails again, where everybody expects it.
        """
        compiling = self._under_way.pop(key, None)
        if compiling is not None:
            concurrent.futures.wait([compiling])


def _compiled(program: Program, turn: threading.Lock) -> CompiledProgram:
    with turn:
        start = time.perf_counter()
        compile = program.trace()
    compile()
    done = CompiledProgram(program.name, time.perf_counter() - start)
    logger.debug("%s: compiled in %.2f s", done.name, done.seconds)
    return done
