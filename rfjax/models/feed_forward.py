"""The feed-forward network of a layer: dense, or a sparse mixture of experts."""

import jax
import jax.numpy as jnp

from rfjax.models.config import Experts, LayerConfig, ModelConfig
from rfjax.models.normalize import before_product, normalized
from rfjax.models.params import Block, Linear, Norm
from rfjax.ops.activation import activate
from rfjax.ops.linear import Projection, gated_linear, linear, linears
from rfjax.ops.moe import expert_ffn, route
from rfjax.ops.reduce import exp_below_best, row_sum
from rfjax.typing import Array, Float


def feed_forward(
    block: Block,
    x: Float[Array, "T D"],
    norm: Norm | None,
    residual: Float[Array, "T D"] | None,
    layer: LayerConfig,
    config: ModelConfig,
) -> Float[Array, "T D"]:
    """What the network makes of `x`, added to `residual` where that is given.

    Args:
        block: the layer's weights.
        x: the input.
        norm: of the input, or None.
        residual: to add, or None.
        layer: its mechanisms.
        config: the model's.
    """
    if layer.experts is not None:
        y = _mixture(block, x if norm is None else normalized(x, norm, config), layer, config)
        return y if residual is None else residual + y
    assert block.ffn_up is not None and block.ffn_down is not None
    x, fused = before_product(x, norm, config)
    up, down = _projection(block.ffn_up), block.ffn_down
    if block.ffn_gate is not None:
        gate = _projection(block.ffn_gate)
        hidden = gated_linear(x, gate, up, layer.activation, norm=fused, policy=config.kernels)
    else:
        (hidden,) = linears(x, [up], norm=fused, policy=config.kernels)
        hidden = activate(hidden, layer.activation)
    return linear(hidden, down.weight, down.bias, residual=residual, policy=config.kernels)


def _projection(node: Linear | None) -> Projection:
    assert node is not None
    return Projection(node.weight, node.bias)


def _mixture(
    block: Block, h: Float[Array, "T D"], layer: LayerConfig, config: ModelConfig
) -> Float[Array, "T D"]:
    experts, policy = layer.experts, config.kernels
    assert experts is not None and block.ffn_gate_inp is not None
    router = block.ffn_gate_inp
    logits = linear(h.astype(jnp.float32), router.weight, router.bias, policy=policy)
    weights, chosen = route(
        logits,
        experts.n_used,
        normalize=experts.normalize,
        scale=experts.scale,
        gating=experts.gating,
        selection_bias=None if block.exp_probs_b is None else block.exp_probs_b.bias,
        n_groups=experts.n_groups,
        n_groups_used=experts.n_groups_used,
    )
    y = expert_ffn(
        h,
        weights,
        chosen,
        _projection(block.ffn_gate_exps),
        _projection(block.ffn_up_exps),
        _projection(block.ffn_down_exps),
        layer.activation,
        policy=policy,
    )
    if not experts.shared_dim:
        return y
    return y + _shared(block, h, experts, layer, config)


def _shared(
    block: Block,
    h: Float[Array, "T D"],
    experts: Experts,
    layer: LayerConfig,
    config: ModelConfig,
) -> Float[Array, "T D"]:
    """The network that every token passes."""
    with jax.named_scope("shared_expert"):
        gate, up = _projection(block.ffn_gate_shexp), _projection(block.ffn_up_shexp)
        down = _projection(block.ffn_down_shexp)
        hidden = gated_linear(h, gate, up, layer.activation, policy=config.kernels)
        y = linear(hidden, down.weight, policy=config.kernels)
        if block.ffn_gate_inp_shexp is None:
            return y
        products = h.astype(jnp.float32) * block.ffn_gate_inp_shexp.weight[None, :]
        logits = row_sum(products)
        share = 1.0 / (1.0 + exp_below_best(-logits, jnp.zeros_like(logits)))
        # Held as it is: XLA would contract the product with the sum for some shapes only.
        return jax.lax.optimization_barrier(y * share.astype(y.dtype))
