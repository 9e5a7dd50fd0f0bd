"""Requests, on the host. No JAX."""

import dataclasses
import math
import operator
import reprlib
import secrets
from typing import Any

from rfjax.engine.sampling_params import SamplingParams
from rfjax.errors import RequestError


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt, checked: token ids, how to continue them, and where to stop.

    Attributes:
        token_ids: of the prompt, at least one.
        params: how to continue it.
        stop_ids: tokens that end a sequence, sorted: the model's own and the user's.
        limit: the length, prompt included, at which a sequence ends.
        seed: of the first sample; drawn where the user gave none.
        id: of the request among those that are under way.
        priority: the lower, the sooner (vLLM's meaning).
        arrival: when it came, in seconds on the clock of the scheduler's events.
        deadline: when to give it up, on the same clock; None for never.
        cache_salt: only requests of the same salt share cached prefixes.
    """

    token_ids: tuple[int, ...]
    params: SamplingParams
    stop_ids: tuple[int, ...]
    limit: int
    seed: int
    id: str = ""
    priority: int = 0
    arrival: float = 0.0
    deadline: float | None = None
    cache_salt: str = ""

    def seed_of(self, index: int) -> int:
        """The seed of sample `index` of `params.n`, from 0 to 2**32 - 1."""
        return (self.seed + index) % 2**32


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
    request_id: str | None = None,
    priority: int = 0,
    arrival: float = 0.0,
    deadline: float | None = None,
    cache_salt: str = "",
) -> Request:
    """Check a prompt against the model.

    Args:
        token_ids: the prompt.
        params: how to continue it.
        vocab_size: ids are below it.
        max_context: most tokens of a sequence, prompt and output.
        end_ids: the model's own end tokens.
        request_id: a name for it; None draws one.
        priority, arrival, deadline, cache_salt: as in `Request`.

    Raises:
        RequestError: no tokens, ids outside the vocabulary, no room for a token of output, no
            token that may be chosen, or a name, priority or time of the wrong kind.
    """
    _check_terms(request_id, priority, deadline)
    if not token_ids:
        raise RequestError(
            "the prompt is empty: give some text, or the id of the beginning-of-sequence token "
            "to generate from nothing"
        )
    biased = (token for token, _ in params.logit_biases)
    for token in (*token_ids, *params.stop_token_ids, *(params.allowed_token_ids or ()), *biased):
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
    stop_ids = own | set(params.stop_token_ids)
    allowed = params.allowed_token_ids
    if params.min_tokens and allowed is not None and stop_ids.issuperset(allowed):
        raise RequestError(
            f"allowed_token_ids: got {reprlib.repr(allowed)}, all of which stop, expected one "
            f"that does not, since min_tokens is {params.min_tokens}: allow more, or lower it"
        )
    return Request(
        token_ids=tuple(token_ids),
        params=params,
        stop_ids=tuple(sorted(stop_ids)),
        limit=len(token_ids) + wanted,
        seed=secrets.randbits(32) if params.seed is None else params.seed,
        id=secrets.token_hex(8) if request_id is None else request_id,
        priority=priority,
        arrival=arrival,
        deadline=deadline,
        cache_salt=cache_salt,
    )


def _check_terms(request_id: str | None, priority: int, deadline: float | None) -> None:
    if request_id is not None and (not isinstance(request_id, str) or not request_id):
        raise RequestError(f"request_id: got {request_id!r}, expected a text that is not empty")
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise RequestError(f"priority: got {priority!r}, expected an integer; lower goes first")
    number = isinstance(deadline, int | float) and not isinstance(deadline, bool)
    if deadline is not None and not (number and math.isfinite(deadline)):
        raise RequestError(
            f"deadline: got {deadline!r}, expected seconds on the engine's clock, or None"
        )
