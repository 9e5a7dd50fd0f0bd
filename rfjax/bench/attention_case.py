"""Attention to measure: one new token a sequence, or whole prompts. No JAX."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal, cast

from rfjax.errors import ConfigError

SHAPES = (
    "decode:1x4096",
    "decode:1x32768",
    "decode:32x4096",
    "decode:64x512",
    "prefill:1x2048",
    "prefill:8x2048",
    "paged-decode:1x32768",
    "paged-decode:32x4096",
    "paged-decode:64x512",
    "paged-prefill:8x2048",
)
"""What is measured by default: sequences x tokens of each."""

Kind = Literal["decode", "prefill", "paged-decode", "paged-prefill"]

_PAGE_SIZE = 32
_SCALE_BYTES = 4

_SHAPE = re.compile(r"(decode|prefill|paged-decode|paged-prefill):(\d+)x(\d+)(?:@(\d+))?(/int8)?")
_EXPECTED = (
    "decode:BATCHxTOKENS or prefill:BATCHxTOKENS, or over pages "
    "paged-decode:BATCHxTOKENS[@PAGE][/int8] or paged-prefill:BATCHxTOKENS[@PAGE][/int8], with "
    "pages of a power of two of tokens from 16"
)


@dataclasses.dataclass(frozen=True)
class AttentionCase:
    """Attention of one layer; heads as in Llama 3.1 8B.

    Attributes:
        kind: "decode" is one new token a sequence, which attends to all in its cache, itself
            included; "prefill" is every token of sequences from their start. "paged-decode" and
            "paged-prefill" do the same over pages in random order, prompts in rows of 128 tokens.
        batch: sequences.
        length: tokens of each.
        n_heads: query heads.
        n_kv_heads: heads of keys and values.
        head_dim: elements of a head.
        page_size: tokens of a page, where there are pages.
        packed: whether pages are int8, with a scale for each head and token.
    """

    kind: Kind
    batch: int
    length: int
    n_heads: int = 32
    n_kv_heads: int = 8
    head_dim: int = 128
    page_size: int = _PAGE_SIZE
    packed: bool = False

    def __post_init__(self):
        if self.batch < 1 or self.length < 1:
            raise ConfigError(f"{self.name}: expected sequences and tokens of at least 1")
        if self.page_size < 16 or self.page_size & (self.page_size - 1):
            raise ConfigError(
                f"{self.name}: expected pages of a power of two of tokens from 16, got "
                f"{self.page_size}"
            )
        if self.packed and not self.paged:
            raise ConfigError(f"{self.name}: only pages may be int8")

    @property
    def paged(self) -> bool:
        """Whether keys and values are in pages."""
        return self.kind.startswith("paged")

    @property
    def decoding(self) -> bool:
        """Whether each sequence has one new token."""
        return self.kind.endswith("decode")

    @property
    def name(self) -> str:
        """As `attention_cases` reads it."""
        pages = f"@{self.page_size}" if self.paged and self.page_size != _PAGE_SIZE else ""
        return f"{self.kind}:{self.batch}x{self.length}{pages}{'/int8' if self.packed else ''}"

    def kv_bytes(self, itemsize: int) -> int:
        """Bytes of all keys and values, with the scales of int8 ones.

        Args:
            itemsize: of an element that is not int8.
        """
        head = self.head_dim + _SCALE_BYTES if self.packed else self.head_dim * itemsize
        return 2 * self.batch * self.n_kv_heads * self.length * head

    @property
    def flops(self) -> int:
        """Operations of both products, two a multiplication; below the diagonal for prompts."""
        keys = self.length if self.decoding else self.length * (self.length + 1) // 2
        return 4 * self.batch * self.n_heads * self.head_dim * keys


def attention_cases(shapes: Sequence[str] = SHAPES) -> tuple[AttentionCase, ...]:
    """Cases from texts such as `decode:32x4096`, or `paged-decode:32x4096@16` for pages of 16.

    Raises:
        ConfigError: a text that is none.
    """
    cases = []
    for text in shapes:
        match = _SHAPE.fullmatch(text)
        if match is None:
            raise ConfigError(f"attention: got {text!r}, expected {_EXPECTED}")
        kind, batch, length, page_size, packed = match.groups()
        if page_size and not kind.startswith("paged"):
            raise ConfigError(f"attention: got {text!r}, expected {_EXPECTED}")
        case = AttentionCase(
            cast(Kind, kind),
            int(batch),
            int(length),
            page_size=int(page_size or _PAGE_SIZE),
            packed=packed is not None,
        )
        cases.append(case)
    return tuple(cases)
