"""Attention to measure: one new token a sequence, or whole prompts. No JAX."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

from rfjax.errors import ConfigError

SHAPES = (
    "decode:1x4096",
    "decode:1x32768",
    "decode:32x4096",
    "decode:64x512",
    "prefill:1x2048",
    "prefill:8x2048",
)
"""What is measured by default: sequences x tokens of each."""

_SHAPE = re.compile(r"(decode|prefill):(\d+)x(\d+)")


@dataclasses.dataclass(frozen=True)
class AttentionCase:
    """Attention of one layer; heads as in Llama 3.1 8B.

    Attributes:
        kind: "decode" is one new token a sequence, which attends to all in its cache, itself
            included; "prefill" is every token of sequences from their start.
        batch: sequences.
        length: tokens of each.
        n_heads: query heads.
        n_kv_heads: heads of keys and values.
        head_dim: elements of a head.
    """

    kind: Literal["decode", "prefill"]
    batch: int
    length: int
    n_heads: int = 32
    n_kv_heads: int = 8
    head_dim: int = 128

    def __post_init__(self):
        if self.batch < 1 or self.length < 1:
            raise ConfigError(f"{self.name}: expected sequences and tokens of at least 1")

    @property
    def name(self) -> str:
        """As `attention_cases` reads it."""
        return f"{self.kind}:{self.batch}x{self.length}"

    @property
    def kv_elements(self) -> int:
        """Elements of all keys and values."""
        return 2 * self.batch * self.n_kv_heads * self.length * self.head_dim

    @property
    def flops(self) -> int:
        """Operations of both products, two a multiplication; below the diagonal for prompts."""
        keys = self.length * (self.length + 1) // 2 if self.kind == "prefill" else self.length
        return 4 * self.batch * self.n_heads * self.head_dim * keys


def attention_cases(shapes: Sequence[str] = SHAPES) -> tuple[AttentionCase, ...]:
    """Cases from texts such as `decode:32x4096`.

    Raises:
        ConfigError: a text that is none.
    """
    cases = []
    for text in shapes:
        match = _SHAPE.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"attention: got {text!r}, expected decode:BATCHxTOKENS or prefill:BATCHxTOKENS"
            )
        kind: Literal["decode", "prefill"] = "decode" if match[1] == "decode" else "prefill"
        cases.append(AttentionCase(kind, int(match[2]), int(match[3])))
    return tuple(cases)
