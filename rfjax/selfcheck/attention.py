"""Self-checks of the attention kernels, against attention in f64."""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from rfjax.cache.dense import LayerCache
from rfjax.models.config import LayerConfig
from rfjax.ops.attention import attention
from rfjax.ops.decode_attention import decode_attention
from rfjax.ops.dispatch import KernelPolicy
from rfjax.ops.mask import Mask
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
_LARGEST_MASK = 100


@dataclasses.dataclass(frozen=True)
class Heads:
    """Attention of one layer.

    Attributes:
        group: query heads of a kv head.
        n_kv: kv heads.
        size: of a head.
        rotated: elements of a head.
        pairing: of the rotation.
        mask: which keys a query sees.
        norms: whether heads are normalised.
        temperature: whether queries are multiplied.
    """

    group: int = 4
    n_kv: int = 2
    size: int = 128
    rotated: int = 128
    pairing: str = "interleaved"
    mask: Mask = dataclasses.field(default_factory=Mask)
    norms: bool = False
    temperature: bool = False

    def __str__(self) -> str:
        extras = [name for name in ("norms", "temperature") if getattr(self, name)]
        rotation = f"{self.rotated} rotated {self.pairing}"
        mask = f"{self.mask.kind} {self.mask.size}" if self.mask.size else self.mask.kind
        return ", ".join([f"{self.group} x {self.size}, {rotation}, {mask}", *extras])


TYPICAL = (
    Heads(),
    Heads(group=2, pairing="half", norms=True),
    Heads(group=1, size=64, rotated=64, pairing="half", mask=Mask("window", 21)),
    Heads(group=7, size=80, rotated=32, pairing="half", temperature=True),
)
"""Of llama, qwen3, and what is less common."""


def heads_of(layer: LayerConfig) -> Heads:
    """A layer's attention, with fewer kv heads and masks small enough to matter in a small case.

    Of latent attention what it is within rows: every head has keys and values of its own.
    """
    mask, rope, norm = layer.mask, layer.rope, layer.qk_norm
    n_kv, size = layer.n_kv_heads, layer.head_dim
    if layer.latent is not None:
        n_kv, size = layer.n_heads, max(size, layer.latent.value_dim)
    if mask.size > _LARGEST_MASK:
        mask = Mask(mask.kind, _LARGEST_MASK)
    return Heads(
        group=layer.n_heads // n_kv,
        n_kv=min(2, n_kv),
        size=size,
        rotated=size // 2 * 2 if rope is None else rope.dimension,
        pairing="half" if rope is None else rope.pairing,
        mask=mask,
        norms=norm is not None and norm.over == "head" and not norm.after_rope,
        temperature=layer.temperature is not None,
    )


def attention_cases(kinds: Iterable[Heads], dtype: str) -> Iterator[CheckCase]:
    """Decode steps over short and long caches, and prefill of ragged and of regular rows."""
    seen = set()
    for kind in dict.fromkeys(kinds):
        yield _decode(kind, 64, (5, 63, 0), dtype)
        yield _decode(kind, 512, (300, -1, 17), dtype)
        plain = Heads(kind.group, kind.n_kv, kind.size, mask=kind.mask)
        if plain not in seen:  # rotations and norms are not the prefill kernel's
            seen.add(plain)
            yield _prefill(plain, 37, 80, (40, 0), dtype)
            yield _prefill(plain, 256, 256, (0, 0), dtype)


def _decode(heads: Heads, capacity: int, positions: tuple[int, ...], dtype: str) -> CheckCase:
    batch, n_heads, scale = len(positions), heads.group * heads.n_kv, heads.size**-0.5

    def make(rng: np.random.Generator) -> Trial:
        shape = (batch, n_heads + 2 * heads.n_kv, heads.size)
        projected = normal(rng, shape, dtype)
        k_cache = normal(rng, (batch, heads.n_kv, capacity, heads.size), dtype)
        v_cache = normal(rng, (batch, heads.n_kv, heads.size, capacity), dtype)
        angles = rng.uniform(0, 6, (batch, heads.rotated // 2))
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        norms = normal(rng, (2, heads.size), "float32") if heads.norms else None
        multiplier = None
        if heads.temperature:
            multiplier = rng.uniform(0.5, 1.5, batch).astype(np.float32)
        at = np.array(positions, np.int32)

        def function(projected, k_cache, v_cache, cos, sin, norms, multiplier, at):
            out, cache = decode_attention(
                projected,
                None,
                None,
                LayerCache(k_cache, v_cache),
                cos,
                sin,
                positions=at,
                key_lengths=at + 1,
                mask=heads.mask,
                scale=scale,
                pairing=heads.pairing,  # pyright: ignore[reportArgumentType]
                eps=EPS,
                q_norm=None if norms is None else norms[0],
                k_norm=None if norms is None else norms[1],
                q_multiplier=multiplier,
                policy=_BY_NAME,
            )
            return out, cache.k, cache.v

        wide = projected.astype(np.float64)
        q, k, v = np.split(wide, [n_heads, n_heads + heads.n_kv], axis=1)
        if norms is not None:
            q, k = normalised(q, norms[0]), normalised(k, norms[1])
        q, k = rotated(q, cos, sin, heads.pairing), rotated(k, cos, sin, heads.pairing)
        if multiplier is not None:
            q = q * multiplier[:, None, None]
        keys, values = k_cache.astype(np.float64), v_cache.astype(np.float64)
        for row, position in enumerate(positions):
            if position >= 0:
                keys[row, :, position], values[row, :, :, position] = k[row], v[row]
        expected = attention_reference(
            q[:, None], keys, values, at[:, None], at + 1, heads.mask, scale
        ).reshape(batch, -1)

        def error(found):
            out, *caches = (np.asarray(x, np.float64) for x in found)
            errors = [relative_error(out, expected)]
            # What was there must stay as it was, so that differences are those of the new slots.
            for cache, wanted, new in zip(caches, (keys, values), (k, v), strict=True):
                errors.append(float(np.linalg.norm(cache - wanted) / np.linalg.norm(new)))
            return max(errors, key=lambda e: (np.isnan(e), e))

        arguments = (projected, k_cache, v_cache, cos, sin, norms, multiplier, at)
        return Trial(function, arguments, error)

    label = f"{heads}, {capacity} slots, {dtype}"
    return CheckCase("decode_attention", label, LIMITS[dtype], make)


def _prefill(
    heads: Heads, length: int, n_keys: int, starts: tuple[int, ...], dtype: str
) -> CheckCase:
    """Rows from each start; the last token of each is padding."""
    batch, n_heads, scale = len(starts), heads.group * heads.n_kv, heads.size**-0.5

    def make(rng: np.random.Generator) -> Trial:
        q = normal(rng, (batch, length, n_heads, heads.size), dtype)
        k = normal(rng, (batch, heads.n_kv, n_keys, heads.size), dtype)
        v = normal(rng, (batch, heads.n_kv, heads.size, n_keys), dtype)
        positions = np.array(starts, np.int32)[:, None] + np.arange(length, dtype=np.int32)
        positions[:, -1] = -1
        lengths = np.array(starts, np.int32) + length - 1
        expected = attention_reference(q, k, v, positions, lengths, heads.mask, scale)

        def function(q, k, v, positions, lengths):
            return attention(
                q,
                k,
                v,
                query_positions=positions,
                key_lengths=lengths,
                mask=heads.mask,
                scale=scale,
                policy=_BY_NAME,
            )

        arguments = (q, k, v, positions, lengths)
        return Trial(function, arguments, lambda found: relative_error(found, expected))

    mask = f"{heads.mask.kind} {heads.mask.size}" if heads.mask.size else heads.mask.kind
    label = f"{heads.group} x {heads.size}, {mask}, {length} of {n_keys}, {dtype}"
    return CheckCase("prefill_attention", label, LIMITS[dtype], make)
