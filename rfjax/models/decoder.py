"""The one decoder: every architecture is this function over a different `ModelConfig`."""

import functools

import jax
import jax.numpy as jnp

from rfjax.cache.dense import DenseCache, LayerCache, append
from rfjax.models.attention_inputs import AttentionInputs, whole_rows
from rfjax.models.config import LayerConfig, ModelConfig
from rfjax.models.params import Block, Linear, Params
from rfjax.ops.activation import gated
from rfjax.ops.attention import attention
from rfjax.ops.linear import embed, linear
from rfjax.ops.moe import expert_ffn, route
from rfjax.ops.norm import rms_norm
from rfjax.ops.rope import Rope, apply_rope, rope_tables
from rfjax.typing import Array, Float, Int


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
    cache: DenseCache | None,
    *,
    config: ModelConfig,
) -> tuple[Float[Array, "T D"], DenseCache | None]:
    """Final hidden states (after the output norm) of T flat tokens, and the written cache.

    Without a cache the rows attend within themselves and must start at position 0; with one, the
    step's keys and values are written at their positions first, and attention reads the cache.

    Args:
        tokens: ids, int32 [T] for T = B * L; what stands at padding does not matter.
        inputs: the B rows of L tokens: positions and key lengths.
        cache: of B rows, as `rfjax.cache.dense.init_cache` makes it, or None.

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
            layer_cache = None if cache is None else cache.layers[i]
            attended, written = _attention_block(
                block, x, inputs, layer_cache, tables(layer.rope), layer, config.norm_eps
            )
            x = x + attended
            with jax.named_scope("ffn"):
                x = x + _ffn_block(
                    block, rms_norm(x, block.ffn_norm.weight, config.norm_eps), layer
                )
            layers.append(written)

    with jax.named_scope("output_norm"):
        x = rms_norm(x, params.output_norm.weight, config.norm_eps)
    return x, None if cache is None else DenseCache(layers=tuple(layers))


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
        return linear(hidden, output.weight, output.bias, out_dtype=jnp.dtype("float32"))


def _project_heads(x: Array, projection: Linear, n_heads: int) -> Array:
    y = linear(x, projection.weight, projection.bias)
    return y.reshape(y.shape[0], n_heads, -1)


def _attention_block(
    block: Block,
    x: Float[Array, "T D"],
    inputs: AttentionInputs,
    cache: LayerCache | None,
    tables: tuple[Array, Array],
    layer: LayerConfig,
    eps: float,
) -> tuple[Float[Array, "T D"], LayerCache | None]:
    batch, length = inputs.positions.shape
    with jax.named_scope("qkv"):
        h = rms_norm(x, block.attn_norm.weight, eps)
        q = _project_heads(h, block.attn_q, layer.n_heads)
        k = _project_heads(h, block.attn_k, layer.n_kv_heads)
        v = _project_heads(h, block.attn_v, layer.n_kv_heads)
        if block.attn_q_norm is not None and block.attn_k_norm is not None:
            q = rms_norm(q, block.attn_q_norm.weight, eps)
            k = rms_norm(k, block.attn_k_norm.weight, eps)
    with jax.named_scope("rope"):
        cos, sin = tables
        q = apply_rope(q, cos, sin, layer.rope.pairing)
        k = apply_rope(k, cos, sin, layer.rope.pairing)
        if layer.temperature is not None:
            steps = (inputs.flat_positions // layer.temperature.length).astype(jnp.float32)
            grown = 1.0 + jnp.log(steps + 1.0) * jnp.float32(layer.temperature.scale)
            q = (q.astype(jnp.float32) * grown[:, None, None]).astype(q.dtype)
    rows = lambda y: y.reshape(batch, length, *y.shape[1:])  # noqa: E731
    with jax.named_scope("attention"):
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
        )
    with jax.named_scope("attn_output"):
        out = out.reshape(batch * length, -1)
        return linear(out, block.attn_output.weight, block.attn_output.bias), cache


def _ffn_block(block: Block, h: Float[Array, "T D"], layer: LayerConfig) -> Float[Array, "T D"]:
    if layer.experts is not None:
        router, gate, up, down = (
            block.ffn_gate_inp,
            block.ffn_gate_exps,
            block.ffn_up_exps,
            block.ffn_down_exps,
        )
        assert router is not None and gate is not None and up is not None and down is not None
        logits = linear(h.astype(jnp.float32), router.weight)
        weights, chosen = route(
            logits,
            layer.experts.n_used,
            normalize=layer.experts.normalize,
            scale=layer.experts.scale,
        )
        return expert_ffn(h, weights, chosen, gate.weight, up.weight, down.weight, layer.activation)
    gate, up, down = block.ffn_gate, block.ffn_up, block.ffn_down
    assert gate is not None and up is not None and down is not None
    hidden = gated(
        linear(h, gate.weight, gate.bias), linear(h, up.weight, up.bias), layer.activation
    )
    return linear(hidden, down.weight, down.bias)
