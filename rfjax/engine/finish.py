"""Why a sequence ended, as types. No JAX."""

import dataclasses
from typing import ClassVar, Literal

FinishReason = Literal["stop", "length", "abort", "deadline", "error"]


@dataclasses.dataclass(frozen=True, slots=True)
class StopToken:
    """The model chose one of the request's stop tokens, or an end token of its own."""

    reason: ClassVar[FinishReason] = "stop"
    token_id: int


@dataclasses.dataclass(frozen=True, slots=True)
class StopString:
    """The text came to hold one of the request's stop strings."""

    reason: ClassVar[FinishReason] = "stop"
    string: str


@dataclasses.dataclass(frozen=True, slots=True)
class LengthReached:
    """`max_tokens` or the end of the context."""

    reason: ClassVar[FinishReason] = "length"


@dataclasses.dataclass(frozen=True, slots=True)
class Cancelled:
    """The user, or the server whose client went away, ended it."""

    reason: ClassVar[FinishReason] = "abort"


@dataclasses.dataclass(frozen=True, slots=True)
class DeadlineExceeded:
    """The request's deadline passed before the sequence was done."""

    reason: ClassVar[FinishReason] = "deadline"


@dataclasses.dataclass(frozen=True, slots=True)
class Failed:
    """An error of this request alone, such as NaN in its logits; `message` says which."""

    reason: ClassVar[FinishReason] = "error"
    message: str


Finish = StopToken | StopString | LengthReached | Cancelled | DeadlineExceeded | Failed
