"""Log-probabilities of many continuations: contexts once, rows in full batches.

Contexts that begin alike are computed once (`rfjax.evals.score_plan`), everything in rows of few
sizes, many rows a step. Only each scored token's log-probability and whether it was the likeliest
leave the device.
"""

import collections
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rfjax.cache.paged import PagedCache, init_paged_cache, page_bytes
from rfjax.engine.buckets import round_up_power_of_two
from rfjax.engine.finite import check_not_nan
from rfjax.errors import CapacityError, RequestError, UnsupportedError
from rfjax.evals.continuation import Continuation, ContinuationScore
from rfjax.evals.score_plan import (
    PAGE_SIZE,
    PIECE_SIZES,
    Piece,
    n_pages_of,
    plan_waves,
)
from rfjax.evals.score_steps import Rows, Scored, score_steps
from rfjax.io.load import Model
from rfjax.io.memory import exhaustion_as_capacity_error, gib, memory_of, step_bytes
from rfjax.quant.qtensor import has_packed, packed_leaves

logger = logging.getLogger(__name__)

_STEP_TOKENS = 2048
_STEP_TOKENS_ON_CPU = 1024
"""Places of a full step."""

_CACHE_TOKENS = 1 << 16
"""Most tokens whose keys and values are held, unless one sequence needs more."""

_SHARE_OF_CPU = 0.25
_SHARE_OF_DEVICE = 0.8
"""Of the free memory, for the cache."""

_LEAST_TABLE = 512 // PAGE_SIZE
"""Least width of a page table."""

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
        self._step_tokens = step_tokens
        self._cache_tokens = cache_tokens
        self._fixed = batch_invariant and not (on_cpu and config.dtype == "float32")
        self._steps = score_steps(has_packed(model.params), model.mesh)

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
        n_pages = self._n_pages(continuations)
        logprobs = [np.empty(len(one.tokens), np.float32) for one in continuations]
        greedy = [np.empty(len(one.tokens), np.bool_) for one in continuations]
        left = [len(one.tokens) for one in continuations]
        for pieces, values, likeliest in self._results(continuations, n_pages):
            check_not_nan(
                np.concatenate([v[: len(p.tokens)] for p, v in zip(pieces, values, strict=False)]),
                self._model.config.dtype,
            )
            for piece, value, likely in zip(pieces, values, likeliest, strict=False):
                assert piece.owner is not None
                n, end = len(piece.tokens), piece.offset + len(piece.tokens)
                logprobs[piece.owner][piece.offset : end] = value[:n]
                greedy[piece.owner][piece.offset : end] = likely[:n]
                left[piece.owner] -= n
                if not left[piece.owner]:
                    score = ContinuationScore(logprobs[piece.owner], greedy[piece.owner])
                    yield piece.owner, score

    def _results(
        self, continuations: Sequence[Continuation], n_pages: int
    ) -> Iterator[tuple[list[Piece], np.ndarray, np.ndarray]]:
        """Pieces that score, with log-probabilities and greediness [B, L] of their rows."""
        longest = max(-(-one.n_inputs // PAGE_SIZE) for one in continuations)
        width = round_up_power_of_two(longest, _LEAST_TABLE)
        cache = self._empty_cache(n_pages + 1)
        under_way: collections.deque = collections.deque()
        for wave in plan_waves(continuations, n_pages):
            for step in self._cut_into_steps(wave.contexts):
                rows = self._rows(step, width)
                cache = self._steps.fill(self._model.params, cache, rows, config=self._model.config)
            for step in self._cut_into_steps(wave.scored):
                rows = self._rows(step, width)
                scored = _scored(step, rows.tokens.shape, continuations, n_pages + 1)
                scores, cache = self._steps.score_rows(
                    self._model.params, cache, rows, scored, config=self._model.config
                )
                under_way.append((step, scores))
                if len(under_way) > _UNDER_WAY:
                    yield _read(*under_way.popleft())
        while under_way:
            yield _read(*under_way.popleft())

    def _cut_into_steps(self, pieces: list[Piece]) -> Iterator[list[Piece]]:
        """Pieces of one size, as many as a full step has rows, the largest first."""
        for size in PIECE_SIZES:
            own = [piece for piece in pieces if piece.size == size]
            n_rows = self._step_tokens // size
            for start in range(0, len(own), n_rows):
                yield own[start : start + n_rows]

    def _rows(self, step: list[Piece], width: int) -> Rows:
        """Arrays of a step, filled up with rows of padding."""
        size = step[0].size
        n_rows = self._step_tokens // size
        if not self._fixed:  # a sixteenth, a quarter, or all
            fewer = (n for n in (n_rows // 16, n_rows // 4) if n >= len(step))
            n_rows = min(fewer, default=n_rows)
        tokens = np.zeros((n_rows, size), np.int32)
        positions = np.full((n_rows, size), -1, np.int32)
        tables = np.zeros((n_rows, width), np.int32)
        for row, piece in enumerate(step):
            n = len(piece.tokens)
            tokens[row, :n] = piece.tokens
            positions[row, :n] = range(piece.start, piece.start + n)
            tables[row, : len(piece.pages)] = piece.pages
        return Rows(tokens, positions, tables)

    def _n_pages(self, continuations: Sequence[Continuation]) -> int:
        """Pages for these continuations: few values, so that few programs are compiled."""
        needed = sum(map(n_pages_of, continuations))
        longest = max(map(n_pages_of, continuations))
        most = self._most_pages(longest)
        return min(most, round_up_power_of_two(needed, 2 * _LEAST_TABLE))

    def _most_pages(self, longest: int) -> int:
        model, config = self._model, self._model.config
        dtype = jnp.dtype(config.dtype)
        of_page = page_bytes(config.kv_shapes, PAGE_SIZE, dtype, model.mesh)
        devices = jax.devices()[:1] if model.mesh is None else list(model.mesh.devices.flat)
        memory = memory_of(devices)
        asked = (self._cache_tokens or _CACHE_TOKENS) // PAGE_SIZE
        if self._cache_tokens is None:
            asked = max(asked, longest)
        if memory.free is None:
            room = asked
        else:
            share = _SHARE_OF_CPU if devices[0].platform == "cpu" else _SHARE_OF_DEVICE
            free = int(share * memory.free) // memory.sharers - self._workspace()
            room = max(0, free // of_page)
        if min(asked, room) < longest:
            raise CapacityError(
                f"the keys and values of the longest continuation take {gib(longest * of_page)}, "
                f"and there is room for {gib(min(asked, room) * of_page)} on {memory.where}: "
                "leave it out, raise cache_tokens where it is given, or use a mesh or a smaller "
                "dtype"
            )
        return min(asked, room)

    def _workspace(self) -> int:
        """Bytes of a step's intermediate values, from above."""
        config = self._model.config
        packed = (leaf.shape[-2] * leaf.shape[-1] for leaf in packed_leaves(self._model.params))
        return step_bytes(
            config,
            max(packed, default=0),
            tokens=self._step_tokens,
            sequences=PIECE_SIZES[0],
            keys=config.context_length,
        )

    def _empty_cache(self, n_pages: int) -> PagedCache:
        config = self._model.config
        return init_paged_cache(
            config.kv_shapes,
            (0,) * len(config.layers),  # all layers keep all tokens: one table
            (n_pages,),
            PAGE_SIZE,
            jnp.dtype(config.dtype),
            self._model.mesh,
        )


def _scored(
    step: list[Piece], shape: tuple[int, int], continuations: Sequence[Continuation], nowhere: int
) -> Scored:
    targets = np.zeros(shape, np.int32)
    sources = np.zeros(shape[0], np.int32)
    copies = np.full(shape[0], nowhere, np.int32)
    for row, piece in enumerate(step):
        assert piece.owner is not None
        n = len(piece.tokens)
        targets[row, :n] = continuations[piece.owner].tokens[piece.offset : piece.offset + n]
        if piece.copied is not None:
            sources[row], copies[row] = piece.copied
    return Scored(targets, sources, copies)


def _read(
    step: list[Piece], scores: Iterable[jax.Array]
) -> tuple[list[Piece], np.ndarray, np.ndarray]:
    logprobs, greedy = map(np.asarray, scores)
    return step, logprobs, greedy
