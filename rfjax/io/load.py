"""From a GGUF file to a model on the device: configure, check every tensor, decode, place."""

import concurrent.futures
import dataclasses
import difflib
import functools
import logging
import os

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from rfjax.errors import CapacityError, ConfigError, ModelFormatError, UnsupportedError
from rfjax.io.gguf import GGUFFile, TensorInfo, read_gguf
from rfjax.io.memory import (
    LEAST_CONTEXT,
    MemoryPlan,
    exhaustion_as_capacity_error,
    gib,
    largest_fitting,
    make_plan,
    memory_of,
)
from rfjax.io.place import WORKERS, place
from rfjax.io.storage import Storage, Weights, matrices_of, resolve_weights, store
from rfjax.models.architectures import find_architecture
from rfjax.models.config import ModelConfig
from rfjax.models.configure import configure
from rfjax.models.params import Params, param_spec
from rfjax.models.tensors import find_tensors
from rfjax.ops.dispatch import KernelPolicy
from rfjax.ops.kernel_product import PLAIN_KERNEL
from rfjax.quant.formats import FORMATS
from rfjax.quant.qtensor import QTensor
from rfjax.selfcheck.choose import model_cases
from rfjax.selfcheck.guard import check_wanted, guarded
from rfjax.sharding import automatic
from rfjax.tokenizer import Tokenizer, load_tokenizer

logger = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16")

_NO_TOKENIZER = ("no_vocab", "none", "test")
"""Values of `tokenizer.ggml.model` that say that there is no tokenizer."""

_ONE_DEVICE_KERNELS = (
    PLAIN_KERNEL,
    *("prefill_attention", "decode_attention"),
    *("paged_prefill_attention", "paged_decode_attention"),
)
"""Kernels that are not run by shares: over a mesh each would have its operands gathered whole."""


@dataclasses.dataclass(frozen=True)
class Model:
    """Weights, configuration and tokenizer of one file.

    Attributes:
        params: the weights; matrices are arrays, or `QTensor`s where they are packed.
        config: sizes and mechanisms.
        tokenizer: None for files without a vocabulary: feed token ids.
        path: the file, or the first of a split one.
        mesh: the devices that the weights are spread over, or None for one.
        plan: what the model was expected to take before it was loaded.
    """

    params: Params
    config: ModelConfig
    tokenizer: Tokenizer | None
    path: str
    mesh: Mesh | None
    plan: MemoryPlan


def load(
    path: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    weights: str | None = None,
    context: int | None = None,
    kernels: KernelPolicy | None = None,
    selfcheck: bool | None = None,
) -> Model:
    """Load a GGUF file, all parts of a split one included.

    Args:
        path: the file, or any part of a split file.
        dtype: of activations, and of weights that are not packed: "float32", "bfloat16" or
            "float16"; None takes bfloat16 on GPUs and float32 on the CPU. Norms, biases and
            routers are f32 always.
        mesh: devices to spread the weights over, with axes "model" and "data" (see
            `rfjax.sharding`); None takes one device.
        weights: "packed" keeps quantized matrices as their blocks, and F32, F16 and BF16 ones in
            the file's type; "dequantized" makes all of them plain numbers of `dtype`. None takes
            packed on GPUs; on the CPU, where plain numbers are faster, dequantized if they fit.
        context: tokens of one sequence for whose cache room must be left; None asks for few.
        kernels: which kernels may run (see `rfjax.ops.dispatch`); None takes one wherever it
            accepts. It becomes part of the model's configuration.
        selfcheck: whether to try every kernel that the model uses against f64 before anything is
            loaded, and disable those that fail (see `rfjax.selfcheck`), once: results
            are remembered for the device and the versions of everything. None does so on GPUs;
            True also where kernels are interpreted, which takes minutes.

    Raises:
        ModelFormatError: malformed or truncated file, inconsistent metadata; or tensors missing,
            unknown or misshapen, all of them listed in one message.
        UnsupportedError: architecture or tensor type not supported.
        CapacityError: the model would not fit in the free memory; says what would.
        ConfigError: unknown dtype, kind of weights or mesh axis.
    """
    gguf = read_gguf(path)
    gguf.check_data()
    config = configure(gguf, dtype=resolve_dtype(dtype), context=context)
    if kernels is not None:
        config = dataclasses.replace(config, kernels=kernels)
    mesh = None if mesh is None else automatic(mesh)
    if mesh is not None and mesh.size > 1:
        # XLA would gather a kernel's operands whole on every device; packed products run by shares.
        reason = "over a mesh plain JAX computes each device's share where it lies"
        disabled = ((name, reason) for name in _ONE_DEVICE_KERNELS)
        fewer = dataclasses.replace(config.kernels, disabled=(*config.kernels.disabled, *disabled))
        config = dataclasses.replace(config, kernels=fewer)
    planned = functools.partial(plan_load, gguf, weights=weights, mesh=mesh, context=context)
    storages, plan = planned(config)
    if check_wanted(config.kernels, selfcheck):
        apart = mesh is not None and mesh.size > 1
        cases = model_cases(matrices_of(storages), config, apart=apart)
        config = dataclasses.replace(config, kernels=guarded(config.kernels, cases))
        storages, plan = planned(config)  # without a kernel a step may take more
    logger.info("%s: %s", gguf.path, plan)
    tokenizer = read_tokenizer(gguf)
    advice = "Close what else uses it, or choose packed weights, a smaller model or a mesh"
    with exhaustion_as_capacity_error(f"loading {gguf.path}", advice):
        leaves = load_leaves(gguf, storages)
    spec = param_spec(config)
    params = jax.tree.unflatten(jax.tree.structure(spec), [leaves[name] for name in storages])
    logger.info("loaded %s: %s, %d tensors", gguf.path, config.architecture, len(leaves))
    return Model(params, config, tokenizer, str(gguf.path), mesh, plan)


def plan_load(
    gguf: GGUFFile,
    config: ModelConfig,
    *,
    weights: str | None = None,
    mesh: Mesh | None = None,
    context: int | None = None,
) -> tuple[dict[str, Storage], MemoryPlan]:
    """How a model would be held, and what it would take. Allocates nothing.

    Args:
        gguf: the file.
        config: what it holds, with the dtype to compute in.
        weights, mesh, context: as of `load`.

    Raises:
        ModelFormatError, UnsupportedError: the tensors do not fit, as `check_tensors`.
        CapacityError: it would not fit in the free memory; says what would.
        ConfigError: unknown kind of weights.
    """
    asked = resolve_weights(weights)
    spec = param_spec(config)
    sources = check_tensors(gguf, spec)
    devices = jax.devices()[:1] if mesh is None else list(mesh.devices.flat)
    memory = memory_of(devices)
    context = LEAST_CONTEXT if context is None else context

    def planned(
        weights: Weights, dtype: str = config.dtype, mesh: Mesh | AbstractMesh | None = mesh
    ) -> tuple[dict[str, Storage], MemoryPlan]:
        storages = store(spec, sources, weights, dtype, mesh)
        own = dataclasses.replace(config, dtype=dtype)
        return storages, make_plan(storages, own, mesh, memory, context=context)

    first: Weights = asked or ("dequantized" if devices[0].platform == "cpu" else "packed")
    result = planned(first)
    if not result[1].fits and asked is None and first == "dequantized":
        packed = planned("packed")
        if packed[1].fits:
            logger.warning(
                "%s: weights stay packed, which is slower here: dequantized they take %s",
                gguf.path,
                result[1],
            )
            return packed
    if result[1].fits:
        return result

    ways = []
    if first == "dequantized" and (plan := planned("packed")[1]).fits:
        ways.append(f"weights='packed' ({gib(plan.needed)})")
    if config.dtype == "float32" and (plan := planned(first, "bfloat16")[1]).fits:
        ways.append(f"dtype='bfloat16' ({gib(plan.needed)})")
    if context > LEAST_CONTEXT:
        fitting = largest_fitting(
            lambda n: make_plan(result[0], config, mesh, memory, context=n), context
        )
        if fitting >= LEAST_CONTEXT:
            ways.append(f"a context of {fitting} tokens")
    if memory.sharers == 1:
        for count in (2, 4, 8, 16, 32, 64):
            spread = AbstractMesh((count,), ("model",))
            if count > len(devices) and planned(first, mesh=spread)[1].fits:
                ways.append(f"a mesh of {count} such devices")
                break
    would_fit = f"What would fit: {', or '.join(ways)}" if ways else "Take a smaller model"
    raise CapacityError(
        f"{gguf.path}: with {first} weights in {config.dtype} it takes {result[1]}. {would_fit}"
    )


def resolve_dtype(dtype: str | None) -> str:
    """The dtype to compute in: as asked, or bfloat16 on GPUs and float32 on the CPU."""
    if dtype is None:
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if dtype not in DTYPES:
        near = difflib.get_close_matches(str(dtype), DTYPES, n=1, cutoff=0.4)  # bf16, fp32
        raise ConfigError(
            f"dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    return dtype


def read_tokenizer(gguf: GGUFFile) -> Tokenizer | None:
    """The file's tokenizer, or None where it says that there is none."""
    if gguf.get_str("tokenizer.ggml.model", "none") in _NO_TOKENIZER:
        return None
    return load_tokenizer(gguf)


def check_tensors(gguf: GGUFFile, spec: Params) -> dict[str, tuple[TensorInfo, ...]]:
    """Match the file's tensors with the model's.

    Returns:
        For every leaf the tensors it is made of, as `rfjax.models.tensors.find_tensors`.

    Raises:
        ModelFormatError: one message that lists every missing, unknown and misshapen tensor.
        UnsupportedError: a tensor's type cannot be decoded.
    """
    found = find_tensors(gguf, spec, find_architecture(gguf.architecture), len(spec.blk))
    problems = found.problems
    if problems:
        shown = "\n  ".join(problems[:40])
        more = f"\n  and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise ModelFormatError(
            f"{gguf.path}: {len(problems)} tensors do not fit architecture "
            f"{gguf.architecture!r} with this metadata:\n  {shown}{more}"
        )
    undecodable = [
        f"{info.name} has type {info.type.name}"
        for infos in found.sources.values()
        for info in infos
        if info.type not in FORMATS
    ]
    if undecodable:
        raise UnsupportedError(
            f"{gguf.path}: a type cannot be decoded: {'; '.join(undecodable[:40])}; "
            f"supported: {', '.join(t.name for t in FORMATS)}"
        )
    return dict(found.sources)


def load_leaves(gguf: GGUFFile, storages: dict[str, Storage]) -> dict[str, jax.Array | QTensor]:
    """Every leaf on its devices, a few at a time, in the order of the file."""
    device = jnp.zeros(()).devices().pop()  # a default set for this thread holds for all of them

    def load_leaf(storage: Storage) -> jax.Array | QTensor:
        with jax.default_device(device):
            raws = [gguf.raw(info) for info in storage.sources]
            leaf = jax.block_until_ready(place(storage, raws))
        for info in storage.sources:
            gguf.release(info)
        return leaf

    ordered = sorted(storages.values(), key=lambda s: (s.sources[0].shard, s.sources[0].offset))
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        loaded = list(pool.map(load_leaf, ordered))
    return {storage.name: leaf for storage, leaf in zip(ordered, loaded, strict=True)}
