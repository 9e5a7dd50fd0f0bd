"""How far models are from a base over a text, with no file of logits in between, exactly in f32.

Chunks and the tokens that count are those of `rfjax.evals.perplexity`; the figures are those of
llama-perplexity's `--kl-divergence`.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import jax
import numpy as np

from rfjax.engine.compiler_options import compiler_options
from rfjax.engine.finite import check_not_nan
from rfjax.errors import RequestError
from rfjax.evals.kl.against_file import KLResult
from rfjax.evals.kl.divergence import divergences_of_states, many_divergences
from rfjax.evals.kl.final_states import FinalStates
from rfjax.evals.kl.kl_statistics import KLStatistics
from rfjax.evals.perplexity import check_context, check_count, chunks_per_batch, text_chunks
from rfjax.evals.records.chunk_journal import with_journal
from rfjax.evals.records.journal import Journal
from rfjax.evals.row_batches import in_batches
from rfjax.io.load import Model
from rfjax.models.config import ModelConfig
from rfjax.ops.divergence import TokenDivergences
from rfjax.quant.qtensor import has_packed
from rfjax.tokenizer import Tokenizer
from rfjax.typing import Array

OnChunk = Callable[[int, int, Sequence[KLStatistics]], None]
"""Called with (chunk number from 1, number of chunks, figures of each model up to there)."""


class Described(Protocol):
    """A model, or its file: what is to be known of it before anything is computed."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    @property
    def path(self) -> str: ...


def kld(
    base: Model,
    models: Sequence[Model],
    text: str | Sequence[int],
    *,
    n_ctx: int = 512,
    chunks: int | None = None,
    batch_size: int | None = None,
    journal: Journal | None = None,
    on_chunk: OnChunk | None = None,
) -> list[KLResult]:
    """Compare models with a base, all of them in one program over the text.

    The base is computed once a batch, whatever the number of models.

    Args:
        base: what the others are compared with; its tokenizer cuts the text.
        models: of the same vocabulary; sizes, dtypes and kinds of weights may differ.
        text, n_ctx, chunks, batch_size: as of `rfjax.evals.perplexity.perplexity`.
        journal: about the base and these models in this order; chunks that it has are not
            computed again, and others are added to it.
        on_chunk: called after each chunk.

    Returns:
        The figures of each model, in order.

    Raises:
        RequestError: no model, other vocabularies, or as of `perplexity`.
        ModelFormatError: a model computes NaN.
    """
    if not models:
        raise RequestError("nothing to compare with the base: give at least one model")
    rows = comparison_rows(base, models, text, n_ctx=n_ctx, chunks=chunks)
    compute = functools.partial(
        _jitted_many(any(has_packed(model.params) for model in (base, *models))),
        base.params,
        tuple(model.params for model in models),
        first=n_ctx // 2,
        base_config=base.config,
        configs=tuple(model.config for model in models),
    )
    statistics = [KLStatistics() for _ in models]
    size = chunks_at_a_time(rows, batch_size)

    def computed(some: np.ndarray) -> Iterator[np.ndarray]:
        for found in in_batches(compute, some, size, mesh=base.mesh):
            for each, model in zip(found, models, strict=True):
                _check(each, base.config, model.config)
            yield np.asarray([_arrays(each) for each in found], np.float32)

    values = with_journal(computed, rows, journal, kind="kld", first=n_ctx // 2)
    for done, found in enumerate(values, 1):
        for arrays, sums in zip(found, statistics, strict=True):
            _add(sums, arrays)
        if on_chunk is not None:
            on_chunk(done, len(rows), statistics)
    return [KLResult(sums.summary(), len(rows), n_ctx) for sums in statistics]


def compare_states(
    base: FinalStates,
    own: FinalStates,
    rows: np.ndarray,
    *,
    batch_size: int | None = None,
    on_chunk: OnChunk | None = None,
) -> KLResult:
    """Compare two models that have been over the text already, one after the other.

    Args:
        base, own: of the two, over `rows`.
        rows: of `comparison_rows`.
        batch_size: chunks computed at a time.
        on_chunk: called after each chunk.

    Raises:
        ModelFormatError: a model computes NaN.
    """
    n_ctx = rows.shape[1]
    targets = rows[:, n_ctx // 2 + 1 :]
    jitted = _jitted_states(has_packed((base.head, own.head)))

    def compute(batch: tuple[Array, Array, Array]) -> TokenDivergences:
        return jitted(base.head, own.head, *batch)

    statistics = KLStatistics()
    inputs = zip(base.hidden, own.hidden, targets, strict=True)
    found = in_batches(compute, inputs, chunks_at_a_time(rows, batch_size))
    for done, each in enumerate(found, 1):
        _check(each, base.config, own.config)
        _add(statistics, _arrays(each))
        if on_chunk is not None:
            on_chunk(done, len(rows), [statistics])
    return KLResult(statistics.summary(), len(rows), n_ctx)


def comparison_rows(
    base: Described,
    models: Sequence[Described],
    text: str | Sequence[int],
    *,
    n_ctx: int,
    chunks: int | None,
) -> np.ndarray:
    """The chunks on which models are compared, int32 `[n_chunks, n_ctx]`.

    Raises:
        RequestError: the vocabularies differ, or as of `rfjax.evals.perplexity.perplexity`.
    """
    for model in models:
        check_same_vocabulary(base, model)
        check_context(n_ctx, model.config)
    return text_chunks(
        text,
        tokenizer=base.tokenizer,
        config=base.config,
        path=base.path,
        n_ctx=n_ctx,
        chunks=chunks,
    )


def chunks_at_a_time(rows: np.ndarray, batch_size: int | None) -> int:
    """`chunks_per_batch` of these, of a batch size that was checked.

    Raises:
        RequestError: it is no integer, or below 1.
    """
    check_count("batch_size", batch_size, least=1, optional=True)
    return chunks_per_batch(len(rows), rows.shape[1], batch_size)


def check_same_vocabulary(base: Described, model: Described) -> None:
    """Refuse a model whose tokens are not the base's.

    Raises:
        RequestError: sizes or texts of tokens differ; names the first.
    """
    sizes = base.config.vocab_size, model.config.vocab_size
    if sizes[0] != sizes[1]:
        raise RequestError(
            f"{model.path} has {sizes[1]} tokens and the base {base.path} {sizes[0]}: only models "
            "of the same vocabulary can be compared"
        )
    if base.tokenizer is None or model.tokenizer is None:
        return
    for i in range(min(base.tokenizer.vocab_size, model.tokenizer.vocab_size)):
        pieces = base.tokenizer.id_to_piece(i), model.tokenizer.id_to_piece(i)
        if pieces[0] != pieces[1]:
            raise RequestError(
                f"token {i} is {pieces[1]!r} in {model.path} and {pieces[0]!r} in the base "
                f"{base.path}: only models of the same vocabulary can be compared"
            )


def _check(found: TokenDivergences, base: ModelConfig, config: ModelConfig) -> None:
    """Refuse what has a NaN, naming the model's dtype."""
    check_not_nan(np.asarray(found.nll_base), base.dtype)
    check_not_nan(np.asarray(found.nll), config.dtype)


def _arrays(found: TokenDivergences) -> list[np.ndarray]:
    """In the order of `KLStatistics.add`."""
    fields = found.nll, found.nll_base, found.kld, found.p_diff, found.same_top
    return [np.asarray(field) for field in fields]


def _add(statistics: KLStatistics, arrays: Sequence[np.ndarray]) -> None:
    nll, nll_base, divergence, p_diff, same_top = arrays
    statistics.add(nll, nll_base, divergence, p_diff, same_top.astype(np.bool_))


@functools.cache
def _jitted_many(packed: bool):
    return jax.jit(
        many_divergences,
        static_argnames=("first", "base_config", "configs"),
        compiler_options=compiler_options(packed=packed),
    )


@functools.cache
def _jitted_states(packed: bool):
    return jax.jit(divergences_of_states, compiler_options=compiler_options(packed=packed))
