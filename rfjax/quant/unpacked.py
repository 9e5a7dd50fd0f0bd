"""What a quantized block holds once its bits are apart, and how that becomes numbers."""

from types import ModuleType
from typing import NamedTuple

import numpy as np

from rfjax.quant.bits import Array


class Unpacked(NamedTuple):
    """Integers and scales of n blocks, each of S sub-blocks of G elements.

    The value of an element is `(d * scales) * q - (dmin * mins)`; a field that is None drops out
    of it. Nothing is rounded here: integers are the file's own (odd multiples where the format
    has halves or eighths, with the power of two moved into d), d and dmin are its f16 scales.

    Attributes:
        q: int8 `[n, S, G]`, elements in their order in the tensor.
        d: float32 `[n]`, scale of the block.
        scales: int32 `[n, S]` or None, scales of the sub-blocks.
        dmin: float32 `[n]` or None, scale of the minimum. What is subtracted is the minimum's
            negative in K-quants; Q4_1 and Q5_1, which add it, store it negated here.
        mins: int32 `[n, S]` or None, minima of the sub-blocks.
    """

    q: Array
    d: Array
    scales: Array | None = None
    dmin: Array | None = None
    mins: Array | None = None


def combine(parts: Unpacked, xp: ModuleType) -> Array:
    """Values of unpacked blocks: float32 `[n, S * G]`, bit for bit those of ggml.

    All products are exact, so neither their order nor a contraction into a fused multiply-add
    changes a bit, and the subtraction is the only rounding. With 11 bits in d, the widest are
    11 + 7 + 5 (Q6_K) and 11 + 5 + 7 (IQ4_XS) of the 24 there are; the smallest nonzero one is
    2^-24 (a subnormal half) times 2^-3, far from f32's subnormals.
    """
    # The scale of the sub-block comes first, and zero stays a float: 0 * -1 is -0, as in ggml.
    scale = parts.d[:, None]
    if parts.scales is not None:
        scale = scale * parts.scales.astype(np.float32)
    values = scale[:, :, None] * parts.q.astype(np.float32)
    if parts.dmin is not None:
        low = parts.dmin[:, None]
        if parts.mins is not None:
            low = low * parts.mins.astype(np.float32)
        values = values - low[:, :, None]
    return xp.reshape(values, (values.shape[0], values.shape[1] * values.shape[2]))
