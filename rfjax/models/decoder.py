"""The one decoder: every architecture is this function over a different `ModelConfig`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from rfjax.cache.dense import DenseCache, LayerCache, append
from rfjax.cache.paged import LayerPages, PagedCache, append_pages
from rfjax.models.attention_inputs import AttentionInputs, whole_rows
from rfjax.models.config import LayerConfig, ModelConfig
from rfjax.models.params import Block, Linear, Params
from rfjax.ops.attention import attention
from rfjax.ops.decode_attention import decode_attention
from rfjax.ops.linear import Norm, Projection, embed, gated_linear, linear, linears
from rfjax.ops.moe import expert_ffn, route
from rfjax.ops.norm import rms_norm
from rfjax.ops.paged_attention import paged_attention
from rfjax.ops.paged_decode_attention import paged_decode_attention
from rfjax.ops.rope import Rope, apply_rope, rope_tables
from rfjax.typing import Array, Float, Int

Cache = DenseCache | PagedCache
LayerView = LayerCache | tuple[LayerPages, Int[Array, "B M"]] | None
"""A layer's part of the cache; of a paged one, with the rows' tables."""


def forward(
    params: Params, tokens: Int[Array, " T"], *, config: ModelConfig
) -> Float[Array, "T V"]:
    """Logits after every token of one sequence, f32, from an empty context.

    Equivalent to `log p(next | tokens[:t+1])` up to normalisation, for every t. Pure: compose it
    with `jax.jit(..., static_argnames="config")`, `jax.vmap` and `jax.grad`.

    Args:
        tokens: token ids in `[0, V)`; logits after any other id are NaN.
    """
    length = tokens.shape[0]
    inputs = whole_rows(jnp.full((1,), length, jnp.int32), length)
    hidden, _ = hidden_states(params, tokens, inputs, None, config=config)
    return project(params, hidden, config=config)


def hidden_states(
    params: Params,
    tokens: Int[Array, " T"],
    inputs: AttentionInputs,
    cache: Cache | None,
    *,
    config: ModelConfig,
) -> tuple[Float[Array, "T D"], Cache | None]:
    """Final hidden states (after the output norm) of T flat tokens, and the written cache.

    Without a cache the rows attend within themselves and must start at position 0; with one, the
    step's keys and values are written at their positions first, and attention reads the cache.

    Args:
        tokens: ids, int32 [T] for T = B * L; what stands at padding does not matter.
        inputs: the B rows of L tokens: positions, key lengths, and page tables of a paged cache.
        cache: of B rows, as `rfjax.cache.dense.init_cache` makes it; or pages, which any rows
            share (`rfjax.cache.paged`); or None.

    Returns:
        Hidden states in the config's dtype, and the cache with this step in it (None without).
    """
    with jax.named_scope("token_embd"):
        x = embed(tokens, params.token_embd.weight, jnp.dtype(config.dtype))

    # Layers of one rotation share its tables.
    factors = None if params.rope_freqs is None else params.rope_freqs.weight

    @functools.cache
    def tables(rope: Rope):
        return rope_tables(rope, inputs.flat_positions, factors)

    layers = []
    for i, (block, layer) in enumerate(zip(params.blk, config.layers, strict=True)):
        with jax.named_scope(f"blk.{i}"):
            view = _view(cache, inputs, i)
            x, written = _attention_block(block, x, inputs, view, tables(layer.rope), layer, config)
            with jax.named_scope("ffn"):
                x = _ffn_block(block, x, layer, config)
            layers.append(written)

    with jax.named_scope("output_norm"):
        x = rms_norm(x, params.output_norm.weight, config.norm_eps)
    return x, None if cache is None else dataclasses.replace(cache, layers=tuple(layers))


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
        return linear(
            hidden,
            output.weight,
            output.bias,
            out_dtype=jnp.dtype("float32"),
            policy=config.kernels,
        )


def _attention_block(
    block: Block,
    x: Float[Array, "T D"],
    inputs: AttentionInputs,
    cache: LayerView,
    tables: tuple[Array, Array],
    layer: LayerConfig,
    config: ModelConfig,
) -> tuple[Float[Array, "T D"], LayerCache | LayerPages | None]:
    """`x` and what attention adds to it, and the layer's written cache."""
    eps, policy = config.norm_eps, config.kernels
    with jax.named_scope("qkv"):
        stems = (block.attn_q, block.attn_k, block.attn_v)
        norm = Norm(block.attn_norm.weight, eps)
        projected = linears(
            x, [Projection(p.weight, p.bias) for p in stems], norm=norm, policy=policy
        )
        counts = (layer.n_heads, layer.n_kv_heads, layer.n_kv_heads)
        q, k, v = (y.reshape(y.shape[0], n, -1) for y, n in zip(projected, counts, strict=True))
    one = cache is not None and inputs.positions.shape[1] == 1
    attend = _attend_one if one else _attend_rows
    attended, written = attend(block, q, k, v, inputs, cache, tables, layer, config)
    with jax.named_scope("attn_output"):
        output = block.attn_output
        return linear(attended, output.weight, output.bias, residual=x, policy=policy), written


def _temperature(layer: LayerConfig, inputs: AttentionInputs) -> Float[Array, " T"] | None:
    """What multiplies each token's queries, f32."""
    if layer.temperature is None:
        return None
    steps = (inputs.flat_positions // layer.temperature.length).astype(jnp.float32)
    return 1.0 + jnp.log(steps + 1.0) * jnp.float32(layer.temperature.scale)


def _attend_one(block, q, k, v, inputs, cache, tables, layer, config):
    """A decode step: one token a row, from its heads to the written cache."""
    with jax.named_scope("attention"):
        if isinstance(cache, tuple):
            attend = functools.partial(paged_decode_attention, q, k, v, *cache)
        else:
            attend = functools.partial(
                decode_attention, q, k, v, cache, key_lengths=inputs.key_lengths
            )
        cos, sin = tables
        return attend(
            cos=cos,
            sin=sin,
            positions=inputs.positions[:, 0],
            mask=layer.mask,
            scale=layer.attention_scale,
            pairing=layer.rope.pairing,
            eps=config.norm_eps,
            q_norm=None if block.attn_q_norm is None else block.attn_q_norm.weight,
            k_norm=None if block.attn_k_norm is None else block.attn_k_norm.weight,
            q_multiplier=_temperature(layer, inputs),
            policy=config.kernels,
        )


def _attend_rows(block, q, k, v, inputs, cache, tables, layer, config):
    """Rows of tokens: prefill into a cache, or scoring without one."""
    batch, length = inputs.positions.shape
    if block.attn_q_norm is not None and block.attn_k_norm is not None:
        q = rms_norm(q, block.attn_q_norm.weight, config.norm_eps)
        k = rms_norm(k, block.attn_k_norm.weight, config.norm_eps)
    with jax.named_scope("rope"):
        cos, sin = tables
        q = apply_rope(q, cos, sin, layer.rope.pairing)
        k = apply_rope(k, cos, sin, layer.rope.pairing)
        grown = _temperature(layer, inputs)
        if grown is not None:
            q = (q.astype(jnp.float32) * grown[:, None, None]).astype(q.dtype)
    rows = lambda y: y.reshape(batch, length, *y.shape[1:])  # noqa: E731
    with jax.named_scope("attention"):
        if isinstance(cache, tuple):
            pages, table = cache
            pages = append_pages(pages, table, rows(k), rows(v), inputs.positions)
            out = paged_attention(
                rows(q),
                pages,
                table,
                query_positions=inputs.positions,
                key_lengths=inputs.key_lengths,
                mask=layer.mask,
                scale=layer.attention_scale,
                policy=config.kernels,
            )
            return out.reshape(batch * length, -1), pages
        if cache is None:
            keys, values = rows(k).transpose(0, 2, 1, 3), rows(v).transpose(0, 2, 3, 1)
            # Held as they are: folded into the products, the transpositions would change the
            # order of the sums (see `rfjax.ops.attention`).
            keys, values = jax.lax.optimization_barrier((keys, values))
        else:
            cache = append(cache, rows(k), rows(v), inputs.positions)
            keys, values = cache.k, cache.v
        out = attention(
            rows(q),
            keys,
            values,
            query_positions=inputs.positions,
            key_lengths=inputs.key_lengths,
            mask=layer.mask,
            scale=layer.attention_scale,
            keys_are_queries=cache is None,
            policy=config.kernels,
        )
        return out.reshape(batch * length, -1), cache


def _ffn_block(
    block: Block, x: Float[Array, "T D"], layer: LayerConfig, config: ModelConfig
) -> Float[Array, "T D"]:
    """`x` and what the feed-forward network adds to it."""
    norm, policy = Norm(block.ffn_norm.weight, config.norm_eps), config.kernels
    if layer.experts is not None:
        router, gate, up, down = (
            block.ffn_gate_inp,
            block.ffn_gate_exps,
            block.ffn_up_exps,
            block.ffn_down_exps,
        )
        assert router is not None and gate is not None and up is not None and down is not None
        h = rms_norm(x, *norm)
        logits = linear(h.astype(jnp.float32), router.weight, policy=policy)
        weights, chosen = route(
            logits,
            layer.experts.n_used,
            normalize=layer.experts.normalize,
            scale=layer.experts.scale,
        )
        return x + expert_ffn(
            h,
            weights,
            chosen,
            Projection(gate.weight, gate.bias),
            Projection(up.weight, up.bias),
            Projection(down.weight, down.bias),
            layer.activation,
            policy=policy,
        )
    gate, up, down = block.ffn_gate, block.ffn_up, block.ffn_down
    assert gate is not None and up is not None and down is not None
    hidden = gated_linear(
        x,
        Projection(gate.weight, gate.bias),
        Projection(up.weight, up.bias),
        layer.activation,
        norm=norm,
        policy=policy,
    )
    return linear(hidden, down.weight, down.bias, residual=x, policy=policy)
