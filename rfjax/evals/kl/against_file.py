"""How far a model is from a base whose probabilities are in llama-perplexity's file.

The counterpart of `rfjax.evals.kl.kld`, which compares models without a file and exactly: here the
base is known in 16 bits (`rfjax.ops.logprob_codes`), as llama-perplexity knows it.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from rfjax.engine.compiler_options import compiler_options
from rfjax.engine.finite import check_not_nan
from rfjax.errors import RequestError
from rfjax.evals.kl.divergence import head, scored_states
from rfjax.evals.kl.kl_base_file import KLBase, reading, writing
from rfjax.evals.kl.kl_statistics import KLStatistics, KLSummary
from rfjax.evals.perplexity import (
    OnSums,
    PerplexityResult,
    added_up,
    check_context,
    check_count,
    chunk_tokens,
    chunks_per_batch,
    text_tokens,
)
from rfjax.evals.row_batches import in_batches
from rfjax.io.load import Model
from rfjax.models.config import ModelConfig
from rfjax.models.params import Params
from rfjax.ops.divergence import TokenDivergences
from rfjax.ops.likelihood import over_rows
from rfjax.ops.logprob_codes import coded_divergences, encoded
from rfjax.ops.logprobs import normalizer, of_tokens
from rfjax.quant.qtensor import has_packed
from rfjax.typing import Array, Float, Int, UInt16


@dataclasses.dataclass(frozen=True)
class KLResult:
    """How far a model is from a base, and on what.

    Attributes:
        summary: the figures.
        n_chunks: chunks that were compared.
        n_ctx: tokens of a chunk.
    """

    summary: KLSummary
    n_chunks: int
    n_ctx: int


def base_codes(
    params: Params, tokens: Int[Array, "B L"], *, first: int, config: ModelConfig
) -> tuple[Float[Array, "B n"], UInt16[Array, "B n W"]]:
    """Of the tokens `first + 1 .. L - 1` of every row: their negative log-likelihoods, in nats,
    and all log-probabilities in the file's codes (`rfjax.ops.logprob_codes.encoded`).

    Rows are whole sequences from an empty context. Pure; logits are never held for more than a few
    rows at a time.
    """

    def one(logits: Array, wanted: Array) -> tuple[Array, Array]:
        return -of_tokens(logits, wanted, normalizer(logits)), encoded(logits)

    return _over_logits(one, params, tokens, first, config)


def base_divergences(
    params: Params,
    tokens: Int[Array, "B L"],
    codes: UInt16[Array, "B n W"],
    *,
    first: int,
    config: ModelConfig,
) -> TokenDivergences:
    """The model beside a base's codes, at the tokens `first + 1 .. L - 1` of every row.

    Pure, as `base_codes`, whose second result `codes` is.

    Returns:
        f32 and bool `[B, L - 1 - first]`.
    """

    def one(logits: Array, wanted: Array, coded: Array) -> TokenDivergences:
        return coded_divergences(coded, logits, wanted)

    flat = codes.reshape(-1, codes.shape[-1])
    return _over_logits(one, params, tokens, first, config, flat)


def _over_logits(
    one: Callable,
    params: Params,
    tokens: Int[Array, "B L"],
    first: int,
    config: ModelConfig,
    *others: Array,
):
    """`one(logits, targets, *others)` of a few rows at a time, put together as `[B, n, ...]`."""
    batch, length = tokens.shape
    n = length - 1 - first
    hidden = scored_states(params, tokens, first=first, config=config)
    output = head(params, config).unpacked(hidden.dtype)
    arrays = (hidden.reshape(batch * n, -1), tokens[:, first + 1 :].reshape(-1), *others)
    found = over_rows(
        lambda rows: one(output.logits(rows[0]), *rows[1:]),
        arrays,
        logits_per_row=output.weight.shape[0],
    )
    return jax.tree.map(lambda x: x.reshape(batch, n, *x.shape[1:]), found)


@functools.cache
def _jitted(function: Callable, packed: bool):
    options = compiler_options(packed=packed)
    return jax.jit(function, static_argnames=("first", "config"), compiler_options=options)


def write_kl_base(
    model: Model,
    text: str | Sequence[int],
    path: str | os.PathLike[str],
    *,
    n_ctx: int = 512,
    chunks: int | None = None,
    batch_size: int | None = None,
    on_sums: OnSums | None = None,
) -> PerplexityResult:
    """Write a model's probabilities over a text to a file; its perplexity comes with it.

    The file is llama-perplexity's, which can read it. It takes about `n_ctx * n_vocab` bytes a
    chunk, and appears under its name when it is complete.

    Args:
        model: the base.
        text, n_ctx, chunks, batch_size: as of `rfjax.evals.perplexity.perplexity`.
        path: of the file; one that is there is replaced.
        on_sums: called after each chunk.

    Raises:
        RequestError: as of `perplexity`, or the file cannot be written.
        ModelFormatError: the model computes NaN.
    """
    config, tokenizer = model.config, model.tokenizer
    check_count("n_ctx", n_ctx, least=4)
    check_count("chunks", chunks, least=1, optional=True)
    check_count("batch_size", batch_size, least=1, optional=True)
    check_context(n_ctx, config)
    token_ids = text_tokens(text, tokenizer=tokenizer, config=config, path=model.path)
    base = KLBase(chunk_tokens(token_ids, n_ctx, chunks, None), config.vocab_size)
    compute = functools.partial(
        _jitted(base_codes, has_packed(model.params)),
        model.params,
        first=n_ctx // 2,
        config=config,
    )
    batch = chunks_per_batch(base.n_chunks, base.n_ctx, batch_size)
    with writing(path, base) as writer:

        def values() -> Iterator[np.ndarray]:
            rows = _with_bos(base.tokens, model)
            for nll, codes in in_batches(compute, rows, batch, mesh=model.mesh):
                check_not_nan(nll, config.dtype)
                writer.add(codes)
                yield nll

        return added_up(values(), n_chunks=base.n_chunks, n_ctx=n_ctx, on_sums=on_sums)


def kl_divergence(
    model: Model,
    path: str | os.PathLike[str],
    *,
    chunks: int | None = None,
    batch_size: int | None = None,
    on_chunk: Callable[[int, int, KLStatistics], None] | None = None,
) -> KLResult:
    """How far a model is from the base of a file, counted as llama-perplexity does.

    Args:
        model: a model with the base's vocabulary.
        path: of the file; the text's tokens are in it.
        chunks: compare only that many; None compares all.
        batch_size: chunks computed at a time; the result does not depend on it beyond rounding.
        on_chunk: called with (chunk number from 1, number of chunks, figures up to there).

    Raises:
        RequestError: the file cannot be read, its chunks are longer than the model's context, or
            its vocabulary has another size.
        ModelFormatError: the file is damaged, or the model computes NaN.
    """
    config = model.config
    check_count("chunks", chunks, least=1, optional=True)
    check_count("batch_size", batch_size, least=1, optional=True)
    with reading(path) as (base, coded):
        if base.n_vocab != config.vocab_size:
            raise RequestError(
                f"{path}: of a model with {base.n_vocab} tokens, and {model.path} has "
                f"{config.vocab_size}: only models with the same tokens can be compared"
            )
        if base.n_ctx > config.context_length:
            raise RequestError(
                f"{path}: has chunks of {base.n_ctx} tokens, and the context of {model.path} "
                f"holds {config.context_length}: write it anew with a smaller n_ctx"
            )
        function = _jitted(base_divergences, has_packed(model.params))

        def compute(batch: tuple[Array, Array]) -> TokenDivergences:
            return function(model.params, *batch, first=base.n_ctx // 2, config=config)

        n_chunks = min(base.n_chunks, chunks or base.n_chunks)
        tokens = _with_bos(base.tokens[:n_chunks], model)
        rows = zip(tokens, coded, strict=False)  # `coded` goes on where not all are asked for
        statistics = KLStatistics()
        found = in_batches(
            compute, rows, chunks_per_batch(base.n_chunks, base.n_ctx, batch_size), mesh=model.mesh
        )
        for done, each in enumerate(found, 1):
            check_not_nan(each.nll, config.dtype)
            statistics.add(each.nll, each.nll_base, each.kld, each.p_diff, each.same_top)
            if on_chunk is not None:
                on_chunk(done, n_chunks, statistics)
    return KLResult(summary=statistics.summary(), n_chunks=n_chunks, n_ctx=base.n_ctx)


def _with_bos(tokens: np.ndarray, model: Model) -> np.ndarray:
    """What is computed: each chunk's first token is BOS where the vocabulary adds one."""
    tokenizer = model.tokenizer
    if tokenizer is None or not tokenizer.add_bos or tokenizer.bos_id is None:
        return tokens
    rows = tokens.copy()
    rows[:, 0] = tokenizer.bos_id
    return rows
