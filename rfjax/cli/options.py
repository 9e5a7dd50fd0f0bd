"""Arguments and options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rfjax.ops.dispatch import KernelPolicy

_SAMPLING = "Sampling"
_DEVICES = "Devices"
_KERNELS = "Kernels"


class Implementation(StrEnum):
    """What runs operations."""

    auto = "auto"
    xla = "xla"
    pallas = "pallas"

    def policy(self) -> "KernelPolicy":
        """The policy that asks for it."""
        from rfjax.ops.dispatch import KernelPolicy

        return KernelPolicy(None if self.value == "auto" else self.value)


Model = Annotated[
    Path,
    typer.Argument(help="A GGUF file, or any part of a split one.", show_default=False),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="float32, bfloat16 or float16; by default bfloat16 on GPUs, float32 on the CPU.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="packed (as the file has them) or dequantized; by default packed on GPUs, and on the "
        "CPU dequantized where that fits.",
    ),
]
TensorParallel = Annotated[
    int,
    typer.Option(min=1, help="Devices that share the weights.", rich_help_panel=_DEVICES),
]
DataParallel = Annotated[
    int,
    typer.Option(
        min=1,
        help="Groups of such devices that share the sequences of a batch.",
        rich_help_panel=_DEVICES,
    ),
]
Kernels = Annotated[
    Implementation,
    typer.Option(
        "--implementation",
        help="Of operations: kernels where they accept, plain JAX, or kernels only.",
        rich_help_panel=_KERNELS,
    ),
]
Selfcheck = Annotated[
    bool | None,
    typer.Option(
        "--selfcheck/--no-selfcheck",
        help="Whether to try kernels before their first use; by default on GPUs.",
        rich_help_panel=_KERNELS,
        show_default=False,
    ),
]
MaxContext = Annotated[
    int | None,
    typer.Option(help="Most tokens of prompt and output; by default the model's."),
]
Config = Annotated[
    Path | None,
    typer.Option(
        help="TOML preset with tables engine and sampling; flags win over it.",
    ),
]
TextFile = Annotated[
    Path,
    typer.Option("--file", "-f", help="The text, UTF-8; - for standard input.", show_default=False),
]
ChunkTokens = Annotated[
    int,
    typer.Option("--ctx", "--ctx-size", "-c", help="Tokens of a chunk; its second half counts."),
]
Chunks = Annotated[
    int | None, typer.Option(help="Take only the first chunks; by default, or with -1, all.")
]
TOKENS_PER_BATCH = 2048
"""llama-perplexity's default of `BatchTokens`."""
BatchTokens = Annotated[
    int,
    typer.Option("--batch-size", "-b", min=1, help="Tokens computed at a time, in whole chunks."),
]
Journal = Annotated[
    Path | None,
    typer.Option(
        "--journal",
        help="Keep results in this file as they come: after an interruption the same command "
        "goes on where it stopped.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No summary on stderr.")]

MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", "-n", help="Most tokens to generate.", rich_help_panel=_SAMPLING),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        "-t",
        help="0 takes the most likely token; by default 1.",
        rich_help_panel=_SAMPLING,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(help="Keep the k most likely tokens; 0 keeps all.", rich_help_panel=_SAMPLING),
]
TopP = Annotated[
    float | None,
    typer.Option(
        help="Keep the most likely tokens that together have this probability.",
        rich_help_panel=_SAMPLING,
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        help="Keep tokens with this share of the most likely one's probability.",
        rich_help_panel=_SAMPLING,
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(help="Above 1 makes repeated tokens less likely.", rich_help_panel=_SAMPLING),
]
Seed = Annotated[
    int | None,
    typer.Option(help="The same seed gives the same tokens.", rich_help_panel=_SAMPLING),
]
StopTokenIds = Annotated[
    str | None,
    typer.Option(
        metavar="ID,ID...",
        help="Tokens that end the output, besides the model's own.",
        rich_help_panel=_SAMPLING,
    ),
]
IgnoreEos = Annotated[
    bool | None,
    typer.Option(
        "--ignore-eos/--heed-eos",
        help="Whether to go on after the model's own end tokens.",
        rich_help_panel=_SAMPLING,
        show_default=False,
    ),
]
TypicalP = Annotated[
    float | None,
    typer.Option(
        help="Keep the tokens of nearly the expected surprise that together have this probability.",
        rich_help_panel=_SAMPLING,
    ),
]
PresencePenalty = Annotated[
    float | None,
    typer.Option(
        help="Taken from the logits of tokens that are in the output.", rich_help_panel=_SAMPLING
    ),
]
FrequencyPenalty = Annotated[
    float | None,
    typer.Option(
        help="Taken from a token's logit for each time it is in the output.",
        rich_help_panel=_SAMPLING,
    ),
]
MinTokens = Annotated[
    int | None,
    typer.Option(help="Least tokens before the output may end.", rich_help_panel=_SAMPLING),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="A text that ends the output and is left out of it; may be given several times.",
        rich_help_panel=_SAMPLING,
        show_default=False,
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        "--samples",
        help="How many continuations to draw; several come one below the other, each when all are "
        "done.",
        rich_help_panel=_SAMPLING,
    ),
]
Logprobs = Annotated[
    int | None,
    typer.Option(
        help="With --json, report so many of the most likely tokens at each place.",
        rich_help_panel=_SAMPLING,
    ),
]
PromptLogprobs = Annotated[
    int | None,
    typer.Option(
        help="The same for the tokens of the prompt, and the prompt's own.",
        rich_help_panel=_SAMPLING,
    ),
]


_SAMPLING_FIELDS = (
    *("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"),
    *("stop_token_ids", "ignore_eos", "typical_p", "presence_penalty", "frequency_penalty"),
    *("min_tokens", "stop", "n", "logprobs", "prompt_logprobs"),
)


def preset_values(context: typer.Context) -> dict[str, dict[str, Any]]:
    """What the command was given of a preset's tables; None where a flag is absent.

    Raises:
        typer.BadParameter: the stop tokens are not token ids.
    """
    given = context.params
    sampling = {name: given[name] for name in _SAMPLING_FIELDS if name in given}
    if "stop_token_ids" in sampling:
        sampling["stop_token_ids"] = token_ids(sampling["stop_token_ids"])
    if "stop" in sampling:
        sampling["stop"] = tuple(sampling["stop"] or ()) or None
    return {"engine": {"max_context": given["max_context"]}, "sampling": sampling}


def token_ids(text: str | None) -> tuple[int, ...] | None:
    """Token ids from `1,2,3`; None stays None.

    Raises:
        typer.BadParameter: anything else.
    """
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"got {text!r}, expected token ids with commas between, such as 2,13",
            param_hint="--stop-token-ids",
        ) from None
