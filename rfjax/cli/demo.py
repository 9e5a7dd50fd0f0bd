"""`rfjax demo`: the main job on the bundled model."""

from pathlib import Path
from typing import Annotated

import typer

from rfjax.cli import options
from rfjax.cli.files import read_text
from rfjax.cli.output import note, spinner, write
from rfjax.errors import RequestError

_FOLDER = Path(__file__).resolve().parents[2] / "examples" / "models"
_NAME = "shakespeare.gguf"


def demo(
    model: Annotated[
        Path | None, typer.Option(help="A GGUF file; by default the bundled one.")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="Text to measure; by default NAME-heldout.txt beside the model."),
    ] = None,
    prompt: Annotated[str, typer.Option(help="The text to continue.")] = "KING RICHARD:\n",
    max_tokens: options.MaxTokens = 200,
    seed: options.Seed = 7,
) -> None:
    """Generate with the bundled model, then measure its perplexity on text it has not seen."""
    from rfjax.cli.model import open_model
    from rfjax.cli.preset import StreamingEngine
    from rfjax.cli.stopwatch import Stopwatch
    from rfjax.cli.text_perplexity import estimate, measure
    from rfjax.engine.sampling_params import SamplingParams

    path = find_model(model, _FOLDER)
    if not path.exists():
        raise RequestError(f"{path}: there is no such file; check the path of the .gguf file")
    heldout = read_text(find_text(text, path))
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.8, top_p=0.95, seed=seed)
    llm = open_model(path, None, StreamingEngine())
    with spinner("compiling"):
        next(llm.stream(prompt, sampling))  # so that what is timed below does not compile
    write(f"{path.name} goes on:\n\n{prompt}")
    stopwatch = Stopwatch(0 if llm.tokenizer is None else len(llm.tokenizer.encode(prompt)))
    for piece in stopwatch.watch(llm.stream(prompt, sampling)):
        write(piece.text)
    timing = stopwatch.timing()
    write("\n\n")
    if timing.decode_tokens_per_s is not None:
        write(f"{timing.generated_tokens} tokens at {timing.decode_tokens_per_s:.1f} tokens/s\n")
    n_ctx = min(512, llm.max_context)
    write(f"perplexity of held-out text, in chunks of {n_ctx} tokens:\n")
    result = measure(llm, heldout, n_ctx=n_ctx)
    write(f"{estimate(result)}\n")
    note(f"{result.n_tokens} tokens scored")


def find_model(chosen: Path | None, folder: Path) -> Path:
    """The model chosen, or the bundled one in a source checkout.

    Raises:
        RequestError: there is no bundled model.
    """
    if chosen is not None:
        return chosen
    path = folder / _NAME
    if not path.is_file():
        raise RequestError(
            f"{path}: no bundled model there; it comes with the source checkout, not with an "
            "installed package. Run `make demo` in a checkout, or name a model with --model"
        )
    return path


def find_text(chosen: Path | None, model: Path) -> Path:
    """The text chosen, or the held-out text beside a model.

    Raises:
        RequestError: there is none.
    """
    if chosen is not None:
        return chosen
    path = model.with_name(f"{model.stem}-heldout.txt")
    if not path.is_file():
        raise RequestError(f"{path}: no held-out text beside the model; name a text with --text")
    return path
