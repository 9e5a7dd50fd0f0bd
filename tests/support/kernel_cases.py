"""The kernels that are compiled for AMD GPUs: one `KernelCase` a kernel, type and regime.

A new kernel adds its cases here; `tests/pallas/test_rocm_compile.py` compiles them and
`python -m support.kernel_table` (in `tests/`) writes what came out into docs/kernels.md.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import jax
import jax.numpy as jnp
from support.rocm import TARGETS

from rfjax.ops.activation import GATES
from rfjax.ops.mask import Mask
from rfjax.ops.scores import ScoreTerms
from rfjax.pallas.decode_attention import decode_attention
from rfjax.pallas.grouped_matvec import grouped_matvec
from rfjax.pallas.pack_activations import pack_activations, pack_activations_reference
from rfjax.pallas.packed_matmul import packed_matmul
from rfjax.pallas.paged_decode_attention import paged_decode_attention
from rfjax.pallas.paged_prefill_attention import paged_prefill_attention
from rfjax.pallas.plain_matvec import plain_matvec
from rfjax.pallas.prefill_attention import prefill_attention
from rfjax.pallas.quantized_matvec import quantized_matvec
from rfjax.pallas.target import current_target
from rfjax.quant.layout import LAYOUTS
from rfjax.quant.qtensor import QTensor, pack
from rfjax.quant.types import BLOCK_SIZES, GGMLType

WIDTH = 4096
"""Of the models whose sizes the cases have: llama 8B."""

ONE_OF_EACH = ("gfx942", "gfx1100")
"""A target with 64 lanes and 512 registers, and one with 32 lanes and 256 registers."""


@dataclasses.dataclass(frozen=True)
class KernelCase:
    """A function that launches kernels, at sizes that a real model has.

    Attributes:
        name: of its row in docs/kernels.md; unique.
        function: called with `args`; it must take its kernel and not another path.
        args: `jax.ShapeDtypeStruct`s, or pytrees of them.
        kind: "prefill" kernels must use the matrix units.
        tested_on: the targets that the suite compiles it for.
        targets: those that take the kernel; `make kernels` compiles it for all of them.
    """

    name: str
    function: Callable
    args: tuple
    kind: Literal["decode", "prefill", "other"]
    tested_on: tuple[str, ...] = TARGETS
    targets: tuple[str, ...] = TARGETS


def kernel_cases() -> tuple[KernelCase, ...]:
    """Every case, in the order of the table."""
    return (
        *_pack_activations(),
        *_quantized_matvec(),
        *_packed_matmul(),
        *_plain_matvec(),
        *_grouped_matvec(),
        *_decode_attention(),
        *_prefill_attention(),
        *_paged_decode_attention(),
        *_paged_prefill_attention(),
    )


def _array(*shape: int, dtype=jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _packed(type: GGMLType, *shape: int) -> QTensor:
    """A packed matrix `[N, K]`, or a stack of them, without numbers."""
    block, size = BLOCK_SIZES[type]
    raw = _array(*shape[:-1], shape[-1] // block, size, dtype=jnp.uint8)
    return jax.eval_shape(lambda raw: pack(raw, type), raw)


def _on(targets: tuple[str, ...], cases: Iterable[KernelCase]) -> Iterator[KernelCase]:
    """The cases, tested on some targets only."""
    return (dataclasses.replace(case, tested_on=targets) for case in cases)


def _pack_activations() -> Iterator[KernelCase]:
    def plain(x):
        return pack_activations(x, target=current_target())

    def normed(x, norm):
        return pack_activations(x, norm=norm, eps=1e-5, target=current_target())

    norm = _array(WIDTH, dtype=jnp.float32)
    one = KernelCase("pack_activations", plain, (_array(1, 14336),), "other")
    yield from _on(ONE_OF_EACH, [one])
    yield KernelCase("pack_activations, RMS norm", normed, (_array(1, WIDTH), norm), "other")


def _quantized_matvec() -> Iterator[KernelCase]:
    def case(label: str, m: int, types: list[str], sizes: list[int], k: int, **options):
        def function(x, weights):
            return quantized_matvec(
                x, weights, out_dtype=jnp.bfloat16, target=current_target(), **options
            )

        x = jax.eval_shape(pack_activations_reference, _array(m, k))
        weights = [_packed(GGMLType[t], n, k) for t, n in zip(types, sizes, strict=True)]
        return KernelCase(f"quantized_matvec {label}", function, (x, weights), "decode")

    for type in LAYOUTS:
        one = case(type.name, 1, [type.name], [WIDTH], WIDTH)
        # They compile for long on gfx1100: there, those of most registers.
        targets = ONE_OF_EACH if type.name in ("Q3_K", "Q6_K") else ("gfx942",)
        yield from [one] if type.name == "Q4_0" else _on(targets, [one])
    kinds = ["Q4_K", "Q4_K", "Q6_K"]
    yield from _on(("gfx1100",), [case("Q4_K, 4 rows", 4, ["Q4_K"], [WIDTH], WIDTH)])
    yield from _on(ONE_OF_EACH, [case("Q4_0, 131 x 320", 1, ["Q4_0"], [131], 320)])
    both = case("Q4_K as gate and up", 1, kinds[:2], [14336, 14336], WIDTH, gated=jax.nn.silu)
    yield from _on(("gfx942",), [both])
    # Many rows and several types take long to compile.
    slow = [
        case("Q4_K, Q4_K, Q6_K as Q, K, V", 1, kinds, [WIDTH, 1024, 1024], WIDTH),
        case("Q4_0, 16 rows", 16, ["Q4_0"], [WIDTH], WIDTH),
        case("Q6_K, 4 rows", 4, ["Q6_K"], [WIDTH], WIDTH),
        case("Q6_K, 16 rows", 16, ["Q6_K"], [WIDTH], WIDTH),
    ]
    yield from _on((), slow)


def _packed_matmul() -> Iterator[KernelCase]:
    def case(label: str, m: int, types: list[str], sizes: list[int], k: int, **options):
        def function(x, weights):
            return packed_matmul(
                x, weights, out_dtype=jnp.bfloat16, target=current_target(), **options
            )

        weights = [_packed(GGMLType[t], n, k) for t, n in zip(types, sizes, strict=True)]
        return KernelCase(f"packed_matmul {label}", function, (_array(m, k), weights), "prefill")

    yield case("Q4_0, 32 rows", 32, ["Q4_0"], [WIDTH], WIDTH)
    kinds = ["Q4_K", "Q4_K"]
    both = case("Q4_K as gate and up, 64 rows", 64, kinds, [14336] * 2, WIDTH, gated=jax.nn.silu)
    more = [case(f"{type}, 64 rows", 64, [type], [WIDTH], WIDTH) for type in ("Q6_K", "Q8_0")]
    yield from _on((), [both, *more])


def _plain_matvec() -> Iterator[KernelCase]:
    def case(label: str, m: int, dtype, sizes: list[int], k: int, **options):
        def function(x, weights):
            return plain_matvec(
                x, weights, out_dtype=jnp.bfloat16, target=current_target(), **options
            )

        weights = [_array(n, k, dtype=dtype) for n in sizes]
        return KernelCase(f"plain_matvec {label}", function, (_array(m, k), weights), "decode")

    one = case("BF16", 1, jnp.bfloat16, [WIDTH], WIDTH)
    four = case("BF16, 4 rows", 4, jnp.bfloat16, [WIDTH], WIDTH)
    yield from _on(ONE_OF_EACH, [one, four])
    yield case("BF16 as gate and up", 1, jnp.bfloat16, [14336] * 2, WIDTH, gated=jax.nn.silu)
    odd = case("F16, 131 x 320", 1, jnp.float16, [131], 320)
    wide = case("F32", 1, jnp.float32, [WIDTH], WIDTH)
    yield from _on(ONE_OF_EACH, [odd, wide])


def _grouped_matvec() -> Iterator[KernelCase]:
    """The experts of a model like qwen3 30B: 8 of 128, 768 wide."""

    def case(label: str, x, stacks, biases=None, *, gate=None):
        def function(x, stacks, biases, experts):
            return grouped_matvec(
                x,
                stacks,
                experts,
                biases=biases,
                gated=None if gate is None else GATES[gate],
                out_dtype=jnp.bfloat16,
                target=current_target(),
            )

        args = (x, stacks, biases, _array(8, dtype=jnp.int32))
        return KernelCase(f"grouped_matvec {label}", function, args, "decode")

    one = jax.eval_shape(pack_activations_reference, _array(1, 2048))
    eight = jax.eval_shape(pack_activations_reference, _array(8, 768))
    up, down = _packed(GGMLType.Q4_K, 128, 768, 2048), _packed(GGMLType.Q6_K, 128, 2048, 768)
    plain = _array(128, 768, 2048)
    both = case("Q4_K as gate and up", one, [up, up], gate="silu")
    # Those of gpt-oss.
    oss, bias = _packed(GGMLType.MXFP4, 32, 2880, 2880), _array(32, 2880, dtype=jnp.float32)
    wide = jax.eval_shape(pack_activations_reference, _array(1, 2880))
    biased = case("MXFP4 as gate and up, biased", wide, [oss, oss], [bias, bias], gate="swiglu_oai")
    yield from _on(("gfx942",), [both, biased])
    yield from _on(
        ONE_OF_EACH, [case("Q6_K", eight, [down]), case("BF16", _array(1, 2048), [plain])]
    )


def _decode_attention() -> Iterator[KernelCase]:
    def case(
        label, batch, heads, capacity, head_dim, *, norms=False, dtype=jnp.bfloat16, **options
    ):
        n_heads, n_kv = heads

        def function(fused, k_cache, v_cache, cos, sin, positions, norm):
            return decode_attention(
                fused,
                None,
                None,
                k_cache,
                v_cache,
                cos,
                sin,
                positions=positions,
                scale=head_dim**-0.5,
                eps=1e-6,
                q_norm=norm,
                k_norm=norm,
                target=current_target(),
                **{"mask": Mask(), "pairing": "half", **options},
            )

        args = (
            _array(batch, n_heads + 2 * n_kv, head_dim, dtype=dtype),
            _array(batch, n_kv, capacity, head_dim, dtype=dtype),
            _array(batch, n_kv, head_dim, capacity, dtype=dtype),
            _array(batch, head_dim // 2, dtype=jnp.float32),
            _array(batch, head_dim // 2, dtype=jnp.float32),
            _array(batch, dtype=jnp.int32),
            _array(head_dim, dtype=jnp.float32) if norms else None,
        )
        return KernelCase(f"decode_attention {label}", function, args, "decode")

    # On gfx1100 this takes long; a case with more to do is tested there.
    llama = case("llama 8B, 4096 slots", 1, (32, 8), 4096, 128, pairing="interleaved")
    yield from _on(tuple(arch for arch in TARGETS if arch != "gfx1100"), [llama])
    plain = [
        case("llama 8B, 32 rows of 256 slots", 32, (32, 8), 256, 128, pairing="interleaved"),
        case("head dim 64", 1, (32, 8), 4096, 64),
    ]
    yield from _on(("gfx942",), plain)
    norms = case("qwen3 with norms", 1, (16, 8), 4096, 128, norms=True)
    yield from _on(ONE_OF_EACH, [norms])
    yield from _on(("gfx942",), [case("head dim 80", 1, (32, 32), 4096, 80)])
    window = case("head dim 256, window", 1, (8, 4), 4096, 256, mask=Mask("window", 1024))
    yield from _on(("gfx1100",), [window])
    yield from _on(("gfx942",), [case("f32", 1, (32, 8), 4096, 128, dtype=jnp.float32)])


def _prefill_attention() -> Iterator[KernelCase]:
    def case(label, batch, length, heads, capacity, head_dim, **options):
        dtype = options.pop("dtype", jnp.bfloat16)
        n_heads, n_kv = heads
        terms = options.pop("terms", ())
        softcap = options.pop("softcap", 0.0)

        def function(q, k, v, positions, lengths, logits):
            return prefill_attention(
                q,
                k,
                v,
                query_positions=positions,
                key_lengths=lengths,
                scale=head_dim**-0.5,
                terms=ScoreTerms(**dict.fromkeys(terms, logits), softcap=softcap),
                target=current_target(),
                **{"mask": Mask(), **options},
            )

        args = (
            _array(batch, length, n_heads, head_dim, dtype=dtype),
            _array(batch, n_kv, capacity, head_dim, dtype=dtype),
            _array(batch, n_kv, head_dim, capacity, dtype=dtype),
            _array(batch, length, dtype=jnp.int32),
            _array(batch, dtype=jnp.int32),
            _array(n_heads, dtype=jnp.float32),
        )
        return KernelCase(f"prefill_attention {label}", function, args, "prefill")

    window = Mask("window", 1024)
    yield case("llama 8B, 512 of 4096", 1, 512, (32, 8), 4096, 128)
    smaller = [
        case("16 queries", 4, 16, (32, 8), 512, 128),
        case("head dim 64", 1, 512, (32, 8), 4096, 64),
        case("head dim 64, window, sinks", 1, 512, (64, 8), 512, 64, mask=window, terms=("sinks",)),
    ]
    yield from _on(("gfx942",), smaller)
    others = [
        case("head dim 80", 1, 512, (32, 32), 4096, 80),
        case("head dim 256, window", 1, 512, (8, 4), 4096, 256, mask=window),
        case("head dim 256, window, softcap", 1, 512, (8, 4), 512, 256, mask=window, softcap=50.0),
    ]
    yield from _on(ONE_OF_EACH, others)
    alibi = case("ALiBi", 1, 512, (32, 32), 512, 128, terms=("slopes",))
    yield from _on(("gfx1100",), [alibi])
    # Only the matrix units of these multiply f32 in full precision.
    precise = case("f32", 1, 512, (32, 8), 4096, 128, dtype=jnp.float32)
    cdna = tuple(arch for arch in TARGETS if arch.startswith("gfx9"))
    yield dataclasses.replace(precise, tested_on=("gfx942",), targets=cdna)


def _paged_decode_attention() -> Iterator[KernelCase]:
    """Eight rows over 4096 places in pages of 32."""

    def case(label, heads, head_dim, *, dtype=jnp.bfloat16, norms=False, **options):
        n_heads, n_kv = heads
        page_dtype = options.pop("page_dtype", dtype)
        terms = options.pop("terms", ())
        softcap = options.pop("softcap", 0.0)

        def function(fused, pages, table, cos, sin, positions, norm, logits):
            return paged_decode_attention(
                fused,
                None,
                None,
                pages,
                table,
                cos,
                sin,
                positions=positions,
                scale=head_dim**-0.5,
                eps=1e-6,
                q_norm=norm,
                k_norm=norm,
                terms=ScoreTerms(**dict.fromkeys(terms, logits), softcap=softcap),
                target=current_target(),
                **{"mask": Mask(), "pairing": "half", **options},
            )

        pages = _array(1024, n_kv, 32, head_dim, dtype=page_dtype)
        scales = _array(1024, n_kv, 32, dtype=jnp.float32) if page_dtype == jnp.int8 else None
        angles = _array(8, head_dim // 2, dtype=jnp.float32)
        args = (
            _array(8, n_heads + 2 * n_kv, head_dim, dtype=dtype),
            (pages, pages, scales, scales),
            _array(8, 128, dtype=jnp.int32),
            angles,
            angles,
            _array(8, dtype=jnp.int32),
            _array(head_dim, dtype=jnp.float32) if norms else None,
            _array(n_heads, dtype=jnp.float32),
        )
        return KernelCase(f"paged_decode_attention {label}", function, args, "decode")

    yield from _on(("gfx942",), [case("llama 8B", (32, 8), 128, pairing="interleaved")])
    window = Mask("window", 128)
    sinks = case("head dim 64, window, sinks", (64, 8), 64, mask=window, terms=("sinks",))
    yield from _on(("gfx950", "gfx1100", "gfx1201"), [sinks])
    slopes = case("head dim 80, ALiBi", (32, 32), 80, terms=("slopes",))
    yield from _on(("gfx90a", "gfx1100"), [slopes])
    packed = case("int8 pages", (32, 8), 128, page_dtype=jnp.int8)
    yield from _on(("gfx1100",), [packed])
    capped = case("head dim 256, window, softcap", (8, 4), 256, mask=window, softcap=50.0)
    yield from _on(("gfx1201",), [capped])
    yield from _on(("gfx942",), [case("qwen3 30B with norms", (32, 4), 128, norms=True)])
    others = [
        case("head dim 96", (32, 8), 96),
        case("one kv head of 256", (16, 1), 256),
        case("f32", (32, 8), 128, dtype=jnp.float32),
    ]
    yield from _on((), others)


def _paged_prefill_attention() -> Iterator[KernelCase]:
    """Rows of 128 tokens over 4096 places in pages of 32."""

    def case(label, heads, head_dim, length=128, dtype=jnp.bfloat16, **options):
        n_heads, n_kv = heads
        page_dtype = options.pop("page_dtype", dtype)
        terms = options.pop("terms", ())
        softcap = options.pop("softcap", 0.0)

        def function(q, pages, scales, table, positions, lengths, logits):
            return paged_prefill_attention(
                q,
                pages,
                pages,
                table,
                query_positions=positions,
                key_lengths=lengths,
                scale=head_dim**-0.5,
                terms=ScoreTerms(**dict.fromkeys(terms, logits), softcap=softcap),
                k_scale=scales,
                v_scale=scales,
                target=current_target(),
                **{"mask": Mask(), **options},
            )

        pages = _array(1024, n_kv, 32, head_dim, dtype=page_dtype)
        scales = _array(1024, n_kv, 32, dtype=jnp.float32)
        args = (
            _array(4, length, n_heads, head_dim, dtype=dtype),
            pages,
            scales if page_dtype == jnp.int8 else None,
            _array(4, 128, dtype=jnp.int32),
            _array(4, length, dtype=jnp.int32),
            _array(4, dtype=jnp.int32),
            _array(n_heads, dtype=jnp.float32),
        )
        return KernelCase(f"paged_prefill_attention {label}", function, args, "prefill")

    yield case("llama 8B", (32, 8), 128)
    window = Mask("window", 1024)
    both = [
        case("head dim 80", (32, 32), 80),
        case("head dim 256, window, softcap", (8, 4), 256, mask=window, softcap=50.0),
        case("int8 pages", (32, 8), 128, page_dtype=jnp.int8),
    ]
    yield from _on(ONE_OF_EACH, both)
    some = [
        case("16 tokens", (32, 8), 128, length=16),
        case("head dim 64, window, sinks", (64, 8), 64, mask=window, terms=("sinks",)),
    ]
    yield from _on(("gfx942",), some)
    yield from _on(
        ("gfx1100",),
        [
            case("head dim 96", (32, 32), 96),
            case("ALiBi", (32, 32), 128, terms=("slopes",)),
        ],
    )
    precise = case("f32", (32, 8), 128, dtype=jnp.float32)
    cdna = tuple(arch for arch in TARGETS if arch.startswith("gfx9"))
    yield dataclasses.replace(precise, tested_on=("gfx942",), targets=cdna)
