"""Log-probabilities of many continuations: contexts once, rows in full batches.

Contexts that begin alike are computed once (`rfjax.evals.scoring.score_plan`), everything in rows
of few sizes, many rows a step. Only each scored token's log-probability and whether it was the
likeliest leave the device.
"""

import collections
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rfjax.cache.paged import PagedCache
from rfjax.compile_threads import n_processors
from rfjax.engine.buckets import round_up_power_of_two
from rfjax.engine.finite import check_not_nan
from rfjax.engine.step_programs import ints, program_of, shapes_of
from rfjax.engine.warm_up import Program, UnderWay
from rfjax.errors import RequestError, UnsupportedError
from rfjax.evals.scoring.continuation import Continuation, ContinuationScore
from rfjax.evals.scoring.score_arrays import rows_of, scored_of
from rfjax.evals.scoring.score_memory import empty_cache, pages_for
from rfjax.evals.scoring.score_plan import PAGE_SIZE, PIECE_SIZES, Piece, plan_waves
from rfjax.evals.scoring.score_steps import Rows, Scored, score_steps
from rfjax.io.load import Model
from rfjax.io.memory import exhaustion_as_capacity_error
from rfjax.quant.qtensor import has_packed

_STEP_TOKENS = 2048
_STEP_TOKENS_ON_CPU = 1024
"""Places of a full step."""

_LEAST_TABLE = 2048 // PAGE_SIZE
"""Least width of a page table: longer sequences need other programs."""

_FIXED_TABLE = (1 << 17) // PAGE_SIZE
"""Width of a page table where shapes are fixed, if the model's context is not shorter."""

_UNDER_WAY = 2
"""Steps dispatched before the first of them is waited for."""

OnScored = Callable[[int, ContinuationScore], None]


class Scorer:
    """Scores continuations with one model.

    In the batch-invariant mode every step has one of few fixed shapes, in which a continuation's
    rows are computed wherever they come to lie: its score has the same bits whatever is scored
    beside it, in whatever order. What is missing to a full step is padding, which costs time when
    few are scored. In f32 on the CPU a row's bits do not depend on the shape, and steps may be
    smaller all the same. Without the mode they may be smaller anywhere.
    """

    def __init__(
        self,
        model: Model,
        *,
        batch_invariant: bool = True,
        step_tokens: int | None = None,
        cache_tokens: int | None = None,
    ):
        """Allocates nothing yet.

        Args:
            model: what scores.
            batch_invariant: whether scores must not depend on the company.
            step_tokens: places of a full step, a power of two of at least 64; it is a setting
                that results depend on. None takes 2048, and 1024 on the CPU.
            cache_tokens: most tokens whose keys and values are held at a time; None takes what
                free memory allows, up to 65536 or the longest continuation.

        Raises:
            RequestError: a size that does not fit the above.
            UnsupportedError: the model is bidirectional, so that no token follows from a context.
        """
        config = model.config
        if any(layer.mask.kind == "bidirectional" for layer in config.layers):
            raise UnsupportedError(
                f"{config.architecture} predicts no token after another: its tokens see those "
                "behind them, too. Take rfjax.models.decoder.forward for its logits"
            )
        on_cpu = jax.default_backend() == "cpu"
        if step_tokens is None:
            step_tokens = _STEP_TOKENS_ON_CPU if on_cpu else _STEP_TOKENS
        if step_tokens < PIECE_SIZES[0] or step_tokens & (step_tokens - 1):
            raise RequestError(
                f"step_tokens: got {step_tokens}, expected a power of two of at least "
                f"{PIECE_SIZES[0]}"
            )
        if cache_tokens is not None and cache_tokens < PAGE_SIZE:
            raise RequestError(f"cache_tokens: got {cache_tokens}, expected at least {PAGE_SIZE}")
        self._model = model
        self._batch_invariant = batch_invariant
        self._step_tokens = step_tokens
        self._cache_tokens = cache_tokens
        self._fixed = batch_invariant and not (on_cpu and config.dtype == "float32")
        self._compiles_ahead = not on_cpu and n_processors() > 1
        self._steps = score_steps(has_packed(model.params), model.mesh)

    @property
    def settings(self) -> dict[str, Any]:
        """What scores depend on besides the model, for a result's provenance."""
        return {"batch_invariant": self._batch_invariant, "step_tokens": self._step_tokens}

    @property
    def max_inputs(self) -> int:
        """Most tokens of context and continuation together, the last one not counted."""
        return self._model.config.context_length

    def score(
        self, continuations: Sequence[Continuation], *, on_scored: OnScored | None = None
    ) -> list[ContinuationScore]:
        """The score of every continuation, in order.

        Args:
            continuations: what to score.
            on_scored: called with a number and its score as they come, in any order.

        Raises:
            RequestError: an empty context or continuation, ids outside the vocabulary, or more
                inputs than the model's context holds. Raised before anything runs.
            CapacityError: the cache of the longest does not fit in the free memory.
            ModelFormatError: the model computes NaN.
        """
        self._check(continuations)
        if not continuations:
            return []
        scores: list[ContinuationScore | None] = [None] * len(continuations)
        with exhaustion_as_capacity_error("scoring", "Lower step_tokens or cache_tokens"):
            for index, score in self._scores(continuations):
                scores[index] = score
                if on_scored is not None:
                    on_scored(index, score)
        return [score for score in scores if score is not None]

    def _check(self, continuations: Sequence[Continuation]) -> None:
        vocab, most = self._model.config.vocab_size, self.max_inputs
        for index, one in enumerate(continuations):
            if not one.context or not one.tokens:
                raise RequestError(
                    f"continuation {index}: got {len(one.context)} tokens of context and "
                    f"{len(one.tokens)} to score, expected at least one of each"
                )
            if one.n_inputs > most:
                raise RequestError(
                    f"continuation {index}: got {one.n_inputs} tokens, and the model's context "
                    f"holds {most}: cut the context's beginning off, or leave it out"
                )
            low, high = min(*one.context, *one.tokens), max(*one.context, *one.tokens)
            if low < 0 or high >= vocab:
                raise RequestError(
                    f"continuation {index}: got token ids from {low} to {high}, expected 0 to "
                    f"{vocab - 1}"
                )

    def _scores(
        self, continuations: Sequence[Continuation]
    ) -> Iterator[tuple[int, ContinuationScore]]:
        """Numbers and scores, as continuations are complete."""
        logprobs = [np.empty(len(one.tokens), np.float32) for one in continuations]
        greedy = [np.empty(len(one.tokens), np.bool_) for one in continuations]
        left = [len(one.tokens) for one in continuations]
        for pieces, values, likeliest in self._results(continuations):
            for piece, value, likely in zip(pieces, values, likeliest, strict=False):
                owner, n = piece.owner, len(piece.tokens)
                assert owner is not None
                check_not_nan(value[:n], self._model.config.dtype)
                logprobs[owner][piece.offset : piece.offset + n] = value[:n]
                greedy[owner][piece.offset : piece.offset + n] = likely[:n]
                left[owner] -= n
                if not left[owner]:
                    yield owner, ContinuationScore(logprobs[owner], greedy[owner])

    def _results(
        self, continuations: Sequence[Continuation]
    ) -> Iterator[tuple[list[Piece], np.ndarray, np.ndarray]]:
        """Pieces that score, with log-probabilities and greediness [B, L] of their rows."""
        model = self._model
        n_pages = pages_for(continuations, model, self._step_tokens, self._cache_tokens)
        width = self._table_width(max(one.n_inputs for one in continuations))
        cache = empty_cache(model, n_pages + 1)
        compiling = UnderWay()
        under_way: collections.deque = collections.deque()
        for number, wave in enumerate(plan_waves(continuations, n_pages)):
            contexts = list(self._cut_into_steps("fill", wave.contexts))
            scored = list(self._cut_into_steps("score", wave.scored))
            if number == 0 and self._compiles_ahead:
                compiling.begin(self._programs([*contexts, *scored], cache, width))
            for step in contexts:
                compiling.wait(step.key)
                rows = rows_of(step.pieces, step.n_rows, width)
                cache = self._steps.fill(model.params, cache, rows, config=model.config)
            for step in scored:
                compiling.wait(step.key)
                rows = rows_of(step.pieces, step.n_rows, width)
                asked = scored_of(step.pieces, step.n_rows, continuations, n_pages + 1)
                scores, cache = self._steps.score(
                    model.params, cache, rows, asked, config=model.config
                )
                under_way.append((step.pieces, scores))
                if len(under_way) > _UNDER_WAY:
                    yield _read(*under_way.popleft())
        while under_way:
            yield _read(*under_way.popleft())

    def _table_width(self, longest: int) -> int:
        """Pages of a table for sequences of up to so many tokens."""
        least = min(-(-self.max_inputs // PAGE_SIZE), _FIXED_TABLE) if self._fixed else _LEAST_TABLE
        needed = -(-longest // PAGE_SIZE)
        return least if needed <= least else round_up_power_of_two(needed)

    def _programs(
        self, steps: Sequence["_Step"], cache: PagedCache, width: int
    ) -> dict[Hashable, Program]:
        """What these steps call, to be compiled side by side."""
        params, pages = shapes_of((self._model.params, cache))
        programs: dict[Hashable, Program] = {}
        for step in steps:
            name, size, n = step.key
            by_token, by_row = ints(n, size), ints(n)
            arrays: list[Any] = [Rows(by_token, by_token, ints(n, width))]
            if name == "score":
                arrays.append(Scored(by_token, by_row, by_row))
            function = getattr(self._steps, name)
            config = self._model.config
            programs[step.key] = program_of(
                f"{name} {n} rows of {size}", function, params, pages, *arrays, config=config
            )
        return programs

    def _cut_into_steps(self, name: str, pieces: list[Piece]) -> Iterator["_Step"]:
        """Pieces of one size, as many as a full step has rows, the largest first."""
        for size in PIECE_SIZES:
            own = [piece for piece in pieces if piece.size == size]
            full = self._step_tokens // size
            for start in range(0, len(own), full):
                part = own[start : start + full]
                # Padded to all rows, or a few: each number of rows is another program.
                choices = [full] if self._fixed else [full // 8, full]
                n_rows = min(n for n in choices if n >= len(part))
                yield _Step((name, size, n_rows), part)


class _Step(NamedTuple):
    """Pieces that are computed together, and the program: its name, its rows' size and number."""

    key: tuple[str, int, int]
    pieces: list[Piece]

    @property
    def n_rows(self) -> int:
        return self.key[2]


def _read(
    step: list[Piece], scores: Iterable[jax.Array]
) -> tuple[list[Piece], np.ndarray, np.ndarray]:
    logprobs, greedy = map(np.asarray, scores)
    return step, logprobs, greedy
