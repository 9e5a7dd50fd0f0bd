"""Perplexity as llama-perplexity counts it.

The text is tokenized once and cut into disjoint chunks of `n_ctx` tokens; each is scored from an
empty context, its first token replaced by BOS where the vocabulary adds one, and only tokens in
the second half of a chunk count (positions `n_ctx/2 + 1` to `n_ctx - 1`).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rfjax.engine.compiler_options import compiler_options
from rfjax.engine.finite import check_not_nan
from rfjax.engine.request import as_token_ids
from rfjax.errors import RequestError
from rfjax.evals.records.chunk_journal import with_journal
from rfjax.evals.records.journal import Journal
from rfjax.evals.row_batches import in_batches
from rfjax.evals.score import score
from rfjax.io.load import Model
from rfjax.models.config import ModelConfig
from rfjax.models.params import Params
from rfjax.quant.qtensor import has_packed
from rfjax.tokenizer import Tokenizer
from rfjax.typing import Array, Int

_TOKENS_PER_BATCH = 2048
"""Tokens scored in one step when the caller names no batch size (llama-perplexity's default)."""


@dataclasses.dataclass(frozen=True)
class PerplexityResult:
    """An estimate of perplexity and how it came about.

    Attributes:
        perplexity: exp of the mean negative log-likelihood, per token.
        stderr: its standard error, by propagation from the mean's.
        mean_nll: in nats.
        n_tokens: tokens that were scored.
        n_chunks: chunks that were scored.
        n_ctx: tokens of a chunk.
        running: the estimate after each chunk.
    """

    perplexity: float
    stderr: float
    mean_nll: float
    n_tokens: int
    n_chunks: int
    n_ctx: int
    running: tuple[float, ...]


class RunningPerplexity:
    """Sums of negative log-likelihoods and of their squares, in f64."""

    def __init__(self):
        self.count = 0
        self._sum = 0.0
        self._sum_squares = 0.0

    def add(self, nll: np.ndarray) -> None:
        """Count the f32 values of some tokens."""
        wide = nll.astype(np.float64)
        self.count += wide.size
        self._sum += float(wide.sum())
        self._sum_squares += float((wide * wide).sum())

    @property
    def mean_nll(self) -> float:
        """Nats per token."""
        return self._sum / self.count

    @property
    def perplexity(self) -> float:
        """`exp(mean_nll)`, infinite where it overflows."""
        try:
            return math.exp(self.mean_nll)
        except OverflowError:
            return math.inf

    @property
    def mean_nll_stderr(self) -> float:
        """`sqrt(variance / (count - 1))`, nats; 0 for a single token."""
        if self.count < 2:
            return 0.0
        variance = self._sum_squares / self.count - self.mean_nll**2
        return math.sqrt(max(0.0, variance) / (self.count - 1))

    @property
    def stderr(self) -> float:
        """`perplexity * mean_nll_stderr`."""
        return self.perplexity * self.mean_nll_stderr


OnSums = Callable[[int, int, RunningPerplexity], None]
"""Called with (chunk number from 1, number of chunks, sums of all tokens up to there)."""


@functools.cache
def _jitted_nll(packed: bool):
    def nll(params: Params, tokens: Int[Array, "B L"], first: int, config: ModelConfig) -> Array:
        mask = jnp.ones(tokens.shape, jnp.bool_)
        return -score(params, tokens, mask, config=config, first=first)[:, first + 1 :]

    options = compiler_options(packed=packed)
    return jax.jit(nll, static_argnames=("first", "config"), compiler_options=options)


def chunks_per_batch(n_chunks: int, length: int, asked: int | None) -> int:
    """Chunks of so many tokens computed at a time: those asked for, no more than there are."""
    return min(n_chunks, asked or max(1, _TOKENS_PER_BATCH // length))


def chunk_tokens(
    token_ids: Sequence[int], n_ctx: int, chunks: int | None, bos_id: int | None
) -> np.ndarray:
    """Disjoint chunks, int32 `[n_chunks, n_ctx]`, the first token of each replaced by `bos_id`.

    Raises:
        RequestError: fewer than `2 * n_ctx` tokens.
    """
    if len(token_ids) < 2 * n_ctx:
        raise RequestError(
            f"the text has {len(token_ids)} tokens, and a context of {n_ctx} needs at least "
            f"{2 * n_ctx}: give a longer text or a smaller n_ctx"
        )
    n_chunks = len(token_ids) // n_ctx
    if chunks is not None:
        n_chunks = min(n_chunks, chunks)
    rows = np.asarray(token_ids[: n_chunks * n_ctx], np.int32).reshape(n_chunks, n_ctx)
    if bos_id is not None:
        rows[:, 0] = bos_id
    return rows


def perplexity(
    model: Model,
    text: str | Sequence[int],
    *,
    n_ctx: int = 512,
    chunks: int | None = None,
    batch_size: int | None = None,
    journal: Journal | None = None,
    on_chunk: Callable[[int, int, float], None] | None = None,
    on_sums: OnSums | None = None,
) -> PerplexityResult:
    """Perplexity of a text, in llama-perplexity's default mode.

    Args:
        text: a text, or its token ids (BOS included if the model wants one).
        n_ctx: tokens of a chunk.
        chunks: score only that many; None scores all. A tail shorter than a chunk is dropped.
        batch_size: chunks scored at a time; the result does not depend on it beyond rounding.
        journal: about this model (`rfjax.evals.records.provenance.provenance`); chunks that it has
            are not computed again, and others are added to it.
        on_chunk: called with (chunk number from 1, number of chunks, running estimate).
        on_sums: the same with all that is known of the tokens so far, for who wants its error.

    Raises:
        RequestError: text too short for the context, context longer than the model's, ids
            outside the vocabulary, or a size that is no integer or too small.
        ModelFormatError: the model computes NaN.
    """
    config = model.config
    check_count("batch_size", batch_size, least=1, optional=True)
    rows = text_chunks(
        text,
        tokenizer=model.tokenizer,
        config=config,
        path=model.path,
        n_ctx=n_ctx,
        chunks=chunks,
    )
    batch = chunks_per_batch(len(rows), n_ctx, batch_size)

    def tell(done: int, total: int, sums: RunningPerplexity) -> None:
        if on_chunk is not None:
            on_chunk(done, total, sums.perplexity)
        if on_sums is not None:
            on_sums(done, total, sums)

    values = chunk_nll(model, rows, first=n_ctx // 2, batch_size=batch, journal=journal)
    return added_up(values, n_chunks=len(rows), n_ctx=n_ctx, on_sums=tell)


def chunk_nll(
    model: Model, rows: np.ndarray, *, first: int, batch_size: int, journal: Journal | None
) -> Iterator[np.ndarray]:
    """Of each row the f32 `[L - 1 - first]` negative log-likelihoods of the tokens after `first`.

    Args:
        model: whose.
        rows: int32 `[n, L]`, each from an empty context.
        first: the last position that is not scored.
        batch_size: rows computed at a time.
        journal: values are taken from it and added to it.

    Raises:
        ModelFormatError: there is a NaN.
    """
    jitted = _jitted_nll(has_packed(model.params))
    nll = functools.partial(jitted, model.params, first=first, config=model.config)

    def computed(some: np.ndarray) -> Iterator[np.ndarray]:
        for values in in_batches(nll, some, batch_size, mesh=model.mesh):
            check_not_nan(values, model.config.dtype)
            yield values

    return with_journal(computed, rows, journal, kind="nll", first=first)


def added_up(
    values: Iterable[np.ndarray],
    *,
    n_chunks: int,
    n_ctx: int,
    on_sums: OnSums | None = None,
) -> PerplexityResult:
    """The estimate from the negative log-likelihoods of each chunk's scored tokens.

    Args:
        values: f32, nats, a chunk after the other, none of them NaN.
        n_chunks: how many there will be.
        n_ctx: tokens of a chunk.
        on_sums: called after each chunk.
    """
    sums, running = RunningPerplexity(), []
    for nll in values:
        sums.add(nll)
        running.append(sums.perplexity)
        if on_sums is not None:
            on_sums(len(running), n_chunks, sums)
    return PerplexityResult(
        perplexity=sums.perplexity,
        stderr=sums.stderr,
        mean_nll=sums.mean_nll,
        n_tokens=sums.count,
        n_chunks=len(running),
        n_ctx=n_ctx,
        running=tuple(running),
    )


def text_chunks(
    text: str | Sequence[int],
    *,
    tokenizer: Tokenizer | None,
    config: ModelConfig,
    path: str,
    n_ctx: int,
    chunks: int | None,
) -> np.ndarray:
    """The chunks of a text that a model of this tokenizer and configuration is measured on.

    Args:
        text: a text, or its token ids (BOS included if the model wants one).
        tokenizer: the model's; None for a model without.
        config: the model's.
        path: of the model's file, for messages.
        n_ctx, chunks: as of `perplexity`.

    Returns:
        Int32 `[n_chunks, n_ctx]`, of `chunk_tokens`.

    Raises:
        RequestError: as of `perplexity`.
    """
    check_count("n_ctx", n_ctx, least=4)
    check_count("chunks", chunks, least=1, optional=True)
    check_context(n_ctx, config)
    token_ids = text_tokens(text, tokenizer=tokenizer, config=config, path=path)
    bos_id = tokenizer.bos_id if tokenizer is not None and tokenizer.add_bos else None
    return chunk_tokens(token_ids, n_ctx, chunks, bos_id)


def text_tokens(
    text: str | Sequence[int], *, tokenizer: Tokenizer | None, config: ModelConfig, path: str
) -> list[int]:
    """Token ids of a text, with the BOS and EOS of the vocabulary; of ids, these.

    Raises:
        RequestError: a text without tokenizer, or ids outside the vocabulary.
    """
    if not isinstance(text, str):
        token_ids = as_token_ids(text)
    elif tokenizer is None:
        raise RequestError(f"{path} has no tokenizer: give token ids instead of text")
    else:
        token_ids = tokenizer.encode(text)
    if token_ids and (min(token_ids) < 0 or max(token_ids) >= config.vocab_size):
        raise RequestError(
            f"token ids from {min(token_ids)} to {max(token_ids)}: expected 0 to "
            f"{config.vocab_size - 1}"
        )
    return token_ids


def check_context(n_ctx: int, config: ModelConfig) -> None:
    """Refuse chunks that are longer than the model's context.

    Raises:
        RequestError: they are.
    """
    if n_ctx > config.context_length:
        raise RequestError(
            f"n_ctx: got {n_ctx}, and the model's context holds {config.context_length} tokens"
        )


def check_count(name: str, value: int | None, *, least: int, optional: bool = False) -> None:
    """Refuse what is no integer of at least `least`, or None where it is optional.

    Raises:
        RequestError: that, naming it.
    """
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        hint = ", or None" if optional else ""
        raise RequestError(f"{name}: got {value!r}, expected an integer of at least {least}{hint}")
