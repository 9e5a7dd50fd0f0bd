"""`rfjax compare`: which of several files to use."""

import dataclasses
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rfjax.cli import options
from rfjax.cli.files import read_text
from rfjax.cli.output import columns, note, printable, show, size, write, write_json
from rfjax.errors import RequestError
from rfjax.progress import progress_bar

if TYPE_CHECKING:
    from rfjax.bench.result import Result
    from rfjax.cli.comparing import Compared
    from rfjax.evals.comparison.compared_file import ComparedFile, Rate
    from rfjax.io.load import Model

_PROMPT, _GENERATION = 512, 64
_REPETITIONS, _SECONDS = 3, 1.0
"""A speed is measured so often, and for so long, at least."""


def compare(
    files: Annotated[
        list[Path],
        typer.Argument(help="GGUF files of one vocabulary.", show_default=False),
    ],
    file: options.TextFile,
    base: Annotated[
        Path | None,
        typer.Option(
            help="What the others are compared with; by default the file with the most bits a "
            "weight.",
            show_default=False,
        ),
    ] = None,
    ctx: options.ChunkTokens = 512,
    chunks: options.Chunks = None,
    batch_size: options.BatchTokens = options.TOKENS_PER_BATCH,
    png: Annotated[
        Path | None, typer.Option(help="Draw the plot into this file.", show_default=False)
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            help="Write a page with the plot and a sortable table into this file.",
            show_default=False,
        ),
    ] = None,
    speed: Annotated[
        bool, typer.Option("--speed/--no-speed", help="Whether to measure tokens per second.")
    ] = True,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Hold one layer's weights at a time, as happens by itself where a model does not "
            "fit; speeds are not measured then.",
        ),
    ] = False,
    dtype: options.Dtype = None,
    weights: options.Weights = None,
    implementation: options.Kernels = options.Implementation.auto,
    selfcheck: options.Selfcheck = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare files: size, perplexity, KL divergence and speed. Which one should I use?

    Files are loaded one after the other. Those on the front, marked with *, are the candidates:
    every other has one that is at most as large and at most as far from the base.
    """
    from rfjax.cli.comparing import comparing, settings_of
    from rfjax.evals.comparison.compared_file import most_exact, with_front
    from rfjax.inspection import inspect_file

    text = read_text(file)
    chunks = None if chunks == -1 else chunks
    if png is not None or html is not None:
        _check_drawing((png, html))
    paths = list(dict.fromkeys(files if base is None else [*files, base]))
    found = {path: inspect_file(path) for path in paths}
    bits = {path: found[path].bits_per_weight or 0.0 for path in paths}
    if base is None:
        base = most_exact(
            paths, [bits[path] for path in paths], [found[path].file_bytes for path in paths]
        )
        if not quiet:
            note(f"base: {printable(base.name)}, which has {bits[base]:.2f} bits a weight")
    rates: dict[Path, tuple[Rate, Rate]] = {}
    start = time.perf_counter()
    with progress_bar() as bar:

        def measure(path: Path, model: "Model") -> None:
            timing = bar.add_task(f"timing {printable(path.name)}", total=None)
            rates[path] = _measure(model)
            bar.remove_task(timing)

        compared = comparing(
            base,
            paths,
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
            one_at_a_time=True,
            on_model=measure if speed else None,
            settings=settings_of(text, ctx, chunks, batch_size) if json else None,
        )
    seconds = time.perf_counter() - start
    told = with_front(_files(paths, base, found, compared, rates))
    title, notes = _said(told, file, compared, weights)
    # What took long is out before anything can go wrong with the drawing.
    if json:
        origins = compared.provenance
        write_json(
            {
                "base": str(base),
                "file": str(file),
                "n_ctx": ctx,
                "n_chunks": compared.results[0].n_chunks,
                "residency": compared.residency,
                "seconds": seconds,
                "files": [{**_record(each), "provenance": origins[each.path]} for each in told],
            }
        )
    else:
        _show(told)
        write(f"{_advice(told)}\n")
    if not quiet:
        note(f"{notes} {seconds:.2f} s, loading and compilation included")
    if png is not None or html is not None:
        _draw(told, title, notes, png, html)


def _measure(model: "Model") -> "tuple[Rate, Rate]":
    """Of one prompt, and of one sequence that is generated from nothing."""
    from rfjax.bench.case import Case
    from rfjax.bench.model_bench import BenchConfig, bench
    from rfjax.bench.subject import from_model
    from rfjax.evals.comparison.compared_file import Rate

    limit = model.config.context_length
    cases = (Case(n_prompt=min(_PROMPT, limit)), Case(n_gen=min(_GENERATION, limit)))
    prompt, generation = bench(
        from_model(model), cases, config=BenchConfig(_REPETITIONS, least_seconds=_SECONDS)
    )

    def rate(result: "Result") -> "Rate":
        return Rate(result.avg_ts, statistics.stdev(result.samples_ts))

    return rate(prompt), rate(generation)


def _files(
    paths: Sequence[Path],
    base: Path,
    found: dict[Path, Any],
    compared: "Compared",
    rates: "dict[Path, tuple[Rate, Rate]]",
) -> "list[ComparedFile]":
    from rfjax.evals.comparison.compared_file import ComparedFile, short_names

    return [
        ComparedFile(
            path=path,
            name=name,
            nbytes=found[path].file_bytes,
            bits_per_weight=found[path].bits_per_weight or 0.0,
            summary=result.summary,
            prompt_rate=rates[path][0] if path in rates else None,
            generation_rate=rates[path][1] if path in rates else None,
            is_base=path == base,
        )
        for path, name, result in zip(
            paths, short_names(paths, base), compared.results, strict=True
        )
    ]


def _said(
    files: "Sequence[ComparedFile]", text: Path, compared: "Compared", weights: str | None
) -> tuple[str, str]:
    """A title, and how it was measured."""
    import jax

    from rfjax.bench.environment import find_environment

    first, environment = compared.results[0], find_environment()
    where = environment.gpu_info or environment.cpu_info
    base = next(file for file in files if file.is_base)
    others = [file.path.stem for file in files if not file.is_base]
    if len(others) > 1:
        others = [f"{len(others)} others"]
    source = "standard input" if text.name == "-" else text.name
    title = (
        f"{' and '.join([base.path.stem, *others])} on {source}, "
        f"{first.n_chunks} chunks of {first.n_ctx} tokens"
    )
    notes = (
        f"{first.summary.count} tokens compared with {base.path.name}: models in {compared.dtype}, "
        f"quantized weights {'packed' if compared.packed else 'dequantized'}, the divergence in "
        "float32 over the whole vocabulary; chunks and tokens are llama-perplexity's. "
        f"rfjax {environment.build_commit}, JAX {jax.__version__}, {where}."
    )
    if base.prompt_rate is not None:
        notes += (
            f" Speeds: a prompt of {_PROMPT} tokens, and {_GENERATION} tokens generated in one "
            f"sequence, or as the context allows; mean of at least {_REPETITIONS} repetitions and "
            f"{_SECONDS:g} s."
        )
        if weights is None and not compared.packed and jax.default_backend() == "cpu":
            notes += (
                " On the CPU quantized weights are dequantized by default, so that a file's type "
                "hardly matters for speed: --weights packed keeps them as they are."
            )
    return title, notes


def _check_drawing(paths: Sequence[Path | None]) -> None:
    """Refuse now what would fail after all has been computed.

    Raises:
        ConfigError: matplotlib is missing.
        RequestError: both are the same, or one cannot be written.
    """
    from rfjax.evals.comparison.plot import need_matplotlib

    need_matplotlib()
    given = [path for path in paths if path is not None]
    if len({path.resolve() for path in given}) < len(given):
        raise RequestError(f"--png and --html are both {given[0]}, expected two files")
    for path in given:
        folder = path.resolve().parent
        if path.is_dir() or not folder.is_dir():
            raise RequestError(
                f"{path}: cannot be written: expected a name of a file in a folder that exists"
            )
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise RequestError(f"{path}: cannot be written: expected a place that you may write to")


def _draw(
    files: "Sequence[ComparedFile]", title: str, notes: str, png: Path | None, html: Path | None
) -> None:
    from rfjax.evals.comparison.page import comparison_page
    from rfjax.evals.comparison.plot import as_bytes, draw_comparison

    figure = draw_comparison(files, title)
    try:
        if png is not None:
            png.write_bytes(as_bytes(figure, "png"))
        if html is not None:
            page = comparison_page(files, title, notes, as_bytes(figure, "svg"))
            html.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{error.filename}: cannot be written ({error.strerror})") from error


def _record(file: "ComparedFile") -> dict[str, Any]:
    fields = dataclasses.asdict(file)
    return {"model": str(fields.pop("path")), **fields}


def _show(files: "Sequence[ComparedFile]") -> None:
    numbers = ["size", "bits/weight", "PPL", "KLD", "same top"]
    timed = any(file.prompt_rate is not None for file in files)
    if timed:
        numbers += ["prompt t/s", "generation t/s"]
    table = columns("", "file", *numbers, right=tuple(numbers))
    names = _names(files)
    for file in files:
        s = file.summary
        row = [
            "*" if file.on_front else "",
            names[file.path] + (" (base)" if file.is_base else ""),
            size(file.nbytes),
            f"{file.bits_per_weight:.2f}",
            f"{s.ppl.value:.4f} ± {s.ppl.error:.4f}",
            f"{s.kld.value:.6f} ± {s.kld.error:.6f}",
            f"{100 * s.same_top.value:.2f} ± {100 * s.same_top.error:.2f} %",
        ]
        if timed:
            row += [_rate(file.prompt_rate), _rate(file.generation_rate)]
        table.add_row(*row)
    show(table)


def _rate(rate: "Rate | None") -> str:
    return "" if rate is None else f"{rate.mean:.1f} ± {rate.deviation:.1f}"


def _advice(files: "Sequence[ComparedFile]") -> str:
    """What follows from the table."""
    names = _names(files)
    front = ", ".join(names[file.path] for file in files if file.on_front)
    return f"* no other is at most as large and at most as far from the base: {front}"


def _names(files: "Sequence[ComparedFile]") -> dict[Path, str]:
    """Names of files to print, or paths where two have the same name."""
    different = len({file.path.name for file in files}) == len(files)
    return {f.path: printable(f.path.name if different else str(f.path)) for f in files}
