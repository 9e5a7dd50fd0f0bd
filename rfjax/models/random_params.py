"""Random weights of a model, made on the device: no file is needed."""

import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from rfjax.errors import ConfigError
from rfjax.models.config import ModelConfig
from rfjax.models.params import Params, ParamSpec, named_leaves, param_spec
from rfjax.models.type_mix import MixModel, type_of
from rfjax.quant.formats import dequantize
from rfjax.quant.qtensor import Weight, pack
from rfjax.quant.random_blocks import with_scales
from rfjax.quant.types import BLOCK_SIZES, NATIVE_DTYPES, GGMLType
from rfjax.typing import Array, UInt8


def tensor_types(config: ModelConfig, mix: str, model: MixModel) -> dict[str, GGMLType]:
    """The type that a mix gives every tensor of a model, by GGUF name.

    Raises:
        ConfigError: there is no such mix.
    """
    spec = param_spec(config)
    return {
        name: GGMLType.F32 if leaf.wide else type_of(name, leaf.shape, mix, model)
        for name, leaf in named_leaves(spec).items()
    }


def stored_bytes(config: ModelConfig, types: Mapping[str, GGMLType]) -> int:
    """Bytes of all tensors as a file stores them."""
    total = 0
    for name, leaf in named_leaves(param_spec(config)).items():
        elements, size = BLOCK_SIZES[types[name]]
        total += math.prod(leaf.shape) // elements * size
    return total


def random_params(
    config: ModelConfig, types: Mapping[str, GGMLType], *, seed: int = 0, packed: bool = True
) -> Params:
    """Weights under which activations neither vanish nor explode.

    A matrix's values have mean 0 and a standard deviation of `columns ** -0.5`, whatever its type;
    quantized ones are blocks of random bits with scales to that end. Norms are ones, biases zeros.
    Made tensor by tensor, so that beside the model there is never more than one tensor's blocks.

    Args:
        config: the model.
        types: type of every tensor by GGUF name, as `tensor_types` gives them.
        seed: of the random numbers; the same seed gives the same weights.
        packed: whether matrices stay in their types, or become plain numbers of the model's dtype.

    Raises:
        ConfigError: a tensor's rows are not whole blocks of its type.
    """
    spec = param_spec(config)
    key = jax.random.key(seed)
    leaves = [
        _random_leaf(
            jax.random.fold_in(key, i), name, leaf, types[name], None if packed else config.dtype
        )
        for i, (name, leaf) in enumerate(named_leaves(spec).items())
    ]
    return jax.tree.unflatten(jax.tree.structure(spec), leaves)


def _random_leaf(
    key: Array, name: str, leaf: ParamSpec, type: GGMLType, dtype: str | None
) -> Weight:
    if len(leaf.shape) == 1:
        value = 0.0 if name.endswith(".bias") else 1.0
        return jnp.full(leaf.shape, value, jnp.float32)
    if leaf.wide:
        return random_weight(key, leaf.shape, GGMLType.F32)
    return random_weight(key, leaf.shape, type, dtype)


def random_weight(
    key: Array, shape: tuple[int, ...], type: GGMLType, dtype: str | None = None
) -> Weight:
    """One random matrix or stack of them, as `random_params` describes it.

    Args:
        key: of the random numbers.
        shape: `[N, K]` or `[E, N, K]`.
        type: F32, F16, BF16 or a quantized type.
        dtype: of plain numbers to make of it; None keeps the type.

    Returns:
        An array of the plain type or of `dtype`, or a `QTensor`.

    Raises:
        ConfigError: K is not whole blocks of the type.
    """
    block = BLOCK_SIZES[type][0]
    if shape[-1] % block:
        raise ConfigError(
            f"a random weight of shape {shape}: rows of {shape[-1]} elements are not whole blocks "
            f"of {type.name} ({block} elements)"
        )
    return _jitted_weight()(key, shape, type, dtype)


@functools.cache
def _jitted_weight():
    def make(key: Array, shape: tuple[int, ...], type: GGMLType, dtype: str | None) -> Weight:
        deviation = shape[-1] ** -0.5
        if type in NATIVE_DTYPES:
            values = jax.random.normal(key, shape, jnp.float32) * jnp.float32(deviation)
            return values.astype(NATIVE_DTYPES[type] if dtype is None else dtype)
        blocks = random_blocks(key, shape, type, deviation)
        return (
            pack(blocks, type) if dtype is None else dequantize(blocks, type, shape).astype(dtype)
        )

    return jax.jit(make, static_argnames=("shape", "type", "dtype"))


def random_blocks(
    key: Array, shape: tuple[int, ...], type: GGMLType, deviation: float
) -> UInt8[Array, "*N blocks bytes"]:
    """A quantized tensor as a file would hold it; traceable."""
    elements, size = BLOCK_SIZES[type]
    n_blocks = shape[-1] // elements
    row = n_blocks * size
    # Whole words: a random byte costs as much as a random word.
    words = jax.random.bits(key, (*shape[:-1], -(-row // 4)), jnp.uint32)
    data = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*shape[:-1], -1)
    return with_scales(data[..., :row].reshape(*shape[:-1], n_blocks, size), type, deviation)
