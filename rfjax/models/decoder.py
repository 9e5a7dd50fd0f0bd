"""The one decoder: every architecture is this function over a different `ModelConfig`."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import overload

import jax
import jax.numpy as jnp

from rfjax.cache.dense import DenseCache, LayerCache
from rfjax.cache.paged import LayerPages, PagedCache
from rfjax.models.attention_inputs import AttentionInputs, LayerView, whole_rows
from rfjax.models.config import LayerConfig, ModelConfig
from rfjax.models.feed_forward import feed_forward
from rfjax.models.latent_attention import latent_attention
from rfjax.models.normalize import before_product, normalized
from rfjax.models.params import Block, Linear, Norm, Params
from rfjax.models.plain_attention import Tables, plain_attention
from rfjax.models.taps import NO_POINTS, Edit, Point, Points, make_points, passed
from rfjax.ops.linear import embed, linear
from rfjax.ops.logits import finished
from rfjax.ops.rope import Rope, rope_tables
from rfjax.typing import Array, Float, Int

Cache = DenseCache | PagedCache


@overload
def forward(
    params: Params,
    tokens: Int[Array, " T"],
    *,
    config: ModelConfig,
    edits: Mapping[str, Edit] | None = None,
) -> Float[Array, "T V"]: ...


@overload
def forward(
    params: Params,
    tokens: Int[Array, " T"],
    *,
    config: ModelConfig,
    taps: Sequence[str],
    edits: Mapping[str, Edit] | None = None,
) -> tuple[Float[Array, "T V"], dict[str, Float[Array, "T D"]]]: ...


def forward(
    params: Params,
    tokens: Int[Array, " T"],
    *,
    config: ModelConfig,
    taps: Sequence[str] = (),
    edits: Mapping[str, Edit] | None = None,
) -> Float[Array, "T V"] | tuple[Float[Array, "T V"], dict[str, Float[Array, "T D"]]]:
    """Logits after every token of one sequence, f32, from an empty context.

    Equivalent to `log p(next | tokens[:t+1])` up to normalisation, for every t. Pure: compose it
    with `jax.jit(..., static_argnames=("config", "taps"))`, `jax.vmap` and `jax.grad`.

    Args:
        params: the weights.
        tokens: token ids in `[0, V)`; logits after any other id are NaN.
        config: the model's.
        taps: names of points (see `rfjax.models.taps`) whose activations are returned as well.
        edits: by name of a point, a pure function of the activations `[T, D]` there, with whose
            result the model goes on; a tap gives that result. Functions may close over arrays that
            are traced.

    Returns:
        The logits; with taps, the logits and activations by name, `[T, D]` in the config's dtype.

    Raises:
        RequestError: a name of no point, or an edit that changes the shape or the dtype.
    """
    points = make_points(config, taps, edits)
    length = tokens.shape[0]
    inputs = whole_rows(jnp.full((1,), length, jnp.int32), length)
    hidden, _ = hidden_states(params, tokens, inputs, None, config=config, points=points)
    logits = project(params, hidden, config=config)
    return (logits, {name: points[name].values[0] for name in taps}) if taps else logits


def hidden_states(
    params: Params,
    tokens: Int[Array, " T"],
    inputs: AttentionInputs,
    cache: Cache | None,
    *,
    config: ModelConfig,
    points: Points = NO_POINTS,
) -> tuple[Float[Array, "T D"], Cache | None]:
    """Final hidden states (after the output norm) of T flat tokens, and the written cache.

    Without a cache the rows attend within themselves and must start at position 0; with one, the
    step's keys and values are written at their positions first, and attention reads the cache.

    Args:
        tokens: ids, int32 [T] for T = B * L; what stands at padding does not matter.
        inputs: the B rows of L tokens: positions, key lengths, and page tables of a paged cache.
        cache: of B rows, as `rfjax.cache.dense.init_cache` makes it; or pages, which any rows
            share (`rfjax.cache.paged`); or None.
        config: the model's.
        points: where activations are read or edited.

    Returns:
        Hidden states in the config's dtype, and the cache with this step in it (None without).
    """
    with jax.named_scope("token_embd"):
        x = passed(points.get("token_embd"), embedded(params, tokens, inputs, config=config))

    @functools.cache  # layers of one rotation share its tables
    def tables(rope: Rope | None) -> Tables | None:
        return rotation(params, rope, inputs, config=config)

    layers = []
    for i, (block, layer) in enumerate(zip(params.blk, config.layers, strict=True)):
        with jax.named_scope(f"blk.{i}"):
            view = _view(cache, inputs, i)
            within = points.get(f"blk.{i}.attn_output"), points.get(f"blk.{i}.ffn")
            x, written = run_layer(
                block, x, inputs, view, tables(layer.rope), layer, config, within
            )
            x = passed(points.get(f"blk.{i}"), x)
            layers.append(written)

    with jax.named_scope("output_norm"):
        x = passed(points.get("output_norm"), normalized(x, params.output_norm, config))
    return x, None if cache is None else dataclasses.replace(cache, layers=tuple(layers))


def embedded(
    params: Params, tokens: Int[Array, " T"], inputs: AttentionInputs, *, config: ModelConfig
) -> Float[Array, "T D"]:
    """What the first layer reads, in the config's dtype. Of the tree only embeddings are read."""
    dtype = jnp.dtype(config.dtype)
    x = embed(tokens, params.token_embd.weight, dtype)
    if config.embedding_scale != 1.0:
        scaled = x.astype(jnp.float32) * jnp.float32(config.embedding_scale)
        x = jax.lax.optimization_barrier(scaled.astype(dtype))
    if params.position_embd is not None:
        x = x + embed(inputs.flat_positions, params.position_embd.weight, dtype)
    if params.token_embd_norm is not None:
        x = jax.lax.optimization_barrier(normalized(x, params.token_embd_norm, config))
    return x


def rotation(
    params: Params, rope: Rope | None, inputs: AttentionInputs, *, config: ModelConfig
) -> Tables | None:
    """Cosines and sines of a layer's rotation at the positions of `inputs`; None without one."""
    if rope is None:
        return None
    factors = None
    if config.rope_factors is not None:
        factors = getattr(params, config.rope_factors).weight
    return rope_tables(rope, inputs.flat_positions, factors)


def _view(cache: Cache | None, inputs: AttentionInputs, number: int) -> LayerView:
    """What a layer has of the cache."""
    if cache is None:
        return None
    if isinstance(cache, PagedCache):
        return cache.layers[number], inputs.tables[cache.groups[number]]
    return cache.layers[number]


def output_projection(params: Params) -> Linear:
    """The output matrix `[V, D]`: its own, or the embedding table where the two are tied."""
    if params.output is None:
        return params.token_embd
    if params.output.weight is None:
        return Linear(params.token_embd.weight, params.output.bias)
    return params.output


def project(
    params: Params, hidden: Float[Array, "T D"], *, config: ModelConfig
) -> Float[Array, "T V"]:
    """Logits of final hidden states, f32."""
    with jax.named_scope("output"):
        output = output_projection(params)
        logits = linear(
            hidden,
            output.weight,
            output.bias,
            out_dtype=jnp.dtype("float32"),
            policy=config.kernels,
        )
        return finished(logits, config.logit_scale, config.final_softcap)


def run_layer(
    block: Block,
    x: Float[Array, "T D"],
    inputs: AttentionInputs,
    cache: LayerView,
    tables: Tables | None,
    layer: LayerConfig,
    config: ModelConfig,
    points: tuple[Point | None, Point | None] = (None, None),
) -> tuple[Float[Array, "T D"], LayerCache | LayerPages | None]:
    """`x` and what attention and feed-forward network add to it, and the layer's written cache.

    `tables` are those of the layer's rotation at the positions of `inputs`, and `points` those of
    what attention and network add.
    """
    attend = plain_attention if layer.latent is None else latent_attention
    of_attention = block.attn_norm if block.attn_norm_2 is None else block.attn_norm_2
    h, norm = before_product(x, of_attention, config)
    attended, written = attend(block, h, norm, inputs, cache, tables, layer, config)
    output = block.attn_output
    assert output is not None

    def attention(residual: Array | None) -> Array:
        with jax.named_scope("attn_output"):
            return linear(
                attended, output.weight, output.bias, residual=residual, policy=config.kernels
            )

    y = _add(x, attention, block.post_attention_norm, layer, config, points[0])
    read, of_network = (x if layer.parallel else y), block.ffn_norm
    if layer.parallel and of_network is None:
        of_network = block.attn_norm

    def network(residual: Array | None) -> Array:
        with jax.named_scope("ffn"):
            return feed_forward(block, read, of_network, residual, layer, config)

    return _add(y, network, block.post_ffw_norm, layer, config, points[1]), written


def _add(
    x: Float[Array, "T D"],
    branch: Callable[[Array | None], Array],
    norm: Norm | None,
    layer: LayerConfig,
    config: ModelConfig,
    point: Point | None,
) -> Float[Array, "T D"]:
    """`x` and what a branch makes: in the branch's own product where nothing comes in between."""
    if norm is None and layer.residual_scale == 1.0 and point is None:
        return branch(x)
    y = branch(None)
    if norm is not None:
        y = normalized(y, norm, config)
    if layer.residual_scale != 1.0:
        y = (y.astype(jnp.float32) * jnp.float32(layer.residual_scale)).astype(x.dtype)
    # Held as it is: XLA would contract a product with the sum for some shapes only.
    return x + jax.lax.optimization_barrier(passed(point, y))
