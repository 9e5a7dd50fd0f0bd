"""Perplexity of a text in `rfjax perplexity`: in chunks, with a stride, and with a base's file."""

import dataclasses
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rfjax.cli.journal import opened_journal
from rfjax.cli.output import note, write, write_json
from rfjax.cli.running import Tell, running_output
from rfjax.progress import progress_bar

if TYPE_CHECKING:
    from rfjax.evals.perplexity import OnSums, PerplexityResult, RunningPerplexity
    from rfjax.evals.records.journal import Journal
    from rfjax.llm import LLM


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """What is measured, and how it is printed.

    Attributes:
        source: of the text, for the record.
        n_ctx: tokens of a chunk.
        chunks: how many at most; None for all.
        tokens_per_batch: computed at a time, in whole chunks.
        output_type: llama-perplexity's: 0 prints values in one line, 1 a line a chunk.
        json: print one JSON object instead.
        quiet: print no summary on stderr.
        journal: a file that keeps chunks' values as they come; None for none.
    """

    source: Path
    n_ctx: int
    chunks: int | None
    tokens_per_batch: int
    output_type: int
    json: bool
    quiet: bool
    journal: Path | None = None


def run_perplexity(llm: "LLM", text: str, settings: TextSettings, base: Path | None) -> None:
    """Perplexity in chunks; with `base`, the model's probabilities go to that file."""
    from rfjax.evals.kl.against_file import write_kl_base
    from rfjax.evals.perplexity import perplexity

    at_a_time = max(1, settings.tokens_per_batch // max(1, settings.n_ctx))

    def line(chunk: int, sums: "RunningPerplexity") -> str:
        if settings.output_type == 0:
            return running_value(chunk, sums.perplexity)
        # llama-perplexity names the first chunk of those that it computes together.
        first = (chunk - 1) // at_a_time * at_a_time * settings.n_ctx
        return chunk_line(first, sums)

    with (
        _journal(llm, text, settings) as journal,
        running_output(printing=not settings.json) as tell,
    ):
        kept, start = 0 if journal is None else len(journal), time.perf_counter()
        sizes = {"n_ctx": settings.n_ctx, "chunks": settings.chunks, "batch_size": at_a_time}
        on_sums = _telling(tell, line)
        if base is None:
            result = perplexity(llm.model, text, **sizes, journal=journal, on_sums=on_sums)
        else:
            result = write_kl_base(llm.model, text, base, **sizes, on_sums=on_sums)
    seconds = time.perf_counter() - start
    if settings.json:
        written = {} if base is None else {"kl_divergence_base": {"file": str(base)}}
        _write_json(llm, text, settings, {**written, **vars(result), "seconds": seconds})
    else:
        write(f"\n{estimate(result)}\n")
    _summarize(result, result.n_ctx, settings, seconds, kept)
    if base is not None and not settings.quiet:
        note(f"wrote {base}, {base.stat().st_size} bytes")


def run_strided(llm: "LLM", text: str, settings: TextSettings, stride: int) -> None:
    """Perplexity with a stride, for which llama-perplexity prints no final estimate."""
    from rfjax.evals.strided import strided_perplexity, window_length

    window = max(1, window_length(settings.n_ctx, stride))

    def line(chunk: int, sums: "RunningPerplexity") -> str:
        if settings.output_type == 0:
            return running_value(chunk, sums.perplexity)
        return f"{(chunk - 1) * stride:8d}  {sums.perplexity:.4f}\n"

    with (
        _journal(llm, text, settings, stride) as journal,
        running_output(printing=not settings.json) as tell,
    ):
        kept, start = 0 if journal is None else len(journal), time.perf_counter()
        result = strided_perplexity(
            llm.model,
            text,
            stride=stride,
            n_ctx=settings.n_ctx,
            chunks=settings.chunks,
            batch_size=max(1, settings.tokens_per_batch // window),
            journal=journal,
            on_sums=_telling(tell, line),
        )
    seconds = time.perf_counter() - start
    if settings.json:
        figures = {**vars(result), "seconds": seconds}
        _write_json(llm, text, settings, figures, stride)
    else:
        write("\n")
    _summarize(result, result.window, settings, seconds, kept)


def measure(llm: "LLM", text: str, *, n_ctx: int) -> "PerplexityResult":
    """The perplexity in chunks, with a bar on a terminal and nothing on stdout."""
    with progress_bar("{task.fields[figure]}") as bar:
        task = bar.add_task("scoring", total=None, figure="")

        def on_chunk(done: int, total: int, running: float) -> None:
            bar.update(task, completed=done, total=total, figure=f"PPL {running:.4f}")

        return llm.perplexity(text, n_ctx=n_ctx, on_chunk=on_chunk)


def estimate(result: "PerplexityResult") -> str:
    """The line of llama-perplexity."""
    return f"Final estimate: PPL = {result.perplexity:.4f} +/- {result.stderr:.5f}"


def running_value(chunk: int, value: float) -> str:
    """llama-perplexity's running value after a chunk, counted from 1."""
    return f"[{chunk}]{value:.4f},"


def chunk_line(first: int, sums: "RunningPerplexity") -> str:
    """llama-perplexity's line after a chunk that starts at token `first`."""
    figures = f"{sums.perplexity:.4f}  {sums.mean_nll:4f}  {sums.mean_nll_stderr:4f}"
    return f"{first:8d}  {figures}\n"


def _telling(tell: Tell, line: Callable[[int, "RunningPerplexity"], str]) -> "OnSums":
    def on_sums(done: int, total: int, sums: "RunningPerplexity") -> None:
        tell(done, total, f"PPL {sums.perplexity:.4f}", line(done, sums))

    return on_sums


def _journal(
    llm: "LLM", text: str, settings: TextSettings, stride: int | None = None
) -> "AbstractContextManager[Journal | None]":
    about = _about(text, settings, stride)
    return opened_journal(settings.journal, llm.model, about, quiet=settings.quiet)


def _about(text: str, settings: TextSettings, stride: int | None) -> dict[str, Any]:
    """What a chunk's values depend on, which is not how many chunks there are."""
    from rfjax.evals.records.provenance import text_hash

    return {
        "text": text_hash(text),
        "n_ctx": settings.n_ctx,
        "stride": stride,
        "tokens_per_batch": settings.tokens_per_batch,
    }


def _write_json(
    llm: "LLM",
    text: str,
    settings: TextSettings,
    figures: dict[str, Any],
    stride: int | None = None,
) -> None:
    from rfjax.evals.records.provenance import with_provenance

    names = {"model": llm.model.path, "file": str(settings.source)}
    chosen = {**_about(text, settings, stride), "chunks": settings.chunks}
    write_json(with_provenance({**names, **figures}, llm.model, chosen))


def _summarize(
    result: "PerplexityResult", n_tokens: int, settings: TextSettings, seconds: float, kept: int
) -> None:
    """A line on stderr; `n_tokens` is of a chunk, `kept` counts what the journal had before."""
    if settings.quiet:
        return
    total = n_tokens * result.n_chunks
    rate = f": {total / seconds:.1f} tokens/s, tokenization and compilation included"
    if kept:  # a rate would say nothing
        rate = ", the journal's chunks not computed again"
    note(
        f"{total} tokens ({result.n_chunks} chunks of {n_tokens}, {result.n_tokens} scored) in "
        f"{seconds:.2f} s{rate}"
    )
