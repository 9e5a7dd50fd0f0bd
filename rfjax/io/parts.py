"""A model whose weights are loaded part by part, for those that do not fit on a device whole."""

import dataclasses
import os
from collections.abc import Iterable
from typing import Any

import jax

from rfjax.io.gguf import GGUFFile, read_gguf
from rfjax.io.load import (
    check_tensors,
    load_leaves,
    read_tokenizer,
    resolve_dtype,
)
from rfjax.io.memory import exhaustion_as_capacity_error
from rfjax.io.storage import Storage, matrices_of, resolve_weights, store
from rfjax.models.config import ModelConfig
from rfjax.models.configure import configure
from rfjax.models.params import Block, Params, param_spec
from rfjax.ops.dispatch import KernelPolicy
from rfjax.selfcheck.choose import model_cases
from rfjax.selfcheck.guard import check_wanted, guarded
from rfjax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class ModelParts:
    """A checked file, none of whose weights are on a device yet.

    Attributes:
        gguf: the file.
        config: sizes and mechanisms.
        tokenizer: None for files without a vocabulary.
        storages: how every weight will be held, by name.
    """

    gguf: GGUFFile
    config: ModelConfig
    tokenizer: Tokenizer | None
    storages: dict[str, Storage]

    @property
    def path(self) -> str:
        """The file, or the first of a split one."""
        return str(self.gguf.path)

    def block(self, number: int) -> Block:
        """The weights of one layer, loaded anew.

        Raises:
            CapacityError: the device is full.
        """
        return self._loaded(param_spec(self.config).blk[number], f"blk.{number}.")

    def ends(self, *wanted: str) -> Params:
        """A tree without layers that has the fields named, and None for all others.

        Raises:
            CapacityError: the device is full.
        """
        spec = param_spec(self.config)
        others = {f.name: None for f in dataclasses.fields(spec) if f.name not in wanted}
        return self._loaded(dataclasses.replace(spec, **others | {"blk": ()}), "")

    def block_bytes(self) -> int:
        """Of the largest layer."""
        sizes = dict.fromkeys(range(len(self.config.layers)), 0)
        for name, storage in self.storages.items():
            if name.startswith("blk."):
                sizes[int(name.split(".")[1])] += storage.nbytes
        return max(sizes.values())

    def bytes_of(self, names: Iterable[str]) -> int:
        """Of the tensors whose names begin so."""
        stems = tuple(f"{name}." for name in names)
        return sum(s.nbytes for name, s in self.storages.items() if name.startswith(stems))

    def _loaded(self, spec: Any, prefix: str) -> Any:
        """A part of the tree, as `spec` has it, with its weights."""
        paths, structure = jax.tree_util.tree_flatten_with_path(spec)
        names = [
            prefix + jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths
        ]
        advice = "Close what else uses it, or choose packed weights"
        with exhaustion_as_capacity_error(f"loading a part of {self.path}", advice):
            leaves = load_leaves(self.gguf, {name: self.storages[name] for name in names})
        return jax.tree.unflatten(structure, [leaves[name] for name in names])


def open_parts(
    path: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    weights: str | None = None,
    kernels: KernelPolicy | None = None,
    selfcheck: bool | None = None,
) -> ModelParts:
    """Read and check a file as `rfjax.load` does, and load nothing.

    Args:
        path, dtype, kernels, selfcheck: as of `rfjax.load`.
        weights: the same; None takes packed on GPUs and dequantized on the CPU.

    Raises:
        ModelFormatError, UnsupportedError, ConfigError: as `rfjax.load`.
    """
    gguf = read_gguf(path)
    gguf.check_data()
    config = configure(gguf, dtype=resolve_dtype(dtype))
    if kernels is not None:
        config = dataclasses.replace(config, kernels=kernels)
    spec = param_spec(config)
    chosen = resolve_weights(weights)
    if chosen is None:
        chosen = "dequantized" if jax.default_backend() == "cpu" else "packed"
    storages = store(spec, check_tensors(gguf, spec), chosen, config.dtype, None)
    if check_wanted(config.kernels, selfcheck):
        cases = model_cases(matrices_of(storages), config, apart=False)
        config = dataclasses.replace(config, kernels=guarded(config.kernels, cases))
    return ModelParts(gguf, config, read_tokenizer(gguf), storages)
