"""Which programs a runner calls, by the sizes of what it calls them with."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from rfjax.engine.buckets import (
    PIECE,
    most_prompt_tokens,
    piece_bucket,
    round_up_power_of_two,
    row_bucket,
)
from rfjax.engine.exhaustion import device_memory
from rfjax.engine.jitted_steps import JittedSteps
from rfjax.engine.scheduler_config import SchedulerConfig
from rfjax.engine.warm_up import Program
from rfjax.models.config import ModelConfig

LEAST_WRITES = 32
"""Entries of page tables that are written at a time; it doubles when a plan has more."""

_SMALLEST_PIECE = 16


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How arrays are rounded up, here and where programs are called.

    Attributes:
        scheduler: what plans keep to.
        few_programs: as of `rfjax.engine.buckets`.
    """

    scheduler: SchedulerConfig
    few_programs: bool

    def piece(self, longest: int) -> int:
        """Tokens of a piece, where the longest chunk has so many."""
        least = PIECE if self.few_programs else _SMALLEST_PIECE
        return min(PIECE, round_up_power_of_two(longest, least))

    def pieces(self, n: int) -> int:
        """Rows of a step for so many pieces."""
        return piece_bucket(n, few_programs=self.few_programs)

    def most_pieces(self, length: int) -> int:
        """Rows of the largest step, of pieces of so many tokens."""
        return most_prompt_tokens(self.scheduler.token_budget) // length

    def rows(self, n: int) -> int:
        """Rows of a decode step of so many sequences."""
        rows = row_bucket(n, few_programs=self.few_programs)
        return min(rows, self.scheduler.slots)


@dataclasses.dataclass(frozen=True)
class Expected:
    """What requests will ask for.

    Attributes:
        sequences: most of them at a time.
        prompt_tokens: most tokens of prompts that arrive together.
        counts: some have penalties.
        forks: some have several samples.
        reports: some want log-probabilities of their prompts.
    """

    sequences: int
    prompt_tokens: int
    counts: bool = False
    forks: bool = False
    reports: bool = False


@dataclasses.dataclass(frozen=True)
class StepPrograms:
    """A runner's programs. Nothing is computed, and no array is held.

    Attributes:
        steps: the jitted functions.
        state: params, cache, rows, counts and tables, of `shapes_of`.
        sizes: how the other arguments are rounded up.
        config: the model's.
        n_top: most log-probabilities reported beside a token's own.
    """

    steps: JittedSteps
    state: tuple[Any, Any, Any, Any, Any]
    sizes: Sizes
    config: ModelConfig
    n_top: int

    def open_rows(self, n: int) -> Program:
        """Of n slots."""
        _, _, rows, _, tables = self.state
        new = jax.tree.map(lambda x: jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype), rows)
        return program_of(f"open {n} rows", self.steps.open_rows, rows, tables, ints(n), new)

    def count_tokens(self, n: int, width: int) -> Program:
        """Of n slots, with room for so many tokens."""
        counts, lists = self.state[3], (ints(n, width),) * 2
        name = f"count {width} tokens of {n} rows"
        return program_of(name, self.steps.count_tokens, counts, ints(n), *lists)

    def write_tables(self, n: int) -> Program:
        """Of n entries in each group."""
        tables = self.state[4]
        columns = tuple((ints(n),) * 3 for _ in tables)
        return program_of(f"write {n} pages", self.steps.write_tables, tables, columns)

    def prefill(self, n: int, length: int, *, reports: bool = False) -> Program:
        """Of n pieces of so many tokens."""
        params, cache, _, _, tables = self.state
        whole, name = ints(n, length), f"prefill of {n} x {length} tokens"
        arguments = (params, cache, tables, whole, whole, ints(n))
        if not reports:
            return program_of(name, self.steps.prefill, *arguments, config=self.config)
        return program_of(
            f"{name}, reporting",
            self.steps.prefill_reporting,
            *arguments,
            whole,
            n_top=self.n_top,
            config=self.config,
        )

    def copy_pages(self, n: int) -> Program:
        """Of n pages in each group."""
        _, cache, _, _, tables = self.state
        columns = tuple((ints(n),) * 2 for _ in tables)
        return program_of(f"copy {n} pages", self.steps.copy_pages, cache, columns)

    def decode(self, n: int) -> Program:
        """Of n rows."""
        params, cache, rows, counts, tables = self.state
        return program_of(
            f"decode of {n} rows",
            self.steps.decode,
            *(params, cache, rows, counts, tables),
            *(ints(n), ints(n), ints()),
            n_top=self.n_top,
            config=self.config,
        )

    def expected(self, asked: Expected) -> Iterator[Program]:
        """All that such requests may need, those that take long first."""
        scheduler = self.sizes.scheduler
        sequences = min(asked.sequences, scheduler.slots)
        budget = min(asked.prompt_tokens, scheduler.token_budget)
        for rows in sorted({self.sizes.rows(n + 1) for n in range(sequences)}, reverse=True):
            yield self.decode(rows)
        for n, length in sorted(self._prefills(sequences, budget), reverse=True):
            yield self.prefill(n, length)
            if asked.reports:
                yield self.prefill(n, length, reports=True)
        for n in _powers(1, sequences):
            yield self.open_rows(n)
            if asked.forks:
                yield self.copy_pages(n)
            if asked.counts:
                longest = min(asked.prompt_tokens, scheduler.max_context)
                yield from (self.count_tokens(n, width) for width in _powers(LEAST_WRITES, longest))
        each = -(-max(scheduler.burst, scheduler.mixed_burst) // scheduler.page_size) + 2
        prompts = min(asked.prompt_tokens, sequences * scheduler.max_context)
        most = sequences * each + -(-prompts // scheduler.page_size)
        yield from (self.write_tables(n) for n in _powers(LEAST_WRITES, most))

    def _prefills(self, sequences: int, budget: int) -> set[tuple[int, int]]:
        """Rows and lengths of the pieces that chunks of so many sequences make."""
        found = set()
        chunk = min(budget, self.sizes.scheduler.prefill_chunk)
        for longest in _powers(1, chunk):
            length = self.sizes.piece(longest)
            each = -(-chunk // length) if length == PIECE else 1
            pieces = min(sequences * each, sequences + budget // length, budget)
            rows = {self.sizes.pieces(n + 1) for n in range(pieces)}
            found |= {(n, length) for n in rows if n <= self.sizes.most_pieces(length)}
        return found


def program_of(name: str, step: Any, *arguments: Any, **static: Any) -> Program:
    """A call of a jitted function, to be compiled ahead.

    Args:
        name: by which the program is known.
        step: the function.
        arguments: shapes in place of arrays.
        static: its static arguments.
    """
    default = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]

    def trace() -> Callable[[], object]:
        # A default set for the asking thread holds for all of them.
        with jax.default_device(default):
            lowered = step.lower(*arguments, **static)
        return lambda: compiled(lowered)

    def compiled(lowered: Any) -> object:
        with device_memory():  # which XLA takes to time what it may choose
            return lowered.compile()

    return Program(name, trace)


def shapes_of(tree: Any) -> Any:
    """The arrays' shapes, and where they lie if that matters to what is compiled for them."""

    def shape_of(x: jax.Array) -> jax.ShapeDtypeStruct:
        sharding = x.sharding if x.committed else None
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(shape_of, tree)


def ints(*shape: int) -> jax.ShapeDtypeStruct:
    """The shape of int32 numbers."""
    return jax.ShapeDtypeStruct(shape, np.int32)


def _powers(least: int, most: int) -> list[int]:
    """Powers of two from `least` up to the first that is at least `most`."""
    powers = [least]
    while powers[-1] < most:
        powers.append(powers[-1] * 2)
    return powers
