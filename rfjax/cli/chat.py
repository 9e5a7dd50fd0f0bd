"""`rfjax chat`: a conversation through the model file's own chat template."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from rfjax.cli import options
from rfjax.cli.files import decode_text
from rfjax.cli.output import note, wait_for_first, write
from rfjax.errors import ModelFormatError, RequestError

if TYPE_CHECKING:
    from rfjax.engine.sampling_params import SamplingParams
    from rfjax.llm import LLM

_HELP = "/clear forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C stops an answer"


def chat(
    context: typer.Context,
    model: options.Model,
    message: Annotated[
        str | None,
        typer.Option("--message", "-m", help="Answer this one message and end."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    dtype: options.Dtype = None,
    weights: options.Weights = None,
    tensor_parallel: options.TensorParallel = 1,
    data_parallel: options.DataParallel = 1,
    implementation: options.Kernels = options.Implementation.auto,
    selfcheck: options.Selfcheck = None,
    max_context: options.MaxContext = None,
    config: options.Config = None,
    quiet: options.Quiet = False,
) -> None:
    """Chat with a model; from a pipe, every line is a message and the end of input the end."""
    from rfjax.cli.model import open_model
    from rfjax.cli.preset import ChatPreset
    from rfjax.config import from_toml

    preset = from_toml(ChatPreset, config, options.preset_values(context))
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
    conversation = Conversation(llm, preset.sampling, system, quiet=quiet)
    if message is not None:
        conversation.answer(message)
        return
    interactive = sys.stdin.isatty()
    if interactive and not quiet:
        note(_HELP)
    for line in _typed() if interactive else _piped():
        if line == "/exit":
            return
        if line == "/clear":
            conversation.clear()
        elif line:
            _answer(conversation, line, interactive)


class Conversation:
    """Messages so far. One that gets no answer is not kept."""

    def __init__(self, llm: "LLM", sampling: "SamplingParams", system: str | None, *, quiet: bool):
        self._llm = llm
        self._sampling = sampling
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._messages = list(self._system)
        self._quiet = quiet

    def clear(self) -> None:
        """Forget everything but the system message."""
        self._messages = list(self._system)

    def answer(self, text: str) -> None:
        """Print the model's answer as it comes, and keep both; an interrupted one is kept too.

        Raises:
            RequestError: the conversation does not fit in the context, or the model has no chat
                template or one that refuses it.
            ModelFormatError: the model computes NaN.
        """
        messages = [*self._messages, {"role": "user", "content": text}]
        answer, reason = "", None
        try:
            pieces = self._llm.chat(messages, self._sampling)
            for piece in wait_for_first(pieces, "reading the conversation"):
                write(piece.text)
                answer += piece.text
                reason = piece.finish_reason
                if piece.error is not None:
                    raise ModelFormatError(piece.error)
        finally:
            if answer:
                self._messages = [*messages, {"role": "assistant", "content": answer}]
                write("\n")
        if reason == "length" and not self._quiet:
            note("[cut off: --max-tokens or the context is exhausted]")


def _answer(conversation: Conversation, text: str, interactive: bool) -> None:
    """Answer; with a person at the keyboard, a failed or stopped answer does not end the chat."""
    try:
        conversation.answer(text)
    except RequestError as error:
        if not interactive:
            raise
        note(f"error: {error}\n(/clear starts anew)")
    except KeyboardInterrupt:
        if not interactive:
            raise
        note("[stopped]")


def _typed() -> Iterator[str]:
    """Lines from the keyboard, edited with readline where Python has it."""
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - makes input() edit lines
    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            write("\n")
            return


def _piped() -> Iterator[str]:
    for data in sys.stdin.buffer:
        yield decode_text(data, "standard input").strip()
