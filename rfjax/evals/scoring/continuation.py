"""What is to be scored, and the score. No JAX."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, slots=True)
class Continuation:
    """Tokens whose probability is asked for, and what stands before them.

    Attributes:
        context: ids before the tokens, BOS included where the model wants one; at least one.
        tokens: ids that are scored; at least one.
    """

    context: tuple[int, ...]
    tokens: tuple[int, ...]

    @property
    def n_inputs(self) -> int:
        """Tokens that the model reads: all but the last."""
        return len(self.context) + len(self.tokens) - 1


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ContinuationScore:
    """How likely a continuation is.

    Attributes:
        logprobs: f32 [n], natural logarithm of each token's probability given all before it.
        greedy: bool [n], whether it is the most likely one (of equals, the lowest id).
    """

    logprobs: np.ndarray
    greedy: np.ndarray

    @property
    def total(self) -> float:
        """Logarithm of the probability of all tokens together; summed in f64, in their order."""
        return float(self.logprobs.astype(np.float64).sum())

    @property
    def is_greedy(self) -> bool:
        """Whether greedy decoding would produce these tokens."""
        return bool(self.greedy.all())
