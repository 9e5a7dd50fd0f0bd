"""`rfjax bench`: speed of a model or of single operations, in llama-bench's conventions."""

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from rfjax.cli import options
from rfjax.cli.output import note, printable, spinner, write
from rfjax.errors import ConfigError

if TYPE_CHECKING:
    from rfjax.bench.case import Case
    from rfjax.bench.model_bench import BenchConfig
    from rfjax.bench.roof import Roof
    from rfjax.bench.subject import Subject
    from rfjax.ops.dispatch import KernelPolicy

T = TypeVar("T")

_CASES = "What to measure"
_OPERATIONS = "Operations"

_CHAIN = "llama-8b:q4_0-pure"
"""What a chain is measured of by default."""


class Output(StrEnum):
    """Formats of the report."""

    md = "md"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"


class Operation(StrEnum):
    """Operations that can be measured by themselves."""

    linear = "linear"
    chain = "chain"
    attention = "attention"
    schedule = "schedule"


def bench(
    model: Annotated[
        Path | None,
        typer.Argument(help="A GGUF file; or --synthetic, or --op.", show_default=False),
    ] = None,
    synthetic: Annotated[
        str | None,
        typer.Option(
            "--synthetic",
            "-s",
            metavar="SHAPE:MIX",
            help="Random weights instead of a file, such as llama-8b:q4_k_m; SHAPE may be a TOML "
            "file, MIX is q4_k_m if left out.",
        ),
    ] = None,
    n_prompt: Annotated[
        str,
        typer.Option(
            "--n-prompt", "-p", metavar="N,...", help="Tokens of prompts.", rich_help_panel=_CASES
        ),
    ] = "512",
    n_gen: Annotated[
        str,
        typer.Option(
            "--n-gen", "-n", metavar="N,...", help="Tokens to generate.", rich_help_panel=_CASES
        ),
    ] = "128",
    pg: Annotated[
        list[str] | None,
        typer.Option(
            "-pg",
            metavar="PP,TG",
            help="A prompt and generation after it, timed together; repeatable.",
            rich_help_panel=_CASES,
        ),
    ] = None,
    depth: Annotated[
        str,
        typer.Option(
            "--n-depth",
            "-d",
            metavar="N,...",
            help="Tokens in the cache before the clock starts.",
            rich_help_panel=_CASES,
        ),
    ] = "0",
    batch: Annotated[
        str,
        typer.Option(
            "--batch",
            "-b",
            metavar="N,...",
            help="Sequences computed together.",
            rich_help_panel=_CASES,
        ),
    ] = "1",
    score: Annotated[
        str,
        typer.Option(
            "--score",
            metavar="N,...",
            help="Contexts whose likelihoods are computed as `perplexity` does.",
            rich_help_panel=_CASES,
        ),
    ] = "0",
    repetitions: Annotated[
        int,
        typer.Option("--repetitions", "-r", help="Of every row, after one that warms up."),
    ] = 5,
    prompt_chunk: Annotated[
        int,
        typer.Option("--ubatch-size", "-ub", help="Most prompt tokens computed in one step."),
    ] = 512,
    dtype: options.Dtype = None,
    weights: options.Weights = None,
    implementation: options.Kernels = options.Implementation.auto,
    seed: Annotated[int, typer.Option(help="Of random tokens and weights.")] = 0,
    roof: Annotated[
        bool,
        typer.Option(
            "--roof/--no-roof",
            help="Measure copy bandwidth and matrix product first, for the shares of them.",
        ),
    ] = True,
    output: Annotated[Output, typer.Option("--output", "-o", help="Format on stdout.")] = Output.md,
    op: Annotated[
        Operation | None,
        typer.Option(help="Measure an operation instead of a model.", rich_help_panel=_OPERATIONS),
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option(
            metavar="SHAPE,...",
            help="Matrices by name or size, by default those of Llama 3.1 8B; of attention "
            "decode:BATCHxTOKENS and prefill:BATCHxTOKENS, or over pages "
            "paged-decode:BATCHxTOKENS and paged-prefill likewise, where @PAGE and /int8 may "
            "follow; of schedule SEQUENCESxBURST@PAGE.",
            rich_help_panel=_OPERATIONS,
        ),
    ] = None,
    types: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE,...", help="GGML types of the weights.", rich_help_panel=_OPERATIONS
        ),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(
            "--rows",
            "-m",
            metavar="N,...",
            help="Rows of activations; by default 1,2,4,8,16,512,2048.",
            rich_help_panel=_OPERATIONS,
        ),
    ] = None,
) -> None:
    """Measure speed as llama-bench does: prompts (pp), generation without sampling (tg).

    Rates are tokens of all sequences per second, mean and standard deviation of the repetitions.
    """
    from rfjax.bench.case import cases, numbers
    from rfjax.bench.model_bench import BenchConfig
    from rfjax.doctor import find_devices
    from rfjax.engine.compilation_cache import enable_compilation_cache

    _check_choice(model, synthetic, op, (shapes, types, rows))
    find_devices()
    enable_compilation_cache()
    policy = implementation.policy()
    if op == Operation.linear:
        for piece in _linear_pieces(shapes, types, rows, dtype, policy, seed, roof, output):
            write(piece)
        return
    if op == Operation.attention:
        for piece in _attention_pieces(shapes, dtype, policy, seed, roof, output):
            write(piece)
        return
    if op == Operation.schedule:
        for piece in _schedule_pieces(shapes, seed, output):
            write(piece)
        return
    if op == Operation.chain:
        ceilings = _measured_roof(dtype) if roof else None
        synthetic = synthetic or _CHAIN
        subject = _open_subject(None, synthetic, dtype, weights or "packed", policy, seed)
        for piece in _chain_pieces(subject, rows, ceilings, output):
            write(piece)
        return
    chosen = cases(
        prompts=numbers(n_prompt),
        generations=numbers(n_gen),
        pairs=[_pair(text) for text in pg or ()],
        depths=numbers(depth),
        batches=numbers(batch),
        scores=numbers(score),
    )
    config = BenchConfig(repetitions=repetitions, prompt_chunk=prompt_chunk, seed=seed)
    ceilings = _measured_roof(dtype) if roof else None
    subject = _open_subject(model, synthetic, dtype, weights, policy, seed)
    for piece in _model_pieces(subject, chosen, config, ceilings, output):
        write(piece)


def _check_choice(
    model: Path | None,
    synthetic: str | None,
    op: Operation | None,
    of_operations: tuple[str | None, ...],
) -> None:
    """One thing to measure, and no flags of another.

    Raises:
        typer.BadParameter: none, or several.
    """
    choices = {"a GGUF file": model, "--synthetic": synthetic, "--op": op}
    given = [name for name, value in choices.items() if value is not None]
    if len(given) != 1 and not (op == Operation.chain and model is None):
        what = " and ".join(given) if given else "nothing"
        raise typer.BadParameter(
            f"got {what}, expected one of a GGUF file, --synthetic SHAPE:MIX, or --op OPERATION "
            "(--op chain may have a --synthetic)"
        )
    shapes, types, rows = of_operations
    for name, value, with_ops in (
        ("--shapes", shapes, (Operation.linear, Operation.attention, Operation.schedule)),
        ("--types", types, (Operation.linear,)),
        ("--rows", rows, (Operation.linear, Operation.chain)),
    ):
        if value is not None and op not in with_ops:
            raise typer.BadParameter(f"{name} goes with --op {' or '.join(with_ops)}")


def _pair(text: str) -> tuple[int, int]:
    from rfjax.bench.case import numbers

    found = numbers(text)
    if len(found) != 2:
        raise ConfigError(f"-pg: got {text!r}, expected two numbers such as 512,128")
    return found[0], found[1]


def _open_subject(
    model: Path | None,
    synthetic: str | None,
    dtype: str | None,
    weights: str | None,
    policy: "KernelPolicy",
    seed: int,
) -> "Subject":
    from rfjax.bench.subject import from_file, from_shape

    if synthetic is not None:
        with spinner(f"making {synthetic}"):
            return from_shape(synthetic, dtype=dtype, weights=weights, policy=policy, seed=seed)
    assert model is not None
    with spinner(f"loading {printable(model.name)}"):
        return from_file(model, dtype=dtype, weights=weights, policy=policy)


def _model_pieces(
    subject: "Subject",
    chosen: "tuple[Case, ...]",
    config: "BenchConfig",
    roof: "Roof | None",
    output: Output,
) -> Iterator[str]:
    """The report of a model, piece by piece."""
    from rfjax.bench.model_bench import bench as measure
    from rfjax.bench.report import report
    from rfjax.bench.subject import default_weights
    from rfjax.io.load import resolve_dtype

    results = measure(subject, chosen, config=config, roof=roof)
    changed = {
        "dtype": subject.config.dtype != resolve_dtype(None),
        "weights": subject.weights != default_weights(),
        "implementation": subject.config.kernels.implementation is not None,
        "n_ubatch": config.prompt_chunk != type(config)().prompt_chunk,
    }
    extra = tuple(name for name, is_changed in changed.items() if is_changed)
    yield from report(_watched(results), output.value, extra=extra)


def _chain_pieces(
    subject: "Subject", rows: str | None, roof: "Roof | None", output: Output
) -> Iterator[str]:
    """The report of passes through all layers, piece by piece."""
    from rfjax.bench.case import numbers
    from rfjax.bench.op_chain import bench_chain
    from rfjax.bench.op_report import chain_report

    results = bench_chain(subject, (1,) if rows is None else numbers(rows), roof=roof)
    yield from chain_report(_watched(results), output.value)


def _linear_pieces(
    shapes: str | None,
    types: str | None,
    rows: str | None,
    dtype: str | None,
    policy: "KernelPolicy",
    seed: int,
    roof: bool,
    output: Output,
) -> Iterator[str]:
    """The report of products with single matrices, piece by piece."""
    from rfjax.bench.case import numbers
    from rfjax.bench.op_case import ROWS, SHAPES, TYPES, linear_cases
    from rfjax.bench.op_linear import OpConfig, bench_linear
    from rfjax.bench.op_report import op_report
    from rfjax.io.load import resolve_dtype

    chosen = linear_cases(
        tuple(SHAPES) if shapes is None else tuple(shapes.split(",")),
        TYPES if types is None else tuple(types.split(",")),
        ROWS if rows is None else numbers(rows),
    )
    results = bench_linear(
        chosen,
        dtype=resolve_dtype(dtype),
        config=OpConfig(seed=seed),
        roof=_measured_roof(dtype) if roof else None,
        policy=policy,
        on_declined=lambda case, why: note(f"{case.shape} {case.type.name} x{case.m}: {why}"),
    )
    yield from op_report(_watched(results), output.value)


def _attention_pieces(
    shapes: str | None,
    dtype: str | None,
    policy: "KernelPolicy",
    seed: int,
    roof: bool,
    output: Output,
) -> Iterator[str]:
    """The report of attention, piece by piece."""
    from rfjax.bench.attention_case import SHAPES, attention_cases
    from rfjax.bench.op_attention import AttentionConfig, bench_attention
    from rfjax.bench.op_report import attention_report
    from rfjax.io.load import resolve_dtype

    results = bench_attention(
        attention_cases(SHAPES if shapes is None else shapes.split(",")),
        dtype=resolve_dtype(dtype),
        config=AttentionConfig(seed=seed),
        roof=_measured_roof(dtype) if roof else None,
        policy=policy,
        on_declined=lambda case, why: note(f"{case.name}: {why}"),
    )
    yield from attention_report(_watched(results), output.value)


def _schedule_pieces(shapes: str | None, seed: int, output: Output) -> Iterator[str]:
    """The report of the host's share of a burst, piece by piece."""
    from rfjax.bench.op_report import schedule_report
    from rfjax.bench.op_schedule import ScheduleConfig, bench_schedule
    from rfjax.bench.schedule_case import SHAPES, schedule_cases

    cases = schedule_cases(SHAPES if shapes is None else shapes.split(","))
    results = bench_schedule(cases, ScheduleConfig(seed=seed))
    yield from schedule_report(_watched(results), output.value)


def _measured_roof(dtype: str | None) -> "Roof":
    from rfjax.bench.roof import measure_roof
    from rfjax.io.load import resolve_dtype

    with spinner("measuring copy bandwidth and a matrix product"):
        return measure_roof(resolve_dtype(dtype))


def _watched(results: Iterator[T]) -> Iterator[T]:
    """The same results, with a sign on a terminal while each is measured."""
    while True:
        with spinner("measuring"):
            result = next(results, None)
        if result is None:
            return
        yield result
