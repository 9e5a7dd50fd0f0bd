"""`rfjax generate`: continue one prompt."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rfjax.cli import options
from rfjax.cli.files import read_text
from rfjax.cli.output import note, wait_for_first, write, write_json
from rfjax.errors import ModelFormatError, RequestError

if TYPE_CHECKING:
    from rfjax.cli.stopwatch import Stopwatch
    from rfjax.engine.output import RequestOutput


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
    typical_p: options.TypicalP = None,
    presence_penalty: options.PresencePenalty = None,
    frequency_penalty: options.FrequencyPenalty = None,
    min_tokens: options.MinTokens = None,
    stop: options.Stop = None,
    n: options.Samples = None,
    logprobs: options.Logprobs = None,
    prompt_logprobs: options.PromptLogprobs = None,
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
    engine = llm.engine
    handle = engine.submit(engine.make_request(text, preset.sampling), prompt=text)
    stream = stopwatch.watch(engine.stream(handle))
    streamed = preset.sampling.n == 1 and not json
    for number, piece in enumerate(wait_for_first(stream, "reading the prompt")):
        if streamed:
            write(text + piece.text if echo and not number else piece.text)
    output = handle.output()
    if json:
        write_json(_document(model, output, stopwatch))
    elif streamed:
        write("\n")
    else:
        for number, sample in enumerate(output.samples, start=1):
            write(f"[{number}]\n{text if echo else ''}{sample.text}\n")
    if not quiet:
        note(str(stopwatch.timing()))
    if output.error is not None:
        raise ModelFormatError(output.error)


def _document(model: Path, output: "RequestOutput", stopwatch: "Stopwatch") -> dict[str, Any]:
    """What `--json` prints: the first sample's fields, and all samples where there are several."""
    document = {
        "model": str(model),
        "prompt": output.prompt,
        "prompt_token_ids": output.prompt_token_ids,
        **{f.name: getattr(output, f.name) for f in dataclasses.fields(output.samples[0])},
    }
    if output.prompt_logprobs is not None:
        document["prompt_logprobs"] = output.prompt_logprobs
    if len(output.samples) > 1:
        document["samples"] = output.samples
    return {**document, "timing": stopwatch.timing()}


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
