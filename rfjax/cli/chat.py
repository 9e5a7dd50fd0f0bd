"""`rfjax chat`: a conversation through the model file's own chat template, or a named one."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rfjax.cli import options
from rfjax.cli.files import decode_text
from rfjax.cli.output import note, wait_for_first, write
from rfjax.cli.template import find_template, template_arguments
from rfjax.errors import ModelFormatError, RequestError

if TYPE_CHECKING:
    from rfjax.engine.output import StreamOutput
    from rfjax.engine.sampling_params import SamplingParams
    from rfjax.llm import LLM

_HELP = "/clear forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C stops an answer"


_CONVERSATION = "Conversation"


class Reasoning(StrEnum):
    """What becomes of a thinking model's reasoning."""

    show = "show"
    hide = "hide"


def chat(
    context: typer.Context,
    model: options.Model,
    message: Annotated[
        str | None,
        typer.Option("--message", "-m", help="Answer this one message and end."),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(help="A system message to begin with.", rich_help_panel=_CONVERSATION),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Instead of the model file's chat template: the name of another one in it, of a "
            "family of models (chatml, llama3, gemma, mistral-v7, ...), or a Jinja file.",
            rich_help_panel=_CONVERSATION,
        ),
    ] = None,
    template_arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="A variable of the template, such as enable_thinking=false; values are JSON, or "
            "else text. May be given several times.",
            rich_help_panel=_CONVERSATION,
            show_default=False,
        ),
    ] = None,
    reasoning: Annotated[
        Reasoning,
        typer.Option(
            help="Whether to show what a thinking model thinks before it answers.",
            rich_help_panel=_CONVERSATION,
        ),
    ] = Reasoning.show,
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

    arguments = template_arguments(template_arg or ())
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
    conversation = Conversation(
        llm,
        preset.sampling,
        system,
        template=find_template(template, llm.tokenizer),
        template_kwargs=arguments,
        reasoning=reasoning,
        quiet=quiet,
    )
    if message is not None:
        conversation.answer(message)
        return
    interactive = sys.stdin.isatty()
    if interactive:
        conversation.check()
        if not quiet:
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

    def __init__(
        self,
        llm: "LLM",
        sampling: "SamplingParams",
        system: str | None,
        *,
        template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        reasoning: Reasoning = Reasoning.show,
        quiet: bool,
    ):
        self._llm = llm
        self._template = template
        self._template_kwargs = template_kwargs
        self._reasoning = reasoning
        self._sampling = sampling
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._messages = list(self._system)
        self._quiet = quiet

    def clear(self) -> None:
        """Forget everything but the system message."""
        self._messages = list(self._system)

    def check(self) -> None:
        """Refuse what no message would mend, such as a missing template, before one is typed.

        Raises:
            RequestError: as `answer`.
        """
        self._ask([*self._system, {"role": "user", "content": "Hello"}])

    def answer(self, text: str) -> None:
        """Print the model's answer as it comes, and keep both; an interrupted one is kept too.

        Raises:
            RequestError: the conversation does not fit in the context, or the model has no chat
                template or one that refuses it.
            ModelFormatError: the model computes NaN.
        """
        messages = [*self._messages, {"role": "user", "content": text}]
        answer, thoughts, reason = "", [], None
        try:
            pieces = self._ask(messages)
            for piece in wait_for_first(_spoken(pieces, thoughts), "reading the conversation"):
                write(piece.text)
                answer += piece.text
                reason = piece.finish_reason
                if piece.error is not None:
                    raise ModelFormatError(piece.error)
        finally:
            if answer:
                reply = {"role": "assistant", "content": answer}
                if any(thoughts):  # the template decides whether the model sees it again
                    reply["reasoning_content"] = "".join(thoughts)
                self._messages = [*messages, reply]
                write("\n")
        if reason == "length" and not self._quiet:
            note("[cut off: --max-tokens or the context is exhausted]")

    def _ask(self, messages: list[dict[str, str]]) -> Iterator["StreamOutput"]:
        """The model's reply: rendered and checked now, generated when the pieces are asked for."""
        return self._llm.chat(
            messages,
            self._sampling,
            template=self._template,
            template_kwargs=self._template_kwargs,
            reasoning=self._reasoning.value,
        )


def _spoken(pieces: Iterable["StreamOutput"], thoughts: list[str]) -> Iterator["StreamOutput"]:
    """The pieces with something to show, or the end; what is hidden in the others is listed."""
    for piece in pieces:
        thoughts.append(piece.reasoning)
        if piece.text or piece.finish_reason is not None:
            yield piece


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
