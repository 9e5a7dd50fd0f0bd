"""Self-checks of the attention kernels over pages, against attention in f64."""

import dataclasses
from collections.abc import Iterable, Iterator

import jax.numpy as jnp
import numpy as np

from rfjax.cache.paged import PagedLayer
from rfjax.models.config import LayerConfig
from rfjax.ops.dispatch import KernelPolicy
from rfjax.ops.paged_attention import paged_attention
from rfjax.ops.paged_decode_attention import paged_decode_attention
from rfjax.ops.scores import ScoreTerms
from rfjax.selfcheck.attention import Heads, heads_of
from rfjax.selfcheck.attention_reference import (
    EPS,
    LIMITS,
    attention_reference,
    normal,
    normalised,
    rotated,
)
from rfjax.selfcheck.case import CheckCase, Trial, relative_error

_BY_NAME = KernelPolicy("pallas")
_PAGE_SIZE = 32
_LARGEST_INT8 = 127

_PACKED_LIMIT = 1.2e-2
"""Of 8-bit pages: a number at a half may be rounded to the other side, a unit of 1/127."""


@dataclasses.dataclass(frozen=True)
class PagedHeads:
    """Attention of one layer over pages.

    Attributes:
        heads: as over rows.
        packed: whether pages have 8 bits.
        softcap, sinks, slopes: terms of the scores.
    """

    heads: Heads
    packed: bool = False
    softcap: float = 0.0
    sinks: bool = False
    slopes: bool = False

    def __str__(self) -> str:
        return ", ".join([str(self.heads), *self.extras])

    @property
    def extras(self) -> list[str]:
        """Names of what it has beside heads."""
        names = ("packed", "softcap", "sinks", "slopes")
        return [name for name in names if getattr(self, name)]

    @property
    def n_heads(self) -> int:
        """Query heads."""
        return self.heads.group * self.heads.n_kv

    def limit(self, dtype: str) -> float:
        """Largest relative error."""
        return max(LIMITS[dtype], _PACKED_LIMIT) if self.packed else LIMITS[dtype]

    def draw_terms(self, rng: np.random.Generator) -> ScoreTerms:
        """Terms of the scores, random where they are arrays."""
        sinks = normal(rng, (self.n_heads,), "float32") if self.sinks else None
        slopes = -rng.uniform(0, 0.1, self.n_heads).astype(np.float32) if self.slopes else None
        return ScoreTerms(sinks, slopes, self.softcap)  # pyright: ignore[reportArgumentType]


def paged_heads_of(layer: LayerConfig) -> PagedHeads:
    """A layer's attention, made as small as `heads_of` makes it."""
    return PagedHeads(
        heads_of(layer),
        softcap=layer.softcap,
        sinks=layer.sinks,
        slopes=layer.alibi > 0,
    )


UNUSUAL = (
    PagedHeads(Heads(), packed=True),
    PagedHeads(Heads(group=8, size=64, rotated=64, pairing="half"), sinks=True),
    PagedHeads(Heads(group=1, size=96, rotated=96, pairing="half"), softcap=5.0, slopes=True),
)
"""What no model's heads alone ask for."""


def paged_attention_cases(kinds: Iterable[PagedHeads], dtype: str) -> Iterator[CheckCase]:
    """Decode steps over few and over many pages, and prefill of a sequence's pieces."""
    seen = set()
    for kind in dict.fromkeys(kinds):
        yield _decode(kind, 2, (5, 63, 0), dtype)
        yield _decode(kind, 16, (300, -1, 17), dtype)
        heads = Heads(kind.heads.group, kind.heads.n_kv, kind.heads.size, mask=kind.heads.mask)
        plain = dataclasses.replace(kind, heads=heads)
        if plain not in seen:  # rotations and norms are not the prefill kernel's
            seen.add(plain)
            yield _prefill(plain, 37, 3, dtype)


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """Rows of keys and values in f64, [B, K, S, H], and the pages that hold them.

    Pages of nobody hold NaN, or in 8 bits have scales that are NaN.
    """

    k: np.ndarray
    v: np.ndarray
    layer: PagedLayer
    table: np.ndarray


def _draw_pages(
    kind: PagedHeads, n_rows: int, max_pages: int, rng: np.random.Generator, dtype: str
) -> _Drawn:
    n_kv, size = kind.heads.n_kv, kind.heads.size
    n_pages = n_rows * max_pages + 3
    table = 1 + rng.permutation(n_pages - 1)[: n_rows * max_pages]
    table = table.reshape(n_rows, max_pages).astype(np.int32)
    unused = np.setdiff1d(np.arange(n_pages), table)
    arrays, rows = [], []
    for _ in range(2):
        numbers = normal(rng, (n_pages, n_kv, _PAGE_SIZE, size), dtype)
        scales = None
        if kind.packed:
            numbers, scales = _quantized(numbers.astype(np.float64))
        wide = _read(numbers, scales)[table].swapaxes(1, 2)
        rows.append(wide.reshape(n_rows, n_kv, max_pages * _PAGE_SIZE, size))
        (numbers if scales is None else scales)[unused] = np.nan
        arrays.append((numbers, scales))
    (k, k_scale), (v, v_scale) = arrays
    wide_k, wide_v = rows
    layer = PagedLayer(k, v, k_scale, v_scale)  # pyright: ignore[reportArgumentType]
    return _Drawn(wide_k, wide_v, layer, table)


def _quantized(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `rfjax.cache.paged.quantize_heads`."""
    scales = np.abs(x).max(axis=-1) / _LARGEST_INT8
    return np.rint(x / scales[..., None]).astype(np.int8), scales.astype(np.float32)


def _read(numbers: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    """Numbers of pages in f64."""
    wide = numbers.astype(np.float64)
    return wide if scales is None else wide * scales[..., None].astype(np.float64)


def _decode(kind: PagedHeads, max_pages: int, positions: tuple[int, ...], dtype: str) -> CheckCase:
    heads, n_heads, batch = kind.heads, kind.n_heads, len(positions)

    def make(rng: np.random.Generator) -> Trial:
        projected = normal(rng, (batch, n_heads + 2 * heads.n_kv, heads.size), dtype)
        drawn = _draw_pages(kind, batch, max_pages, rng, dtype)
        angles = rng.uniform(0, 6, (batch, heads.rotated // 2))
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        norms = normal(rng, (2, heads.size), "float32") if heads.norms else None
        multiplier = None
        if heads.temperature:
            multiplier = rng.uniform(0.5, 1.5, batch).astype(np.float32)
        terms, at = kind.draw_terms(rng), np.array(positions, np.int32)

        def function(projected, layer, table, cos, sin, norms, multiplier, terms, at):
            # Apart, as the decoder has them.
            q, k, v = jnp.split(projected, (n_heads, n_heads + heads.n_kv), axis=1)
            return paged_decode_attention(
                q,
                k,
                v,
                layer,
                table,
                cos,
                sin,
                positions=at,
                mask=heads.mask,
                scale=heads.size**-0.5,
                pairing=heads.pairing,  # pyright: ignore[reportArgumentType]
                eps=EPS,
                q_norm=None if norms is None else norms[0],
                k_norm=None if norms is None else norms[1],
                q_multiplier=multiplier,
                terms=terms,
                policy=_BY_NAME,
            )

        q, k, v = np.split(projected.astype(np.float64), [n_heads, n_heads + heads.n_kv], axis=1)
        if norms is not None:
            q, k = normalised(q, norms[0]), normalised(k, norms[1])
        q, k = rotated(q, cos, sin, heads.pairing), rotated(k, cos, sin, heads.pairing)
        if multiplier is not None:
            q = q * multiplier[:, None, None]
        if kind.packed:
            k, v = (_read(*_quantized(x)) for x in (k, v))
        for row, position in enumerate(positions):
            if position >= 0:
                drawn.k[row, :, position], drawn.v[row, :, position] = k[row], v[row]
        expected = attention_reference(
            q[:, None],
            drawn.k,
            drawn.v.swapaxes(2, 3),
            at[:, None],
            at + 1,
            heads.mask,
            heads.size**-0.5,
            terms,
        ).reshape(batch, -1)

        def error(found):
            out, layer = found
            errors = [relative_error(out, expected)]
            pages = ((layer.k, layer.k_scale), (layer.v, layer.v_scale))
            for (numbers, scales), wanted, new in zip(
                pages, (drawn.k, drawn.v), (k, v), strict=True
            ):
                scales = None if scales is None else np.asarray(scales)
                held = _read(np.asarray(numbers), scales)[drawn.table].swapaxes(1, 2)
                # What was there must stay as it was: differences are those of the new tokens.
                difference = held.reshape(wanted.shape) - wanted
                errors.append(float(np.linalg.norm(difference) / np.linalg.norm(new)))
            return max(errors, key=lambda e: (np.isnan(e), e))

        arguments = (projected, drawn.layer, drawn.table, cos, sin, norms, multiplier, terms, at)
        return Trial(function, arguments, error)

    label = f"{kind}, {max_pages} pages, {dtype}"
    return CheckCase("paged_decode_attention", label, kind.limit(dtype), make)


def _prefill(kind: PagedHeads, length: int, max_pages: int, dtype: str) -> CheckCase:
    """Two consecutive pieces of one sequence, and one of another that ends in padding."""
    heads = kind.heads
    starts = np.array([0, length, 20], np.int32)

    def make(rng: np.random.Generator) -> Trial:
        drawn = _draw_pages(kind, 2, max_pages, rng, dtype)
        rows = np.array([0, 0, 1])
        q = normal(rng, (3, length, kind.n_heads, heads.size), dtype)
        positions = starts[:, None] + np.arange(length, dtype=np.int32)
        positions[2, length // 2 :] = -1
        lengths = np.array([2 * length, 2 * length, 20 + length // 2], np.int32)
        terms = kind.draw_terms(rng)
        expected = attention_reference(
            q,
            drawn.k[rows],
            drawn.v[rows].swapaxes(2, 3),
            positions,
            lengths,
            heads.mask,
            heads.size**-0.5,
            terms,
        )

        def function(q, layer, table, positions, lengths, terms):
            return paged_attention(
                q,
                layer,
                table,
                query_positions=positions,
                key_lengths=lengths,
                mask=heads.mask,
                scale=heads.size**-0.5,
                terms=terms,
                policy=_BY_NAME,
            )

        arguments = (q, drawn.layer, drawn.table[rows], positions, lengths, terms)
        return Trial(function, arguments, lambda found: relative_error(found, expected))

    mask = f"{heads.mask.kind} {heads.mask.size}" if heads.mask.size else heads.mask.kind
    parts = [f"{heads.group} x {heads.size}, {mask}", *kind.extras, f"rows of {length}, {dtype}"]
    return CheckCase("paged_prefill_attention", ", ".join(parts), kind.limit(dtype), make)
