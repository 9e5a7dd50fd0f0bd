"""What a step must move and compute at least, from the shapes: the numerators of the shares."""

import math

import jax
import jax.numpy as jnp

from rfjax.bench.case import Case
from rfjax.models.config import LayerConfig, ModelConfig
from rfjax.models.params import Block, Params, named_leaves, param_spec

_STACKS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


def case_bytes(params: Params, config: ModelConfig, case: Case) -> int:
    """Bytes that generation must read from the device's memory; 0 where there is a prompt too.

    Every step reads the weights once, packed as they are: all but the embedding table, which gives
    single rows (unless it is the output matrix too), and of a mixture the experts that are chosen,
    on average over uniform choices. It reads every key and value in the cache once.
    """
    if not case.n_gen or case.n_prompt:
        return 0
    keys = sum(case.n_depth + i + 1 for i in range(case.n_gen))
    per_key = sum(shape.per_token for shape in config.kv_shapes)
    cached = keys * per_key * jnp.dtype(config.dtype).itemsize * case.n_seqs
    return case.n_gen * weight_bytes(params, config, case.n_seqs) + cached


def weight_bytes(params: Params, config: ModelConfig, n_tokens: int) -> int:
    """Bytes of weights that one step of some tokens reads, as above."""
    total = _nbytes(params.output) + _nbytes(params.output_norm)
    if config.tied_output:
        total += _nbytes(params.token_embd)
    for block, layer in zip(params.blk, config.layers, strict=True):
        total += _nbytes(block) - round(_unread(block, layer, n_tokens))
    return total


def _unread(block: Block, layer: LayerConfig, n_tokens: int) -> float:
    """Bytes of experts that no token chooses."""
    if layer.experts is None:
        return 0.0
    share = (1 - layer.experts.n_used / layer.experts.n_experts) ** n_tokens
    return share * sum(_nbytes(getattr(block, stem)) for stem in _STACKS)


def _nbytes(tree: object) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def case_flops(config: ModelConfig, case: Case) -> int:
    """Floating point operations of matrix products and attention, two a multiplication.

    Counted are the rows of logits that are asked for: after the last token of a prompt, after
    every token generated, and after half of the tokens scored. Attention counts the keys that
    causality leaves.
    """
    length = case.n_score or case.n_prompt + case.n_gen
    logits = case.n_score // 2 or case.n_gen + (1 if case.n_prompt else 0)
    per_token, per_logits = _matrix_elements(config)
    keys = length * case.n_depth + length * (length + 1) // 2
    attention = sum(keys * _attention_elements(layer) for layer in config.layers)
    return 2 * case.n_seqs * (per_token * length + per_logits * logits + attention)


def _attention_elements(layer: LayerConfig) -> int:
    """Elements of keys and values that a query's heads are multiplied with, for each key.

    Of latent attention those of the heads' own keys and values: pages multiply longer vectors.
    """
    value_dim = layer.head_dim if layer.latent is None else layer.latent.value_dim
    return layer.n_heads * (layer.head_dim + value_dim)


def _matrix_elements(config: ModelConfig) -> tuple[int, int]:
    """Weights that every token is multiplied with, and those of the output matrix."""
    total = 0
    for name, leaf in named_leaves(param_spec(config)).items():
        if not name.startswith("blk.") or len(leaf.shape) < 2:
            continue
        experts = config.layers[int(name.split(".")[1])].experts
        elements = math.prod(leaf.shape)
        if experts is not None and "_exps." in name:
            elements = elements // experts.n_experts * experts.n_used
        total += elements
    return total, config.vocab_size * config.d_model
