"""`rfjax perplexity`: how well a model predicts a text, as llama-perplexity prints it."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rfjax.cli import options
from rfjax.cli.files import read_text
from rfjax.cli.output import note, progress_bar, write, write_json

if TYPE_CHECKING:
    from rfjax.evals.perplexity import PerplexityResult
    from rfjax.llm import LLM


def perplexity(
    model: options.Model,
    file: Annotated[
        Path,
        typer.Option(
            "--file", "-f", help="The text, UTF-8; - for standard input.", show_default=False
        ),
    ],
    ctx: Annotated[
        int, typer.Option("--ctx", "-c", help="Tokens of a chunk; its second half is scored.")
    ] = 512,
    chunks: Annotated[
        int | None, typer.Option(help="Score only the first chunks; by default all.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", "-b", help="Chunks scored at a time; by default by size."),
    ] = None,
    dtype: options.Dtype = None,
    weights: options.Weights = None,
    tensor_parallel: options.TensorParallel = 1,
    data_parallel: options.DataParallel = 1,
    implementation: options.Kernels = options.Implementation.auto,
    selfcheck: options.Selfcheck = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Perplexity of a text, counted and printed as llama-perplexity does."""
    from rfjax.cli.model import open_model

    text = read_text(file)
    llm = open_model(
        model,
        dtype,
        weights=weights,
        tensor_parallel=tensor_parallel,
        data_parallel=data_parallel,
        kernels=implementation.policy(),
        selfcheck=selfcheck,
    )
    start = time.perf_counter()
    result = measure(
        llm, text, n_ctx=ctx, chunks=chunks, batch_size=batch_size, print_running=not json
    )
    seconds = time.perf_counter() - start
    n_tokens = result.n_chunks * result.n_ctx
    if json:
        write_json({"model": str(model), "file": str(file), **vars(result), "seconds": seconds})
    else:
        write(f"\n{estimate(result)}\n")
    if not quiet:
        note(
            f"{n_tokens} tokens ({result.n_chunks} chunks of {result.n_ctx}, {result.n_tokens} "
            f"scored) in {seconds:.2f} s: {n_tokens / seconds:.1f} tokens/s, tokenization and "
            "compilation included"
        )


def estimate(result: "PerplexityResult") -> str:
    """The line of llama-perplexity."""
    return f"Final estimate: PPL = {result.perplexity:.4f} +/- {result.stderr:.5f}"


def measure(
    llm: "LLM",
    text: str,
    *,
    n_ctx: int,
    chunks: int | None = None,
    batch_size: int | None = None,
    print_running: bool,
) -> "PerplexityResult":
    """The perplexity, with a bar on a terminal.

    With `print_running`, stdout gets the running values as they come; where it is the terminal
    that has the bar, in one piece at the end.
    """
    bar_in_the_way = sys.stdout.isatty() and sys.stderr.isatty()
    with progress_bar("{task.fields[estimate]}") as bar:
        task = bar.add_task("scoring", total=None, estimate="")

        def on_chunk(done: int, total: int, running: float) -> None:
            bar.update(task, completed=done, total=total, estimate=f"PPL {running:.4f}")
            if print_running and not bar_in_the_way:
                write(running_value(done, running))

        result = llm.perplexity(
            text, n_ctx=n_ctx, chunks=chunks, batch_size=batch_size, on_chunk=on_chunk
        )
    if print_running and bar_in_the_way:
        write("".join(running_value(i, value) for i, value in enumerate(result.running, 1)))
    return result


def running_value(chunk: int, value: float) -> str:
    """llama-perplexity's running value after a chunk, counted from 1."""
    return f"[{chunk}]{value:.4f},"
