"""What attention does to scores besides scaling and masking, as data. Kernels read it too."""

import numpy as np
from flax import struct

from rfjax.typing import Array


@struct.dataclass
class ScoreTerms:
    """Further terms of a score `s = scale * (q . k)`, in the order in which they apply.

    Attributes:
        softcap: `s` becomes `softcap * tanh(s / softcap)` (Gemma 2); 0 leaves it as it is.
        slopes: f32 [N], of each query head: `slope * (key position - query position)` is added
            (Press et al., "Train Short, Test Long", 2021: ALiBi); None adds nothing.
        sinks: f32 [N]: of each query head one more logit in the softmax, which has no value and so
            takes weight away from the keys (gpt-oss); None for none.
    """

    sinks: Array | None = None
    slopes: Array | None = None
    softcap: float = struct.field(pytree_node=False, default=0.0)


NO_TERMS = ScoreTerms()
"""Scores as they are."""


def alibi_slopes(n_heads: int, max_bias: float) -> np.ndarray:
    """ALiBi's slopes of query heads, f32 [N], for `ScoreTerms.slopes`.

    With P the largest power of two up to N: `2^(-max_bias (h + 1) / P)` for the heads h below P;
    the heads above take every other slope of 2P heads, the steepest first.

    Source: Press et al., "Train Short, Test Long" (2021), section 3, and its published code for
    numbers of heads that are no power of two; `max_bias` is 8 there.
    """
    assert n_heads > 0 and max_bias > 0
    power = 1 << (n_heads.bit_length() - 1)
    first = (np.arange(power) + 1) / power
    rest = (2 * np.arange(n_heads - power) + 1) / (2 * power)
    return np.exp2(-max_bias * np.concatenate([first, rest])).astype(np.float32)
