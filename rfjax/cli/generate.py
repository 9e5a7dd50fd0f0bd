"""`rfjax generate`: continue one prompt."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from rfjax.cli import options
from rfjax.cli.files import read_text
from rfjax.cli.output import note, wait_for_first, write, write_json
from rfjax.errors import RequestError


def generate(
    context: typer.Context,
    model: options.Model,
    prompt: Annotated[
        str | None,
        typer.Argument(help="The text to continue, or - for standard input.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="Read the prompt from a file, less its last newline."),
    ] = None,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    stop_token_ids: options.StopTokenIds = None,
    ignore_eos: options.IgnoreEos = None,
    dtype: options.Dtype = None,
    weights: options.Weights = None,
    tensor_parallel: options.TensorParallel = 1,
    data_parallel: options.DataParallel = 1,
    implementation: options.Kernels = options.Implementation.auto,
    selfcheck: options.Selfcheck = None,
    max_context: options.MaxContext = None,
    config: options.Config = None,
    echo: Annotated[bool, typer.Option("--echo", help="Print the prompt first.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Continue a prompt; the text streams to stdout."""
    from rfjax.cli.model import open_model
    from rfjax.cli.preset import Preset
    from rfjax.cli.stopwatch import Stopwatch
    from rfjax.config import from_toml

    preset = from_toml(Preset, config, options.preset_values(context))
    text = _prompt(prompt, file)
    llm = open_model(
        model,
        dtype,
        preset.engine,
        weights=weights,
        tensor_parallel=tensor_parallel,
        data_parallel=data_parallel,
        kernels=implementation.policy(),
        selfcheck=selfcheck,
    )
    if llm.tokenizer is None:
        raise RequestError(
            f"{model} has no tokenizer, so it cannot read text; from Python, feed it token ids "
            "with rfjax.LLM.generate"
        )
    prompt_ids = llm.tokenizer.encode(text)
    stopwatch = Stopwatch(len(prompt_ids))
    pieces, ids, logprobs, reason = [], [], [], None
    stream = stopwatch.watch(llm.stream(text, preset.sampling))
    for piece in wait_for_first(stream, "reading the prompt"):
        if not json:
            write(text + piece.text if echo and not ids else piece.text)
        pieces.append(piece.text)
        ids += piece.token_ids
        logprobs += piece.logprobs
        reason = piece.finish_reason
    if json:
        write_json(
            {
                "model": str(model),
                "prompt": text,
                "prompt_token_ids": prompt_ids,
                "text": "".join(pieces),
                "token_ids": ids,
                "logprobs": logprobs,
                "finish_reason": reason,
                "timing": stopwatch.timing(),
            }
        )
    else:
        write("\n")
    if not quiet:
        note(str(stopwatch.timing()))


def _prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt from wherever it was given.

    Raises:
        typer.BadParameter: it was given twice or not at all.
    """
    if (prompt is None) == (file is None):
        hint = "not both" if prompt is not None else "or - to read standard input"
        raise typer.BadParameter(f"give a prompt or --file, {hint}", param_hint="PROMPT")
    if file is not None:
        return read_text(file)
    assert prompt is not None
    if prompt == "-":
        if sys.stdin is not None and sys.stdin.isatty():
            note("reading the prompt from the terminal; end it with Ctrl-D")
        return read_text(Path("-"))
    return prompt
