"""What attention does to scores besides scaling and masking, as data. Kernels read it too."""

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
