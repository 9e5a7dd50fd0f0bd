"""What requests give, whole and in pieces. No JAX."""

import dataclasses
from typing import NamedTuple

from rfjax.engine.finish import Failed, Finish, FinishReason, StopString, StopToken
from rfjax.engine.request import Request


@dataclasses.dataclass(frozen=True)
class SampleOutput:
    """One continuation of a prompt.

    Attributes:
        text: of the generated tokens, without special tokens, without the final stop token, and
            (unless the request wants it) without the stop string.
        token_ids: generated, a final stop token included, and the tokens of a stop string.
        finish_reason: "stop" at a stop token or string, "length" at `max_tokens` or the context's
            end, "abort" when cancelled, "deadline" when that passed, "error" of this one alone.
        logprobs: natural log-probability of each generated token under the model's own
            distribution, before penalties, temperature and filters.
        stop_reason: the stop string, or the token of `stop_token_ids`, that ended it; None at the
            model's own end tokens and where it did not stop.
        top_logprobs: for each generated token the most likely ones with their log-probabilities,
            best first; None where `SamplingParams.logprobs` asks for none.
        error: what went wrong, if `finish_reason` is "error".
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[float]
    stop_reason: int | str | None = None
    top_logprobs: list[dict[int, float]] | None = None
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class RequestOutput:
    """What one prompt gave: its samples, of which the first one's fields are also here.

    Attributes:
        prompt: the text, or None when the prompt was token ids.
        prompt_token_ids: as fed to the model.
        samples: `SamplingParams.n` of them.
        prompt_logprobs: for each token of the prompt its log-probability and those of the most
            likely ones, by token id; None for the first token, before which nothing stands. None
            where `SamplingParams.prompt_logprobs` asks for nothing, and where the request ended
            before all of them were known.
    """

    prompt: str | None
    prompt_token_ids: list[int]
    samples: tuple[SampleOutput, ...]
    prompt_logprobs: list[dict[int, float] | None] | None = None

    @property
    def text(self) -> str:
        """That of the first sample."""
        return self.samples[0].text

    @property
    def token_ids(self) -> list[int]:
        """Those of the first sample."""
        return self.samples[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        """That of the first sample."""
        return self.samples[0].finish_reason

    @property
    def stop_reason(self) -> int | str | None:
        """That of the first sample."""
        return self.samples[0].stop_reason

    @property
    def logprobs(self) -> list[float]:
        """Those of the first sample."""
        return self.samples[0].logprobs

    @property
    def top_logprobs(self) -> list[dict[int, float]] | None:
        """Those of the first sample."""
        return self.samples[0].top_logprobs

    @property
    def error(self) -> str | None:
        """That of the first sample."""
        return self.samples[0].error


class StreamOutput(NamedTuple):
    """A piece of a running generation; a sample's last one has a finish reason.

    Fields as in `SampleOutput`, of what is new since the sample's piece before. `text` lags behind
    `token_ids` inside a character and where a stop string may be beginning.

    Attributes:
        request_id: whose piece it is.
        sample: which of the request's samples.
        reasoning: what `LLM.chat(..., reasoning="hide")` left out of `text`.
    """

    text: str
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason | None
    stop_reason: int | str | None = None
    top_logprobs: list[dict[int, float]] | None = None
    error: str | None = None
    request_id: str = ""
    sample: int = 0
    reasoning: str = ""


def stop_reason_of(finish: Finish, request: Request) -> int | str | None:
    """What stopped a sequence, as vLLM reports it."""
    match finish:
        case StopString(string):
            return string
        case StopToken(token) if token in request.params.stop_token_ids:
            return token
        case _:
            return None


def error_of(finish: Finish) -> str | None:
    """What went wrong with a sequence, if anything did."""
    return finish.message if isinstance(finish, Failed) else None
