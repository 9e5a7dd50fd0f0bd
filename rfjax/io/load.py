"""From a GGUF file to a model on the device: configure, check every tensor, decode, place."""

import dataclasses
import logging
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rfjax.errors import ConfigError, ModelFormatError, UnsupportedError
from rfjax.io.gguf import GGUFFile, read_gguf
from rfjax.io.memory import check_fits
from rfjax.models.config import ModelConfig
from rfjax.models.configure import configure
from rfjax.models.params import Params, ParamSpec, named_leaves, param_spec
from rfjax.quant.formats import FORMATS, dequantize, dequantize_numpy
from rfjax.sharding import leaf_sharding
from rfjax.tokenizer import Tokenizer, load_tokenizer

logger = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16")

_NO_TOKENIZER = ("no_vocab", "none", "test")
"""Values of `tokenizer.ggml.model` that say that there is no tokenizer."""

_IGNORED_STEM = "attn_rot_embd"
"""A computed table that old converters wrote into every layer, and no inference engine reads."""

_EXPERT_STACKS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


@dataclasses.dataclass(frozen=True)
class Model:
    """Weights, configuration and tokenizer of one file.

    `tokenizer` is None for files without a vocabulary: feed token ids.
    """

    params: Params
    config: ModelConfig
    tokenizer: Tokenizer | None
    path: str


def load(
    path: str | os.PathLike[str], *, dtype: str | None = None, mesh: Mesh | None = None
) -> Model:
    """Load a GGUF file, all parts of a split one included.

    Args:
        path: the file, or any part of a split file.
        dtype: of weights and activations: "float32", "bfloat16" or "float16"; None takes bfloat16
            on GPUs and float32 on the CPU. Norms, biases and routers are f32 always.
        mesh: devices to spread the weights over (see `rfjax.sharding`); None takes one device.

    Raises:
        ModelFormatError: malformed or truncated file, inconsistent metadata; or tensors missing,
            unknown or misshapen, all of them listed in one message.
        UnsupportedError: architecture or tensor type not supported.
        CapacityError: the weights would not fit in the device's free memory.
        ConfigError: unknown dtype.
    """
    gguf = read_gguf(path)
    gguf.check_data()
    config = configure(gguf, dtype=resolve_dtype(dtype))
    spec = param_spec(config)
    sources = check_tensors(gguf, spec)
    tokenizer = read_tokenizer(gguf)
    check_fits(gguf, spec, config.dtype, mesh)
    leaves = {
        name: _materialize(gguf, name, leaf, sources[name], config.dtype, mesh)
        for name, leaf in named_leaves(spec).items()
    }
    params = jax.tree.unflatten(jax.tree.structure(spec), leaves.values())
    logger.info("loaded %s: %s, %d tensors", gguf.path, config.architecture, len(leaves))
    return Model(params=params, config=config, tokenizer=tokenizer, path=str(gguf.path))


def resolve_dtype(dtype: str | None) -> str:
    """The dtype to compute in: as asked, or bfloat16 on GPUs and float32 on the CPU."""
    if dtype is None:
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if dtype not in DTYPES:
        raise ConfigError(f"dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}")
    return dtype


def read_tokenizer(gguf: GGUFFile) -> Tokenizer | None:
    """The file's tokenizer, or None where it says that there is none."""
    if gguf.get_str("tokenizer.ggml.model", "none") in _NO_TOKENIZER:
        return None
    return load_tokenizer(gguf)


def check_tensors(gguf: GGUFFile, spec: Params) -> dict[str, tuple[str, ...]]:
    """Match the file's tensors with the model's.

    Returns:
        For every leaf the names of the tensors it is made of: its own, or in old Mixtral files
        one an expert, to be stacked.

    Raises:
        ModelFormatError: one message that lists every missing, unknown and misshapen tensor.
        UnsupportedError: a tensor's type cannot be decoded.
    """
    problems: list[str] = []
    undecodable: list[str] = []
    sources: dict[str, tuple[str, ...]] = {}
    for name, leaf in named_leaves(spec).items():
        found, shape = _find(gguf, name, leaf)
        sources[name] = found
        for source in found:
            info = gguf.tensors[source]
            if info.shape != shape:
                problems.append(f"{source} has shape {info.shape}, expected {shape}")
            elif info.type not in FORMATS:
                undecodable.append(f"{source} has type {info.type.name}")
        if not found:
            problems.append(f"{name} is missing (shape {leaf.shape})")
    wanted = {source for found in sources.values() for source in found}
    for name in gguf.tensors:
        if name not in wanted and name.split(".")[-2:-1] != [_IGNORED_STEM]:
            problems.append(f"{name} is not a tensor of this architecture")
    if problems:
        shown = "\n  ".join(problems[:40])
        more = f"\n  and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise ModelFormatError(
            f"{gguf.path}: {len(problems)} tensors do not fit architecture "
            f"{gguf.architecture!r} with this metadata:\n  {shown}{more}"
        )
    if undecodable:
        raise UnsupportedError(
            f"{gguf.path}: a type cannot be decoded: {'; '.join(undecodable[:40])}; "
            f"supported: {', '.join(t.name for t in FORMATS)}"
        )
    return sources


def _find(gguf: GGUFFile, name: str, leaf: ParamSpec) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names of the tensors that make up a leaf (none if missing), and the shape each must have."""
    if name in gguf.tensors:
        return (name,), leaf.shape
    prefix, _, stem = name.removesuffix(".weight").rpartition(".")
    if stem in _EXPERT_STACKS:
        # Mixtral files of before April 2024 hold one tensor an expert.
        single = stem.removesuffix("_exps")
        parts = tuple(f"{prefix}.{single}.{e}.weight" for e in range(leaf.shape[0]))
        if all(part in gguf.tensors for part in parts):
            return parts, leaf.shape[1:]
    return (), leaf.shape


def _materialize(
    gguf: GGUFFile,
    name: str,
    leaf: ParamSpec,
    sources: tuple[str, ...],
    dtype: str,
    mesh: Mesh | None,
) -> jax.Array:
    """One leaf on its device, decoded from the file's bytes.

    Weights are dequantized here; packed weights will take this function's place.
    """
    target = jnp.dtype("float32" if leaf.wide else dtype)
    parts = [_decode(gguf, source, target, mesh) for source in sources]
    array: Any = parts[0] if len(parts) == 1 else jnp.stack([jnp.asarray(p) for p in parts])
    if mesh is not None:
        return jax.device_put(array, leaf_sharding(mesh, name, leaf.shape, leaf.axes))
    return jnp.asarray(array)


def _decode(
    gguf: GGUFFile, name: str, target: jnp.dtype, mesh: Mesh | None
) -> np.ndarray | jax.Array:
    """A tensor's values; on the host for the CPU and for meshes, else on the device."""
    info = gguf.tensors[name]
    raw = gguf.raw(name)
    if mesh is not None or jax.default_backend() == "cpu":
        return dequantize_numpy(raw, info.type, info.shape).astype(target, copy=False)
    return dequantize(jnp.asarray(raw), info.type, info.shape).astype(target)
