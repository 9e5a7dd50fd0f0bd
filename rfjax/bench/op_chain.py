"""Measures the matrix products of all layers in their order, without attention between them."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from rfjax.bench.roof import Roof
from rfjax.bench.subject import Subject
from rfjax.bench.timing import seconds_per_call
from rfjax.engine.compiler_options import compiler_options
from rfjax.errors import ConfigError
from rfjax.models.config import ModelConfig
from rfjax.models.params import Block
from rfjax.ops.linear import Norm, Projection, gated_linear, linear, linears
from rfjax.quant.qtensor import has_packed
from rfjax.typing import Array, Float

_PASSES = 8
"""Passes of one call."""


@dataclasses.dataclass(frozen=True)
class ChainResult:
    """One pass through the layers measured.

    Attributes:
        model: that the layers are of.
        n_layers: layers.
        m: rows of activations.
        dtype: of the activations.
        implementation: what the operations were asked for: "xla", "pallas" or "auto".
        seconds: of a pass.
        packed_bytes: of the layers' weights on the device.
        copy_share: of the measured copy bandwidth, over these bytes; None if not measured.
    """

    model: str
    n_layers: int
    m: int
    dtype: str
    implementation: str
    seconds: float
    packed_bytes: int
    copy_share: float | None

    @property
    def gb_per_s(self) -> float:
        """Weights read, in 1e9 bytes a second."""
        return self.packed_bytes / self.seconds / 1e9

    def record(self) -> dict[str, object]:
        """Everything as plain values."""
        return {
            "op": "chain",
            **dataclasses.asdict(self),
            "us": self.seconds * 1e6,
            "us_per_layer": self.seconds * 1e6 / self.n_layers,
            "gb_per_s": self.gb_per_s,
        }


def bench_chain(
    subject: Subject, rows: Sequence[int] = (1,), *, repeats: int = 7, roof: Roof | None = None
) -> Iterator[ChainResult]:
    """Measure norms, projections, activation and residuals of all layers, one after the other.

    The queries take the place of attention's result. Everything depends on what came before, as
    in the model, and no layer's weights are read twice in a pass.

    Args:
        subject: a dense model with as many query elements as it is wide.
        rows: rows of activations.
        repeats: samples, of which the median counts.
        roof: measured ceilings; None leaves the share out.

    Raises:
        ConfigError: the model has experts, or attention of another width.
    """
    config = subject.config
    for layer in config.layers:
        if layer.experts is not None or layer.n_heads * layer.head_dim != config.d_model:
            raise ConfigError(
                f"{subject.filename}: a chain needs dense layers whose heads are as wide as the "
                f"model ({config.d_model}); take another shape, such as llama-8b"
            )
    return _results(subject, rows, repeats, roof)


def _results(
    subject: Subject, rows: Sequence[int], repeats: int, roof: Roof | None
) -> Iterator[ChainResult]:
    config = subject.config
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(subject.params.blk))
    options = compiler_options(packed=has_packed(subject.params))
    passes = jax.jit(_passes, static_argnames="config", compiler_options=options)
    run = functools.partial(passes, config=config)
    for m in rows:
        x = jax.random.normal(jax.random.key(m), (m, config.d_model), config.dtype)
        seconds = seconds_per_call(run, subject.params.blk, x, repeats=repeats).median / _PASSES
        yield ChainResult(
            model=subject.filename,
            n_layers=len(config.layers),
            m=m,
            dtype=config.dtype,
            implementation=config.kernels.implementation or "auto",
            seconds=seconds,
            packed_bytes=nbytes,
            copy_share=None if roof is None else nbytes / seconds / roof.copy_bytes_per_s,
        )


def _passes(
    blocks: tuple[Block, ...], x: Float[Array, "M D"], *, config: ModelConfig
) -> tuple[Float[Array, "M D"], list[Array]]:
    """Pass after pass in one loop on the device, as tokens are generated: a single pass a call
    would count the host's launch of hundreds of kernels."""
    chain = functools.partial(_chain, blocks, config=config)
    start = jax.tree.map(lambda y: jnp.zeros(y.shape, y.dtype), jax.eval_shape(chain, x))
    return jax.lax.fori_loop(0, _PASSES, lambda _, carry: chain(carry[0]), (x, start[1]))


def _chain(
    blocks: tuple[Block, ...], x: Float[Array, "M D"], *, config: ModelConfig
) -> tuple[Float[Array, "M D"], list[Array]]:
    """The last layer's result, and all keys and values, which are computed only if asked for."""
    others: list[Array] = []
    for block, layer in zip(blocks, config.layers, strict=True):
        assert block.attn_norm is not None and block.attn_norm.weight is not None
        assert block.ffn_norm is not None and block.ffn_norm.weight is not None
        assert block.ffn_gate is not None
        assert block.ffn_up is not None
        assert block.ffn_down is not None
        assert block.attn_output is not None
        projections = (block.attn_q, block.attn_k, block.attn_v)
        q, k, v = linears(
            x,
            [Projection(p.weight, p.bias) for p in projections if p is not None],
            norm=Norm(block.attn_norm.weight, config.norm_eps),
            policy=config.kernels,
        )
        others += [k, v]
        x = linear(q, block.attn_output.weight, residual=x, policy=config.kernels)
        h = gated_linear(
            x,
            Projection(block.ffn_gate.weight),
            Projection(block.ffn_up.weight),
            layer.activation,
            norm=Norm(block.ffn_norm.weight, config.norm_eps),
            policy=config.kernels,
        )
        x = linear(h, block.ffn_down.weight, residual=x, policy=config.kernels)
    return x, others
