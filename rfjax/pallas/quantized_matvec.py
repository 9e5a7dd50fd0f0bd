"""Products of few rows of activations with packed weights, by exact integer dot products.

Every packed type is small integers times scales. With the activations of a group in block fixed
point (see `rfjax.pallas.pack_activations`), the dot product of a group, or of each half of it, is
exact in int32; scales are applied to it in f32. What bounds the kernel is reading the weights.

A program computes a tile of rows for up to four rows of activations (`ROWS_AT_ONCE`). It walks over
the columns; in a column a lane meets a whole super-block, so that the sub-scales are decoded once,
from registers.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from rfjax.pallas.intrinsics import dot4, lookup16, opaque, shift_right, signed_byte
from rfjax.pallas.pack_activations import PackedActivations
from rfjax.pallas.sub_scales import exponent, half, high_half, low_half
from rfjax.pallas.target import Target
from rfjax.pallas.tuned_config import tuned
from rfjax.pallas.weight_tiles import over_tiles, tile_counts
from rfjax.quant.bits import Array
from rfjax.quant.fp4 import E2M1
from rfjax.quant.iq4 import LEVELS
from rfjax.quant.layout import GROUP, LAYOUTS, Layout, groups_per_column
from rfjax.quant.qtensor import QTensor

MAX_ROWS = 16
"""Most rows of activations."""

ROWS_AT_ONCE = 4
"""Most rows of activations in one program. More rows take more programs, which read the same
weights one after the other: with 16 rows in one, the code took minutes to compile."""

_MAX_UNROLLED = 8
"""Most products of a group with a row of activations that are written out one after the other;
beyond, a loop keeps code and compile time small."""

_TABLES = {"iq4": LEVELS, "e2m1": E2M1}


@dataclasses.dataclass(frozen=True)
class Config:
    """Tile sizes: powers of two.

    Each lane of `warps` warps takes one group: `groups` of a column, in `columns` columns. Where
    `groups * columns` is the number of lanes, nothing moves between them before the last sum.

    Attributes:
        rows: weight rows of a program.
        groups: groups of a column taken at a time, side by side.
        columns: columns taken at a time.
        warps: of a program.
    """

    rows: int
    groups: int
    columns: int
    warps: int


def heuristic(n: int, k: int, m: int, target: Target = "cuda") -> Config:
    """A configuration that always works, for `n` rows of `k` elements and `m` of activations."""
    wave = 64 if target == "gfx9" else 32  # lanes of a warp
    groups = groups_per_column(k)
    n_columns = k // (GROUP * groups)

    def lanes_in_use(columns: int) -> float:
        return n_columns / (pl.cdiv(n_columns, columns) * columns)

    # As many columns as there are, unless too many lanes would be idle in the last chunk.
    candidates = [c for c in (64, 32, 16, 8, 4, 2, 1) if c < 2 * n_columns]
    columns = next((c for c in candidates if lanes_in_use(c) >= 0.85), 1)
    side_by_side = min(groups, max(1, wave // columns))
    rows = 2 if m <= 2 else 4
    while rows > n:
        rows //= 2
    return Config(rows, side_by_side, columns, max(1, side_by_side * columns // wave))


class _Tile:
    """A chunk of columns of a tile of weight rows: loads, decoded scales, integers.

    Arrays are `[rows, groups, columns]`, those of words have four more at the end.
    """

    def __init__(self, layout: Layout, refs: dict, first_row, first_column, config, target):
        self.layout, self.refs, self.target, self.config = layout, refs, target, config
        self.shape = (config.rows, config.groups, config.columns)
        n_columns = refs[layout.scale].shape[-1]
        iota = functools.partial(jax.lax.broadcasted_iota, jnp.int32)
        self.rows = first_row + iota((config.rows, 1, 1), 0)
        self.lanes = iota((1, config.groups, 1), 1)
        self.columns = first_column + iota((1, 1, config.columns), 2)
        self.word = iota((1, 1, 1, 4), 3)
        self.inside = None
        if n_columns % config.columns:
            self.inside = self.columns < n_columns
        self.hidden = opaque(jnp.broadcast_to(self.columns, self.shape), target)
        if layout.block > GROUP:
            self.head = self._load(layout.scale, self.rows, self.hidden)
            count = refs["scales"].shape[-2] if layout.sub else 0
            words = [self._load("scales", self.rows, w, self.hidden) for w in range(count)]
            self.words = self._decoded(words)

    def _load(self, plane: str, *index) -> Array:
        """One number a lane."""
        index = [jnp.broadcast_to(jnp.asarray(i, jnp.int32), self.shape) for i in index]
        return _masked_load(self.refs[plane], index, self.inside, self.shape)

    def _load_words(self, plane: str, *index) -> Array:
        """Four words a lane, one 16-byte load."""
        shape = (*self.shape, 4)
        index = [i if isinstance(i, int) else i[..., None] for i in index] + [self.word]
        index = [jnp.broadcast_to(jnp.asarray(i, jnp.int32), shape) for i in index]
        inside = None if self.inside is None else self.inside[..., None]
        return _masked_load(self.refs[plane], index, inside, shape, once=True)

    def _decoded(self, words: list[Array]) -> list[Array]:
        """Sub-scales as bytes of words: scales 0-3, 4-7, ..., for "k4" then minima likewise."""
        low, high = jnp.int32(0x0F0F0F0F), jnp.int32(0x30303030)
        if self.layout.sub == "k4":
            first, second, third = words
            six = jnp.int32(0x3F3F3F3F)
            return [
                first & six,
                (third & low) | (shift_right(first, 2) & high),
                second & six,
                (shift_right(third, 4) & low) | (shift_right(second, 2) & high),
            ]
        if self.layout.sub == "k3":
            first, second, third = words
            left = lambda w, n: jax.lax.shift_left(w, jnp.full_like(w, n))  # noqa: E731
            return [
                (first & low) | (left(third, 4) & high),
                (second & low) | (left(third, 2) & high),
                (shift_right(first, 4) & low) | (third & high),
                (shift_right(second, 4) & low) | (shift_right(third, 2) & high),
            ]
        return words

    def integers(self, first_group: int | Array) -> list[list[Array]]:
        """The two halves of a group a lane, four words of int8 each."""
        layout, target = self.layout, self.target
        group = first_group + self.lanes
        if layout.low == "q8":
            halves = (self._load_words("q8", self.rows, group, h, self.columns) for h in range(2))
            return [_words_apart(half, target) for half in halves]
        if layout.low == "q2":
            halves = self._pairs(group)
        else:
            words = _words_apart(
                self._load_words("q4", self.rows, group, self.columns), self.target
            )
            if layout.levels:
                pairs = [lookup16(word, _TABLES[layout.levels], target) for word in words]
                return [list(half) for half in zip(*pairs, strict=True)]
            halves = [[shift_right(word, 4 * h) & 0x0F0F0F0F for word in words] for h in range(2)]
        if layout.high == "q1":
            bits = self._load("q1", self.rows, group, self.hidden)
            upper = [
                [shift_right(bits, 2 * i + h) & 0x01010101 for i in range(4)] for h in range(2)
            ]
        elif layout.high == "q2":
            upper = self._pairs(group)
        else:
            return halves
        return [
            [low | (high << layout.shift) for low, high in zip(*pair, strict=True)]
            for pair in zip(halves, upper, strict=True)
        ]

    def _pairs(self, group: Array) -> list[list[Array]]:
        """Fields of two bits; two groups share a vector of words."""
        words = _words_apart(
            self._load_words("q2", self.rows, group >> 1, self.columns), self.target
        )
        place = 4 * (group & 1)
        return [[shift_right(w, place + 2 * h) & 0x03030303 for w in words] for h in range(2)]

    def factors(self, first_group: int) -> tuple[list[Array], list[Array]]:
        """Scales of a group a lane (one, or one a half) and what multiplies its sums, f32.

        The product is `scale * dot + minimum * sum` (of a half each, where there are two).
        """
        layout = self.layout
        group = jnp.broadcast_to(first_group + self.lanes, self.shape)
        if layout.block == GROUP:
            head = self._load(layout.scale, self.rows, group, self.hidden)
            if layout.scale == "e":
                return [exponent(head)], []
            if layout.scale == "d":
                return [half(head)], []
            return [low_half(head)], [high_half(head)]
        d = half(self.head) if layout.scale == "d" else low_half(self.head)
        if layout.sub == "xs":
            low = shift_right(self.words[0], 4 * group) & 15
            high = shift_right(self.head, 16 + 2 * group) & 3
            return [d * ((low | (high << 4)) - 32).astype(jnp.float32)], []
        if layout.sub == "k4":
            word = lambda first: self._pick(self.words[first : first + 2], group >> 2)  # noqa: E731
            scale, minimum = _byte(word(0), group & 3), _byte(word(2), group & 3)
            return [d * scale], [-high_half(self.head) * minimum]
        # Sub-blocks of 16: scales 2 group and 2 group + 1.
        word, first = self._pick(self.words, group >> 1), 2 * (group & 1)
        if layout.sub == "k6":
            return [d * signed_byte(word, first + h).astype(jnp.float32) for h in range(2)], []
        if layout.sub == "k3":
            return [d * (_byte(word, first + h) - 32.0) for h in range(2)], []
        assert layout.sub == "k2"
        codes = [shift_right(word, 8 * (first + h)) for h in range(2)]
        minus = -high_half(self.head)
        return (
            [d * (code & 15).astype(jnp.float32) for code in codes],
            [minus * (shift_right(code, 4) & 15).astype(jnp.float32) for code in codes],
        )

    def _pick(self, words: list[Array], index: Array) -> Array:
        """`words[index]`, lane by lane."""
        picked = words[0]
        for i, word in enumerate(words[1:], 1):
            picked = jnp.where(index == i, word, picked)
        return picked


def _masked_load(
    ref, index: list[Array], mask: Array | None, shape: tuple[int, ...], *, once: bool = False
) -> Array:
    """`once`: nobody reads it again, so that it should not push activations out of the caches."""
    policy = "evict_first" if once else None
    at = ref.at[tuple(index)]
    if mask is None:
        return plt.load(at, eviction_policy=policy)
    mask = jnp.broadcast_to(mask, shape)
    other = jnp.zeros((), ref.dtype)
    return plt.load(at, mask=mask, other=other, eviction_policy=policy)


def _words_apart(words: Array, target: Target) -> list[Array]:
    """The four words of every lane, one array each. They lie in one lane: nothing is moved."""
    if target == "interpret":
        return [words[..., i] for i in range(4)]
    place = jax.lax.broadcasted_iota(jnp.int32, words.shape, words.ndim - 1)
    zero = jnp.zeros_like(words)
    return [jnp.sum(jnp.where(place == i, words, zero), axis=-1) for i in range(4)]


def _byte(words: Array, index: Array) -> Array:
    return (shift_right(words, 8 * index) & 255).astype(jnp.float32)


def _accumulate(x_refs, tokens, layout: Layout, refs: dict, first_row, config: Config, target):
    """The products of one tile of weight rows with each of `tokens`: f32 `[rows]`."""
    n_groups, n_columns = x_refs[1].shape[1:]
    shape = (config.rows, config.groups, config.columns)

    def chunk(i, totals):
        tile = _Tile(layout, refs, first_row, i * config.columns, config, target)
        step = functools.partial(_step, tile, x_refs, tokens)
        n_steps = n_groups // config.groups
        if len(tokens) * n_steps <= _MAX_UNROLLED:
            for j in range(n_steps):
                totals = step(j * config.groups, totals)
            return totals
        return jax.lax.fori_loop(0, n_steps, lambda j, t: step(j * config.groups, t), totals)

    totals = tuple(jnp.zeros(shape, jnp.float32) for _ in tokens)
    n_chunks = pl.cdiv(n_columns, config.columns)
    totals = chunk(0, totals) if n_chunks == 1 else jax.lax.fori_loop(0, n_chunks, chunk, totals)
    return [jnp.sum(jnp.sum(total, axis=2), axis=1) for total in totals]


def _step(tile: _Tile, x_refs, tokens, first_group, totals: tuple[Array, ...]) -> tuple[Array, ...]:
    """Add the products of one group a lane to the totals of every row of activations."""
    words_ref, scales_ref, sums_ref = x_refs
    layout, target = tile.layout, tile.target
    halves_apart = layout.sub in ("k2", "k3", "k6")
    halves = tile.integers(first_group)
    scales, minima = tile.factors(first_group)
    load = functools.partial(_load_activations, tile=tile, first_group=first_group)
    results = []
    for r, total in zip(tokens, totals, strict=True):
        dots = []
        for part in range(2):
            chains = [jnp.zeros(tile.shape, jnp.int32)]
            for h in range(2):
                if h and halves_apart:
                    chains.append(jnp.zeros(tile.shape, jnp.int32))
                x = _words_apart(load(words_ref, r, part, h, words=True), target)
                for word, operand in zip(halves[h], x, strict=True):
                    operand = jnp.broadcast_to(operand, tile.shape)
                    chains[-1] = dot4(word, operand, chains[-1], target)
            dots.append(chains)
        whole = [upper * 256 + lower for upper, lower in zip(*dots, strict=True)]
        sums = []
        if layout.offset or minima:
            sums = [load(sums_ref, r, h) for h in range(2)]
            if not halves_apart:
                sums = [sums[0] + sums[1]]
        if layout.offset:
            whole = [w - layout.offset * s for w, s in zip(whole, sums, strict=True)]
        terms = [w.astype(jnp.float32) * s for w, s in zip(whole, scales, strict=True)]
        if minima:
            terms += [low * s.astype(jnp.float32) for low, s in zip(minima, sums, strict=True)]
        results.append(total + functools.reduce(jnp.add, terms) * load(scales_ref, r))
    return tuple(results)


def _load_activations(ref, *index, tile: _Tile, first_group: int, words: bool = False) -> Array:
    """`[1, groups, columns]` of activations, or four words of each."""
    shape = (1, *tile.shape[1:])
    index = [*index, first_group + tile.lanes, tile.columns]
    inside = tile.inside
    if words:
        shape = (*shape, 4)
        index = [i if isinstance(i, int) else i[..., None] for i in index] + [tile.word]
        inside = None if inside is None else inside[..., None]
    index = [jnp.broadcast_to(jnp.asarray(i, jnp.int32), shape) for i in index]
    return _masked_load(ref, index, inside, shape)


def _kernel(*refs, layouts, planes, gated, has_bias, has_residual, config, m, target):
    refs = list(refs)
    take = lambda n: [refs.pop(0) for _ in range(n)]  # noqa: E731
    x_refs = take(3)
    weights = [dict(zip(names, take(len(names)), strict=True)) for names in planes]
    biases = [take(1)[0] if has else None for has in has_bias]
    residual = take(1)[0] if has_residual else None
    outputs = refs

    tokens = list(range(m))
    if m > ROWS_AT_ONCE:
        # The last rows stand in for those that the last program lacks: computed twice, alike.
        first = pl.program_id(0) * ROWS_AT_ONCE
        tokens = [jnp.minimum(first + i, m - 1) for i in range(ROWS_AT_ONCE)]

    def product(index: int, first_row):
        tile = (layouts[index], weights[index], first_row, config, target)
        totals = _accumulate(x_refs, tokens, *tile)
        bias = biases[index]
        if bias is not None:
            numbers = bias[pl.ds(first_row, config.rows)]
            totals = [total + numbers for total in totals]
        return totals

    def write(output, first_row, totals):
        for r, total in zip(tokens, totals, strict=True):
            at = (r, pl.ds(first_row, config.rows))
            if residual is not None:
                total = total + residual[at].astype(jnp.float32)
            output[at] = total.astype(output.dtype)

    def compute(index: int, first_row):
        totals = product(index, first_row)
        if gated is not None:
            ups = product(1, first_row)
            totals = [gated(g) * u for g, u in zip(totals, ups, strict=True)]
        write(outputs[index], first_row, totals)

    over_tiles(outputs, config.rows, compute, axis=1)


# Jitted by itself, so that layers alike are traced and lowered once.
@functools.partial(jax.jit, static_argnames=("gated", "out_dtype", "config", "target"))
def quantized_matvec(
    x: PackedActivations,
    weights: Sequence[QTensor],
    *,
    biases: Sequence[Array | None] | None = None,
    residual: Array | None = None,
    gated=None,
    out_dtype: jnp.dtype,
    config: Config | None = None,
    target: Target,
) -> list[Array]:
    """`x @ w.T + bias` for weights that share their input, in one launch.

    Args:
        x: M packed rows of K elements, M at most `MAX_ROWS`.
        weights: matrices `[N_i, K]` of types with a layout (`rfjax.quant.layout.LAYOUTS`).
        biases: f32 `[N_i]` each, or None.
        residual: `[M, N]`, added to the one result of a single weight.
        gated: an activation function; the result is then `gated(x @ w0.T) * (x @ w1.T)`.
        out_dtype: of the results.
        config: tile sizes; None takes measured ones for the device, or the heuristic's.

    Returns:
        `[M, N_i]` for each weight; a single one where `gated`.
    """
    m = x.words.shape[0]
    sizes = [weight.shape[0] for weight in weights]
    shape = min(sizes), weights[0].shape[1], min(m, ROWS_AT_ONCE)
    config = config or tuned(Config, "quantized_matvec", weights[0].type.name, *shape, target)
    config = config or heuristic(*shape, target)
    biases = list(biases or [None] * len(weights))
    layouts = tuple(LAYOUTS[weight.type] for weight in weights)
    planes = tuple(tuple(weight.planes) for weight in weights)
    kernel = functools.partial(
        _kernel,
        layouts=layouts,
        planes=planes,
        gated=gated,
        has_bias=tuple(bias is not None for bias in biases),
        has_residual=residual is not None,
        config=config,
        m=m,
        target=target,
    )
    operands = [*x]
    for weight in weights:
        operands += weight.planes.values()
    operands += [bias for bias in biases if bias is not None]
    operands += [residual] if residual is not None else []
    outputs = sizes[:1] if gated is not None else sizes
    results = pl.pallas_call(
        kernel,
        # Programs that read the same weights follow each other.
        grid=(pl.cdiv(m, ROWS_AT_ONCE), sum(tile_counts(outputs, config.rows))),
        out_shape=[jax.ShapeDtypeStruct((m, n), out_dtype) for n in outputs],
        compiler_params=plt.CompilerParams(num_warps=config.warps, num_stages=1),
        interpret=target == "interpret",
        name="quantized_matvec_" + "_".join(weight.type.name.lower() for weight in weights),
    )(*operands)
    return list(results)
