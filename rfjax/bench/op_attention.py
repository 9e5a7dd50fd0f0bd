"""Measures attention of single layers: time, rates, shares of the roof, and error."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rfjax.bench.attention_case import AttentionCase
from rfjax.bench.attention_data import drawer, error_of
from rfjax.bench.op_paged_attention import PagedDecode, PagedPrefill
from rfjax.bench.roof import Roof
from rfjax.bench.timing import seconds_per_call
from rfjax.cache.dense import LayerCache
from rfjax.errors import UnsupportedError
from rfjax.io.memory import free_bytes
from rfjax.ops.attention import attention
from rfjax.ops.decode_attention import decode_attention
from rfjax.ops.dispatch import DEFAULT_POLICY, KernelPolicy
from rfjax.ops.mask import Mask
from rfjax.typing import Array

_CHECKED_QUERIES = 16
"""Last tokens of the first sequence whose results are compared with f64."""

_MAX_LAYERS = 32


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """How to measure attention.

    Attributes:
        working_set: bytes of keys and values that one call reads: more than any cache holds.
        repeats: samples, of which the median counts.
        seed: of the random queries, keys and values.
    """

    working_set: int = 1 << 30
    repeats: int = 7
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class AttentionResult:
    """One case measured.

    Attributes:
        case: the case.
        dtype: of queries, keys and values; of queries alone where pages are int8.
        implementation: what the operation was asked for: "xla", "pallas" or "auto".
        seconds: of one layer; of a new token, rotation and writing the cache included.
        n_layers: layers in a compiled call.
        error: norm of the difference from f64 over the norm of the f64 results.
        copy_share: of the measured copy bandwidth, over keys and values; None for prompts.
        matmul_share: of the measured rate of a plain product; None for new tokens.
    """

    case: AttentionCase
    dtype: str
    implementation: str
    seconds: float
    n_layers: int
    error: float
    copy_share: float | None
    matmul_share: float | None

    @property
    def gb_per_s(self) -> float:
        """Keys and values read once, in 1e9 bytes a second."""
        return self.case.kv_bytes(jnp.dtype(self.dtype).itemsize) / self.seconds / 1e9

    @property
    def tflop_per_s(self) -> float:
        """Operations in 1e12 a second."""
        return self.case.flops / self.seconds / 1e12

    def record(self) -> dict[str, object]:
        """Everything as plain values."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        case = dataclasses.asdict(own.pop("case"))
        return {
            "op": "attention",
            "shape": self.case.name,
            **case,
            **own,
            "us": self.seconds * 1e6,
            "gb_per_s": self.gb_per_s,
            "tflop_per_s": self.tflop_per_s,
        }


def bench_attention(
    cases: Sequence[AttentionCase],
    *,
    dtype: str,
    config: AttentionConfig | None = None,
    roof: Roof | None = None,
    policy: KernelPolicy = DEFAULT_POLICY,
    on_declined: Callable[[AttentionCase, str], None] | None = None,
) -> Iterator[AttentionResult]:
    """Measure attention as the decoder computes it.

    One compiled call holds several layers with keys and values of their own; caches are updated in
    place.

    Args:
        cases: what to measure.
        dtype: of queries, keys and values.
        config: sizes; None takes the defaults.
        roof: measured ceilings; None leaves the shares out.
        policy: what runs it.
        on_declined: called with a case and the reason where a kernel that was asked for by name
            declines; the case is left out.
    """
    config = config or AttentionConfig()
    for case in cases:
        n_layers = _n_layers(case, dtype, config)
        prepare = _PREPARED[case.kind]
        try:
            layers = prepare(case, n_layers, dtype, policy, config.seed)
            seconds = seconds_per_call(layers, repeats=config.repeats).median / n_layers
        except UnsupportedError as error:
            if on_declined is not None:
                on_declined(case, str(error))
            continue
        error = layers.error()
        del layers  # before the next case allocates its own
        result = AttentionResult(
            case, dtype, policy.implementation or "auto", seconds, n_layers, error, None, None
        )
        if roof is not None:
            copy = result.gb_per_s * 1e9 / roof.copy_bytes_per_s
            matmul = result.tflop_per_s * 1e12 / roof.matmul_flop_per_s
            result = dataclasses.replace(
                result,
                copy_share=copy if case.decoding else None,
                matmul_share=None if case.decoding else matmul,
            )
        yield result


def _n_layers(case: AttentionCase, dtype: str, config: AttentionConfig) -> int:
    room, free = config.working_set, free_bytes(jax.devices()[0])
    if free is not None:
        room = min(room, free // 8)
    nbytes = case.kv_bytes(jnp.dtype(dtype).itemsize)
    if not case.decoding:
        return 2
    return min(_MAX_LAYERS, max(2, math.ceil(room / nbytes)))


class _Decode:
    """One new token a sequence, in several layers."""

    def __init__(
        self, case: AttentionCase, n_layers: int, dtype: str, policy: KernelPolicy, seed: int
    ):
        self._case = case
        draw = drawer(dtype, seed)
        heads = (case.batch, case.n_heads + 2 * case.n_kv_heads, case.head_dim)
        keys = (case.batch, case.n_kv_heads, case.length, case.head_dim)
        values = (case.batch, case.n_kv_heads, case.head_dim, case.length)
        self._heads = [draw(heads) for _ in range(n_layers)]
        self._caches = [LayerCache(k=draw(keys), v=draw(values)) for _ in range(n_layers)]
        half = (case.batch, case.head_dim // 2)
        self._tables = jnp.ones(half, jnp.float32), jnp.zeros(half, jnp.float32)

        def layers(heads: list[Array], caches: list[LayerCache], cos: Array, sin: Array) -> Any:
            lengths = jnp.full((case.batch,), case.length, jnp.int32)
            done = [
                decode_attention(
                    q,
                    None,
                    None,
                    cache,
                    cos,
                    sin,
                    positions=lengths - 1,
                    key_lengths=lengths,
                    mask=Mask("causal"),
                    scale=case.head_dim**-0.5,
                    pairing="interleaved",
                    eps=1e-5,
                    policy=policy,
                )
                for q, cache in zip(heads, caches, strict=True)
            ]
            return [out for out, _ in done], [cache for _, cache in done]

        self._layers = jax.jit(layers, donate_argnums=1)

    def __call__(self) -> list[Array]:
        outputs, self._caches = self._layers(self._heads, self._caches, *self._tables)
        return outputs

    def error(self) -> float:
        """Of the first sequence in the first layer."""
        case, out = self._case, self()[0][0]
        cache = self._caches[0]
        q = np.asarray(self._heads[0][0, : case.n_heads])
        found = np.asarray(out, np.float64).reshape(1, case.n_heads, case.head_dim)
        return error_of(found, q[None], np.asarray(cache.k[0]), np.asarray(cache.v[0]), case)


class _Prefill:
    """Whole prompts, in several layers."""

    def __init__(
        self, case: AttentionCase, n_layers: int, dtype: str, policy: KernelPolicy, seed: int
    ):
        self._case = case
        draw = drawer(dtype, seed)
        queries = (case.batch, case.length, case.n_heads, case.head_dim)
        keys = (case.batch, case.n_kv_heads, case.length, case.head_dim)
        values = (case.batch, case.n_kv_heads, case.head_dim, case.length)
        self._qkv = [(draw(queries), draw(keys), draw(values)) for _ in range(n_layers)]

        def layers(qkv: list[tuple[Array, Array, Array]]) -> list[Array]:
            positions = jnp.arange(case.length, dtype=jnp.int32)[None, :]
            return [
                attention(
                    q,
                    k,
                    v,
                    query_positions=jnp.broadcast_to(positions, q.shape[:2]),
                    key_lengths=jnp.full((case.batch,), case.length, jnp.int32),
                    mask=Mask("causal"),
                    scale=case.head_dim**-0.5,
                    keys_are_queries=True,
                    policy=policy,
                )
                for q, k, v in qkv
            ]

        self._layers = jax.jit(layers)

    def __call__(self) -> list[Array]:
        return self._layers(self._qkv)

    def error(self) -> float:
        """Of the last tokens of the first sequence in the first layer."""
        q, k, v = (np.asarray(part[0]) for part in self._qkv[0])
        found = np.asarray(self()[0][0, -_CHECKED_QUERIES:], np.float64)
        return error_of(found, q[-_CHECKED_QUERIES:], k, v, self._case)


_PREPARED = {
    "decode": _Decode,
    "prefill": _Prefill,
    "paged-decode": PagedDecode,
    "paged-prefill": PagedPrefill,
}
"""What is timed, by the case's kind."""
