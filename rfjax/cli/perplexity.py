"""`rfjax perplexity`: what llama-perplexity measures, with its flags, as it prints it."""

import functools
from pathlib import Path
from typing import Annotated

import typer

from rfjax.cli import options
from rfjax.cli.files import read_text
from rfjax.errors import ConfigError

_KLD = "KL divergence"
_TASKS = "Tasks"


def perplexity(
    model: Annotated[
        Path | None,
        typer.Argument(help="A GGUF file, or any part of a split one.", show_default=False),
    ] = None,
    model_flag: Annotated[
        Path | None,
        typer.Option("--model", "-m", help="The same, as llama-perplexity has it."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            help="The text, UTF-8, or the tasks; - for standard input.",
            show_default=False,
        ),
    ] = None,
    ctx: options.ChunkTokens = 512,
    chunks: Annotated[
        int | None,
        typer.Option(help="Score only the first chunks; by default, or with -1, all."),
    ] = None,
    batch_size: options.BatchTokens = options.TOKENS_PER_BATCH,
    ppl_stride: Annotated[
        int,
        typer.Option(help="Overlapping windows, of which so many tokens are scored; 0 for none."),
    ] = 0,
    ppl_output_type: Annotated[
        int,
        typer.Option(
            min=0,
            max=1,
            help="0 prints running values in one line, 1 a line a chunk: its first token, the "
            "perplexity so far, the mean negative log-likelihood and its error.",
        ),
    ] = 0,
    kl_divergence_base: Annotated[
        Path | None,
        typer.Option(
            "--kl-divergence-base",
            "--save-all-logits",
            help="llama-perplexity's file of a base's probabilities: written from this model, or "
            "read with --kl-divergence.",
            show_default=False,
            rich_help_panel=_KLD,
        ),
    ] = None,
    kl_divergence: Annotated[
        bool,
        typer.Option(
            "--kl-divergence",
            help="Compare the model with that base, on the text that is in the file.",
            rich_help_panel=_KLD,
        ),
    ] = False,
    hellaswag: Annotated[
        bool,
        typer.Option("--hellaswag", help="The HellaSwag tasks of -f.", rich_help_panel=_TASKS),
    ] = False,
    hellaswag_tasks: Annotated[
        int, typer.Option(help="How many, drawn at random.", rich_help_panel=_TASKS)
    ] = 400,
    winogrande: Annotated[
        bool,
        typer.Option("--winogrande", help="The WinoGrande tasks of -f.", rich_help_panel=_TASKS),
    ] = False,
    winogrande_tasks: Annotated[
        int, typer.Option(help="How many, drawn at random; 0 for all.", rich_help_panel=_TASKS)
    ] = 0,
    multiple_choice: Annotated[
        bool,
        typer.Option(
            "--multiple-choice",
            help="The multiple-choice tasks of -bf, in llama-perplexity's binary format.",
            rich_help_panel=_TASKS,
        ),
    ] = False,
    multiple_choice_tasks: Annotated[
        int, typer.Option(help="How many, drawn at random; 0 for all.", rich_help_panel=_TASKS)
    ] = 0,
    binary_file: Annotated[
        Path | None,
        typer.Option(
            "--binary-file",
            "-bf",
            help="The multiple-choice tasks.",
            show_default=False,
            rich_help_panel=_TASKS,
        ),
    ] = None,
    journal: options.Journal = None,
    dtype: options.Dtype = None,
    weights: options.Weights = None,
    tensor_parallel: options.TensorParallel = 1,
    data_parallel: options.DataParallel = 1,
    implementation: options.Kernels = options.Implementation.auto,
    selfcheck: options.Selfcheck = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Perplexity of a text, KL divergence from a base, or tasks, as llama-perplexity has them."""
    from rfjax.cli.kl_divergence import check_base, run_kl_divergence
    from rfjax.cli.model import open_model
    from rfjax.cli.text_perplexity import TextSettings, run_perplexity, run_strided

    _only_one(
        {
            "--ppl-stride": ppl_stride != 0,
            "--kl-divergence": kl_divergence,
            "--kl-divergence-base without --kl-divergence": kl_divergence_base is not None
            and not kl_divergence,
            "--hellaswag": hellaswag,
            "--winogrande": winogrande,
            "--multiple-choice": multiple_choice,
        }
    )
    if journal is not None and kl_divergence_base is not None:
        raise ConfigError(
            f"--journal {journal}: there is none with --kl-divergence-base, whose file is written "
            "whole or read at once; leave one of the two out"
        )
    if model is not None and model_flag is not None:
        raise ConfigError(f"got the models {model} and {model_flag} (-m), expected one of them")
    path = _given(model or model_flag, "MODEL", "a GGUF file")
    # What needs no model is found out before it is loaded.
    source, text = Path(), ""
    if kl_divergence:
        source = _given(kl_divergence_base, "--kl-divergence-base", "the base's file")
        check_base(source)
    elif multiple_choice:
        source = _given(binary_file or file, "-bf", "the tasks")
    elif hellaswag or winogrande:
        source = _given(file, "-f", "the tasks")
    else:
        source = _given(file, "-f", "the text")
        text = read_text(source)
    load = functools.partial(
        open_model,
        path,
        dtype,
        weights=weights,
        tensor_parallel=tensor_parallel,
        data_parallel=data_parallel,
        kernels=implementation.policy(),
        selfcheck=selfcheck,
    )
    some = None if chunks == -1 else chunks
    if hellaswag or winogrande or multiple_choice:
        from rfjax.cli.choice_tasks import (
            TaskSettings,
            run_hellaswag,
            run_multiple_choice,
            run_winogrande,
        )

        tasks = TaskSettings(ctx, json, quiet, journal)
        if hellaswag:
            run_hellaswag(load, source, hellaswag_tasks, tasks)
        elif winogrande:
            run_winogrande(load, source, winogrande_tasks, tasks)
        else:
            run_multiple_choice(load, source, multiple_choice_tasks, tasks)
    elif kl_divergence:
        run_kl_divergence(
            load(), source, chunks=some, tokens_per_batch=batch_size, json=json, quiet=quiet
        )
    else:
        settings = TextSettings(
            source, ctx, some, batch_size, ppl_output_type, json, quiet, journal
        )
        if ppl_stride:
            run_strided(load(), text, settings, ppl_stride)
        else:
            run_perplexity(load(), text, settings, kl_divergence_base)


def _only_one(modes: dict[str, bool]) -> None:
    """Refuse two things to be measured at once."""
    asked = [name for name, is_asked in modes.items() if is_asked]
    if len(asked) > 1:
        raise ConfigError(
            f"{' and '.join(asked)}: each measures something else; expected one of them, run the "
            "command once for each"
        )


def _given(path: Path | None, name: str, what: str) -> Path:
    """Refuse a missing file."""
    if path is None:
        how = f"with {name} FILE" if name.startswith("-") else "on the command line"
        raise ConfigError(f"{name} is missing, expected {what}: name the file {how}")
    return path
