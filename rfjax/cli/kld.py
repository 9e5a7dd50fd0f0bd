"""`rfjax kld`: how far quantizations are from their base, token by token and exactly."""

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rfjax.cli import options
from rfjax.cli.files import read_text
from rfjax.cli.output import columns, note, printable, show, write, write_json
from rfjax.progress import progress_bar

if TYPE_CHECKING:
    from rfjax.cli.comparing import Compared
    from rfjax.evals.kl.against_file import KLResult

_WAYS = {
    "all": "all models together, in one program",
    "one": "one model after the other",
    "layers": "layer by layer",
}


def kld(
    base: Annotated[Path, typer.Argument(help="The base's GGUF file.", show_default=False)],
    quants: Annotated[
        list[Path],
        typer.Argument(help="Files to compare with it, of the same vocabulary."),
    ],
    file: options.TextFile,
    ctx: options.ChunkTokens = 512,
    chunks: options.Chunks = None,
    batch_size: options.BatchTokens = options.TOKENS_PER_BATCH,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Hold one layer's weights at a time, as happens by itself where a model does not "
            "fit.",
        ),
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Print llama-perplexity's statistics of each file too.")
    ] = False,
    dtype: options.Dtype = None,
    weights: options.Weights = None,
    implementation: options.Kernels = options.Implementation.auto,
    selfcheck: options.Selfcheck = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """KL divergence of files from a base: over the whole vocabulary, with no file of logits.

    Chunks and figures are those of llama-perplexity.
    """
    from rfjax.cli.comparing import comparing, settings_of

    text = read_text(file)
    chunks = None if chunks == -1 else chunks
    start = time.perf_counter()
    with progress_bar() as bar:
        compared = comparing(
            base,
            quants,
            text,
            bar=bar,
            ctx=ctx,
            chunks=chunks,
            batch_size=batch_size,
            stream=stream,
            dtype=dtype,
            weights=weights,
            kernels=implementation.policy(),
            selfcheck=selfcheck,
            settings=settings_of(text, ctx, chunks, batch_size) if json else None,
        )
    seconds = time.perf_counter() - start
    if json:
        write_json({**_record(base, quants, file, compared), "seconds": seconds})
    else:
        _show(base, quants, compared.results, full=full)
    if not quiet:
        first = compared.results[0]
        note(
            f"{first.n_chunks * ctx} tokens ({first.n_chunks} chunks of {ctx}, "
            f"{first.summary.count} compared) by {1 + len(quants)} models in {seconds:.2f} s, "
            f"{_WAYS[compared.residency]}; loading and compilation included"
        )


def _record(base: Path, quants: list[Path], file: Path, compared: "Compared") -> dict[str, Any]:
    first = compared.results[0]
    return {
        "base": str(base),
        "base_provenance": compared.provenance[base],
        "file": str(file),
        "n_ctx": first.n_ctx,
        "n_chunks": first.n_chunks,
        "residency": compared.residency,
        "models": [
            {
                "model": str(path),
                **dataclasses.asdict(result.summary),
                "provenance": compared.provenance[path],
            }
            for path, result in zip(quants, compared.results, strict=True)
        ],
    }


def _show(base: Path, quants: list[Path], results: "list[KLResult]", *, full: bool) -> None:
    from rfjax.evals.kl.kl_report import report

    numbers = ("PPL", "ln(PPL/base)", "KLD", "median", "99%", "maximum", "RMS Δp", "same top")
    table = columns("file", *numbers, right=numbers)
    of_base = results[0].summary.ppl_base
    table.add_row(
        f"{printable(base.name)} (base)", f"{of_base.value:.4f} ± {of_base.error:.4f}", *[""] * 7
    )
    for path, result in zip(quants, results, strict=True):
        s = result.summary
        table.add_row(
            printable(path.name),
            f"{s.ppl.value:.4f} ± {s.ppl.error:.4f}",
            f"{s.log_ppl_ratio.value:+.5f} ± {s.log_ppl_ratio.error:.5f}",
            f"{s.kld.value:.6f} ± {s.kld.error:.6f}",
            f"{s.kld_percentiles[50.0]:.6f}",
            f"{s.kld_percentiles[99.0]:.6f}",
            f"{s.kld_percentiles[100.0]:.6f}",
            f"{100 * s.p_diff_rms.value:.3f} ± {100 * s.p_diff_rms.error:.3f} %",
            f"{100 * s.same_top.value:.3f} ± {100 * s.same_top.error:.3f} %",
        )
    show(table)
    if full:
        for path, result in zip(quants, results, strict=True):
            write(f"{printable(path.name)}\n{report(result.summary)}\n")
