"""Single operations to measure: named shapes of matrices, and rows of activations. No JAX."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from rfjax.errors import ConfigError
from rfjax.quant.formats import FORMATS
from rfjax.quant.types import BLOCK_SIZES, GGMLType

SHAPES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "ffn_gate_up": (28672, 4096),
        "ffn_down": (4096, 14336),
        "attn_qkv": (6144, 4096),
        "attn_output": (4096, 4096),
        "output": (128256, 4096),
    }
)
"""Matrices `[N, K]` of Llama 3.1 8B by name, those with one input side by side."""

ROWS = (1, 2, 4, 8, 16, 512, 2048)
"""Rows of activations measured by default: decoding, batches of it, and prompts."""

TYPES = ("q4_0", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "mxfp4", "bf16")
"""Types measured by default."""

_SHAPE = re.compile(r"(\d+)x(\d+)")
_FLOATS = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)


@dataclasses.dataclass(frozen=True)
class LinearCase:
    """A product of `m` rows of activations with a weight matrix.

    Attributes:
        shape: its name, or `NxK` again.
        n: rows of the matrix: results.
        k: its columns: what is summed over.
        type: of the weights.
        m: rows of activations.
    """

    shape: str
    n: int
    k: int
    type: GGMLType
    m: int

    def __post_init__(self):
        for name in ("n", "k", "m"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.k % BLOCK_SIZES[self.type][0]:
            raise ConfigError(
                f"{self.n}x{self.k} in {self.type.name}: rows of {self.k} elements are not whole "
                f"blocks of {BLOCK_SIZES[self.type][0]}"
            )

    @property
    def weight_bytes(self) -> int:
        """Bytes of the matrix as a file stores it."""
        elements, size = BLOCK_SIZES[self.type]
        return self.n * self.k // elements * size

    @property
    def flops(self) -> int:
        """Operations of one product, two a multiplication."""
        return 2 * self.m * self.n * self.k


def linear_cases(
    shapes: Sequence[str] = tuple(SHAPES),
    types: Sequence[str] = TYPES,
    rows: Sequence[int] = ROWS,
) -> tuple[LinearCase, ...]:
    """Every combination, types within shapes and rows within types.

    Args:
        shapes: names of `SHAPES`, or `NxK`.
        types: names of GGML types that weights have, in any case.
        rows: rows of activations.

    Raises:
        ConfigError: an unknown shape or type, or one that does not fit the other.
    """
    matrices = [(name, *_shape(name)) for name in shapes]
    kinds = [_type(name) for name in types]
    return tuple(
        LinearCase(name, n, k, kind, m) for name, n, k in matrices for kind in kinds for m in rows
    )


def _shape(text: str) -> tuple[int, int]:
    if text in SHAPES:
        return SHAPES[text]
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"shape: got {text!r}, expected rows x columns such as 4096x14336, or one of "
            f"{', '.join(SHAPES)}"
        )
    return int(match[1]), int(match[2])


def _type(text: str) -> GGMLType:
    kind = GGMLType.__members__.get(text.upper())
    known = [type for type, row in FORMATS.items() if type in _FLOATS or row.unpack is not None]
    if kind is None or kind not in known:
        names = ", ".join(type.name.lower() for type in known)
        raise ConfigError(f"type: got {text!r}, expected one of {names}")
    return kind
