"""The model that is measured: from a file, or random weights of a named shape."""

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from rfjax.errors import CapacityError
from rfjax.io.gguf import read_gguf
from rfjax.io.load import Model, load, resolve_dtype
from rfjax.io.memory import free_bytes, gib
from rfjax.io.storage import resolve_weights
from rfjax.models.config import ModelConfig
from rfjax.models.params import Params, named_leaves, param_spec, parameter_count
from rfjax.models.random_params import random_params, stored_bytes, tensor_types
from rfjax.models.shape import load_shape
from rfjax.models.type_mix import check_mix
from rfjax.ops.dispatch import KernelPolicy
from rfjax.quant.qtensor import QTensor
from rfjax.quant.types import BLOCK_SIZES, GGMLType

_DEFAULT_MIX = "q4_k_m"


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model on the device, and what a report says of it.

    Attributes:
        params: the weights.
        config: everything else.
        weights: "packed" or "dequantized": what became of the matrices.
        bos_id: token that starts a sequence where the vocabulary adds one.
        filename: of the file, or the name of the shape and mix.
        description: architecture, size and type of most weights, such as "llama 8B Q4_K_M".
        stored_bytes: of all tensors as a file stores them.
        n_params: weights.
    """

    params: Params
    config: ModelConfig
    weights: str
    bos_id: int | None
    filename: str
    description: str
    stored_bytes: int
    n_params: int


def from_file(
    path: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    weights: str | None = None,
    policy: KernelPolicy | None = None,
) -> Subject:
    """Load a GGUF file.

    Args:
        path: the file.
        dtype, weights: as of `rfjax.load`.
        policy: which kernels may run; None takes the default.

    Raises:
        ModelFormatError, UnsupportedError, CapacityError, ConfigError: as `rfjax.load`.
    """
    return from_model(load(path, dtype=dtype, weights=weights, kernels=policy))


def from_model(model: Model) -> Subject:
    """A model that is loaded already; its file's header is read again.

    Raises:
        ModelFormatError: the file is gone or damaged.
    """
    gguf = read_gguf(model.path)
    by_type: Counter[str] = Counter()
    for info in gguf.tensors.values():
        by_type[info.type.name] += math.prod(info.shape)
    n_params = sum(by_type.values())
    label = gguf.get_str("general.size_label", "") or _rounded(n_params)
    tokenizer = model.tokenizer
    return Subject(
        params=model.params,
        config=model.config,
        weights="packed" if _any_packed(model.params) else "dequantized",
        bos_id=tokenizer.bos_id if tokenizer is not None and tokenizer.add_bos else None,
        filename=model.path,
        description=f"{model.config.architecture} {label} {by_type.most_common(1)[0][0]}",
        stored_bytes=sum(
            math.prod(info.shape) // BLOCK_SIZES[info.type][0] * BLOCK_SIZES[info.type][1]
            for info in gguf.tensors.values()
        ),
        n_params=n_params,
    )


def from_shape(
    name: str,
    *,
    dtype: str | None = None,
    weights: str | None = None,
    policy: KernelPolicy | None = None,
    seed: int = 0,
) -> Subject:
    """Random weights, made on the device.

    Args:
        name: `shape:mix`, such as `llama-8b:q4_k_m`: a shape of `rfjax.models.shape` and a mix of
            `rfjax.models.type_mix`; without a mix q4_k_m.
        dtype: of the activations; None takes bfloat16 on GPUs and float32 on the CPU.
        weights: "packed" keeps the types of the mix, "dequantized" makes plain numbers of `dtype`;
            None takes packed on GPUs and dequantized on the CPU, as files are loaded.
        policy: which kernels may run; None takes the default.
        seed: of the weights.

    Raises:
        ConfigError: no such shape, mix or dtype.
        CapacityError: the weights would not fit in the device's free memory.
    """
    shape_name, _, mix = name.partition(":")
    mix = check_mix(mix or _DEFAULT_MIX)
    shape = load_shape(shape_name)
    config = shape.model_config(resolve_dtype(dtype))
    if policy is not None:
        config = dataclasses.replace(config, kernels=policy)
    kind = resolve_weights(weights) or default_weights()
    types = tensor_types(config, mix, shape.mix_model())
    _check_room(name, config, types, packed=kind == "packed")
    return Subject(
        params=random_params(config, types, seed=seed, packed=kind == "packed"),
        config=config,
        weights=kind,
        bos_id=None,
        filename=f"{shape_name}:{mix}",
        description=f"{shape.architecture} {shape.label} {mix.upper()}",
        stored_bytes=stored_bytes(config, types),
        n_params=parameter_count(param_spec(config)),
    )


def default_weights() -> str:
    """What becomes of weights where nobody asks, on the default device; see `rfjax.load`."""
    return "dequantized" if jax.default_backend() == "cpu" else "packed"


def _any_packed(params: Params) -> bool:
    leaves = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, QTensor))
    return any(isinstance(leaf, QTensor) for leaf in leaves)


def _check_room(
    name: str, config: ModelConfig, types: Mapping[str, GGMLType], *, packed: bool
) -> None:
    """The weights, and the largest tensor twice more while it is made."""
    sizes = []
    for leaf_name, leaf in named_leaves(param_spec(config)).items():
        elements, size = BLOCK_SIZES[types[leaf_name]]
        if not packed and not leaf.wide:
            elements, size = 1, jnp.dtype(config.dtype).itemsize
        sizes.append(math.prod(leaf.shape) // elements * size)
    needed, free = sum(sizes) + 2 * max(sizes), free_bytes(jax.devices()[0])
    if free is not None and needed > free:
        raise CapacityError(
            f"{name}: making the weights takes {gib(needed)}, and {gib(free)} are free: take a "
            "smaller shape, a narrower mix or dtype, or packed weights"
        )


def _rounded(n: int) -> str:
    """A count of weights as people say it: `8.0B`, `3.4M`."""
    return f"{n / 1e9:.1f}B" if n >= 10**9 else f"{n / 1e6:.1f}M"
