"""Requests and their results, on the host. No JAX."""

import dataclasses
import operator
import reprlib
import secrets
from typing import Any, Literal

from rfjax.engine.sampling_params import SamplingParams
from rfjax.errors import RequestError

FinishReason = Literal["stop", "length"]


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt, checked: token ids, how to continue them, and where to stop.

    `limit` is the length, prompt included, at which the sequence ends. `seed` is drawn where the
    user gave none.
    """

    token_ids: tuple[int, ...]
    params: SamplingParams
    stop_ids: tuple[int, ...]
    limit: int
    seed: int


@dataclasses.dataclass(frozen=True)
class RequestOutput:
    """What one prompt gave.

    Attributes:
        prompt: the text, or None when the prompt was token ids.
        prompt_token_ids: as fed to the model.
        token_ids: generated, a final stop token included.
        text: of the generated tokens, without special tokens and without the final stop token.
        finish_reason: "stop" at a stop token, "length" at `max_tokens` or the context's end.
        logprobs: natural log-probability of each generated token under the model's own
            distribution, before penalties, temperature and filters.
    """

    prompt: str | None
    prompt_token_ids: list[int]
    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    logprobs: list[float]


@dataclasses.dataclass(frozen=True)
class StreamOutput:
    """A piece of a running generation; the last one has a finish reason.

    Fields as in `RequestOutput`, of the tokens that are new since the piece before.
    """

    text: str
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason | None


def as_token_ids(prompt: Any) -> list[int]:
    """A prompt of token ids as plain integers; numpy's and JAX's are accepted.

    Raises:
        RequestError: it is no sequence of integers.
    """
    if not isinstance(prompt, bytes | bytearray):
        try:
            ids = list(prompt)
            if not any(isinstance(token, bool) for token in ids):
                return [operator.index(token) for token in ids]
        except TypeError:
            pass  # not iterable, or holds what is no integer
    raise RequestError(
        f"a prompt is a text or a sequence of token ids, which are integers: got "
        f"{reprlib.repr(prompt)}"
    )


def make_request(
    token_ids: list[int],
    params: SamplingParams,
    *,
    vocab_size: int,
    max_context: int,
    end_ids: frozenset[int],
) -> Request:
    """Check a prompt against the model.

    Raises:
        RequestError: no tokens, ids outside the vocabulary, or no room for a token of output.
    """
    if not token_ids:
        raise RequestError(
            "the prompt is empty: give some text, or the id of the beginning-of-sequence token "
            "to generate from nothing"
        )
    for token in (*token_ids, *params.stop_token_ids):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
            raise RequestError(
                f"token id {token!r} is outside the vocabulary: expected integers from 0 to "
                f"{vocab_size - 1}"
            )
    if len(token_ids) >= max_context:
        raise RequestError(
            f"the prompt has {len(token_ids)} tokens, and the context holds {max_context} with "
            "at least one of output: shorten the prompt, or raise max_context where it is below "
            "the model's"
        )
    room = max_context - len(token_ids)
    wanted = room if params.max_tokens is None else min(room, params.max_tokens)
    own = frozenset() if params.ignore_eos else end_ids
    return Request(
        token_ids=tuple(token_ids),
        params=params,
        stop_ids=tuple(sorted(own | set(params.stop_token_ids))),
        limit=len(token_ids) + wanted,
        seed=secrets.randbits(32) if params.seed is None else params.seed,
    )
