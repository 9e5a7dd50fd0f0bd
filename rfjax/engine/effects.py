"""What a transition of the scheduler shows to the outside, besides the new state. No JAX."""

import dataclasses
from typing import NamedTuple

from rfjax.engine.finish import Finish
from rfjax.engine.plan import Plan
from rfjax.engine.request import Request


class Output(NamedTuple):
    """New tokens of a sequence, its end, or both. A sequence's last output has a `finish`.

    Attributes:
        sequence: the sequence's number.
        request: the user's.
        sample: which of the request's samples.
        token_ids: new since its output before; the first tokens of its row in the burst.
        n_output: how many tokens of output it has, with these.
        waited: seconds since the tokens before, or since the request's arrival.
        age: seconds since the request's arrival.
        finish: why it ended; None while it goes on.
    """

    sequence: int
    request: Request
    sample: int
    token_ids: tuple[int, ...]
    n_output: int
    waited: float
    age: float
    finish: Finish | None


@dataclasses.dataclass(frozen=True, slots=True)
class Admission:
    """A sequence got a slot and pages.

    Attributes:
        sequence: the sequence's number.
        request: the user's.
        n_tokens: tokens that it begins with.
        n_cached: how many of them were found in cached or shared pages.
        waited: seconds since the request's arrival.
        kind: "first" of the request's first sample, "sample" of a further one, "resumed" after a
            preemption.
    """

    sequence: int
    request: Request
    n_tokens: int
    n_cached: int
    waited: float
    kind: str


@dataclasses.dataclass(frozen=True, slots=True)
class Effects:
    """All that a transition shows.

    Attributes:
        outputs: new tokens and ends.
        plan: what to run next; of the event `Tick` only.
        admissions: sequences that got a slot.
        preempted: numbers of sequences that lost theirs.
    """

    outputs: tuple[Output, ...]
    plan: Plan | None
    admissions: tuple[Admission, ...]
    preempted: tuple[int, ...]
