"""What a burst made, on the host. No JAX."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class RowResult:
    """Tokens of one row of `plan.decode`.

    Attributes:
        token_ids: in order; where the row failed, those before that.
        logprobs: natural log-probability of each under the model's own distribution.
        top_logprobs: for each token the most likely ones, as many as the request asked for, best
            first; None where it asked for none.
        failed: what is wrong with this row alone; None for nothing.
    """

    token_ids: list[int]
    logprobs: list[float]
    top_logprobs: list[dict[int, float]] | None
    failed: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class PromptResult:
    """Log-probabilities of a chunk of a prompt.

    Attributes:
        sequence: the sequence's number.
        start: position of the chunk's first token.
        logprobs: entry i is of the token at `start + i + 1`, given those before it.
        top_logprobs: for each of these the most likely ones, as many as the request asked for.
    """

    sequence: int
    start: int
    logprobs: list[float]
    top_logprobs: list[dict[int, float]]


@dataclasses.dataclass(frozen=True, slots=True)
class BurstResult:
    """Results of a plan: of the rows that it decodes, in order, and of prompts that report."""

    rows: tuple[RowResult, ...]
    prompt: tuple[PromptResult, ...]
