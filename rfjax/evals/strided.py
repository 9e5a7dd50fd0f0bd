"""Perplexity with a stride: windows that overlap, of which only the end is scored.

As llama-perplexity counts it with `--ppl-stride`. A scored token has at least `window - stride`
tokens before it, where chunks that do not overlap give the first ones half a chunk, so that
estimates are lower; all of it takes `window / stride` times as long. No window starts with a BOS
of its own: llama-perplexity puts one in when the window has been computed, and takes it out again.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from rfjax.errors import RequestError
from rfjax.evals.perplexity import (
    OnSums,
    PerplexityResult,
    added_up,
    check_count,
    chunk_nll,
    chunks_per_batch,
    text_tokens,
)
from rfjax.evals.records.journal import Journal
from rfjax.io.load import Model

_WINDOW_STEP = 256
"""llama.cpp rounds the size of a context up to a multiple of it."""


@dataclasses.dataclass(frozen=True)
class StridedResult(PerplexityResult):
    """An estimate of perplexity from overlapping windows; a window counts as a chunk.

    Attributes:
        window: tokens of a window.
        stride: tokens from one window to the next, and scored ones of each.
    """

    window: int
    stride: int


def window_length(n_ctx: int, stride: int) -> int:
    """Tokens of a window: `n_ctx + stride / 2`, up to a multiple of 256."""
    return -(-(n_ctx + stride // 2) // _WINDOW_STEP) * _WINDOW_STEP


def strided_windows(
    token_ids: Sequence[int], window: int, stride: int, chunks: int | None
) -> np.ndarray:
    """The windows, int32 `[n, window]`, a view: each starts `stride` tokens after the last.

    There is one for every started stride of tokens behind the first window; the first window's
    own end is scored with them, and up to a stride of tokens at the end of the text is not.

    Raises:
        RequestError: fewer than `2 * window` tokens.
    """
    if len(token_ids) < 2 * window:
        raise RequestError(
            f"the text has {len(token_ids)} tokens, and windows of {window} need at least "
            f"{2 * window}: give a longer text or a smaller n_ctx"
        )
    n_windows = -(-(len(token_ids) - window) // stride)
    if chunks is not None:
        n_windows = min(n_windows, chunks)
    ids = np.asarray(token_ids, np.int32)
    return np.lib.stride_tricks.sliding_window_view(ids, window)[::stride][:n_windows]


def strided_perplexity(
    model: Model,
    text: str | Sequence[int],
    *,
    stride: int,
    n_ctx: int = 512,
    chunks: int | None = None,
    batch_size: int | None = None,
    journal: Journal | None = None,
    on_sums: OnSums | None = None,
) -> StridedResult:
    """Perplexity of a text, as llama-perplexity counts it with a stride.

    Args:
        text: a text, or its token ids (BOS included if the model wants one at its beginning).
        stride: tokens from one window to the next, and scored ones at the end of each.
        n_ctx: what a window is made from, see `window_length`.
        chunks: score only that many windows; None scores all.
        batch_size: windows scored at a time; the result does not depend on it beyond rounding.
        journal: as of `rfjax.evals.perplexity.perplexity`; windows that it has are not computed.
        on_sums: called with (window number from 1, number of windows, sums up to there).

    Raises:
        RequestError: text too short for the window, window longer than the model's context, a
            stride as long as the window, or as `rfjax.evals.perplexity.perplexity`.
        ModelFormatError: the model computes NaN.
    """
    config = model.config
    check_count("n_ctx", n_ctx, least=4)
    check_count("stride", stride, least=1)
    check_count("chunks", chunks, least=1, optional=True)
    check_count("batch_size", batch_size, least=1, optional=True)
    window = window_length(n_ctx, stride)
    if window > config.context_length:
        raise RequestError(
            f"n_ctx {n_ctx} and a stride of {stride} make windows of {window} tokens, and the "
            f"model's context holds {config.context_length}: give a smaller n_ctx"
        )
    if stride >= window:
        raise RequestError(
            f"stride: got {stride}, expected less than the windows' {window} tokens, since the "
            "last ones of each are scored: give a smaller stride or a greater n_ctx"
        )
    token_ids = text_tokens(text, tokenizer=model.tokenizer, config=config, path=model.path)
    rows = strided_windows(token_ids, window, stride, chunks)
    batch = chunks_per_batch(len(rows), window, batch_size)
    first = window - 1 - stride
    values = chunk_nll(model, rows, first=first, batch_size=batch, journal=journal)
    result = added_up(values, n_chunks=len(rows), n_ctx=n_ctx, on_sums=on_sums)
    return StridedResult(**vars(result), window=window, stride=stride)
