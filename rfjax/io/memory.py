"""What a model takes on its devices: planned before anything is allocated, refused where too much.

The plan counts bytes of one device. Weights and cache are exact; the workspace of a step and the
transient of loading are estimates from above, of which tests say how far above.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from rfjax.cache.dense import cache_bytes
from rfjax.errors import CapacityError
from rfjax.io.place import loading_bytes
from rfjax.io.storage import Storage
from rfjax.models.config import LayerConfig, ModelConfig
from rfjax.ops.blockwise_attention import KEYS_AT_ONCE
from rfjax.pallas.decode_attention import MAX_SPLITS
from rfjax.pallas.paged_prefill_attention import declines as declines_pages
from rfjax.pallas.prefill_attention import declines
from rfjax.pallas.target import current_target

LEAST_CONTEXT = 64
"""Tokens of context without which a model is not worth loading."""

_MAX_SCORES = 1 << 26
"""Scores that attention holds at a time, as in `rfjax.ops.attention`."""

_LOGITS_COPIES = 8
"""Arrays as large as a batch's logits that sampling holds at a time."""


def free_bytes(device: Any) -> int | None:
    """Bytes that can still be allocated on a `jax.Device`, or None where nobody can say.

    Accelerators report their allocator's limit; for the CPU it is the host's available memory.
    """
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if device.platform == "cpu" and "SC_AVPHYS_PAGES" in os.sysconf_names:
        try:
            with open("/proc/meminfo", encoding="ascii") as lines:
                for line in lines:
                    if line.startswith("MemAvailable:"):
                        return int(line.split()[1]) * 1024
        except OSError:
            pass  # not Linux: free pages are the next best answer
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


@dataclasses.dataclass(frozen=True)
class Memory:
    """Room on the devices of a model.

    Attributes:
        free: bytes on the device that has least of them; None where nobody can say.
        sharers: devices that draw on the same memory: simulated ones of a CPU, else 1.
        where: the device, for messages.
    """

    free: int | None
    sharers: int
    where: str


def memory_of(devices: Sequence[Any]) -> Memory:
    """The room on devices that will hold equal shares of a model."""
    known = [(free, device) for device in devices if (free := free_bytes(device)) is not None]
    if not known:
        return Memory(None, 1, str(devices[0]))
    free, device = min(known, key=lambda pair: pair[0])
    sharers = len(devices) if device.platform == "cpu" else 1
    where = str(device) if len(devices) == 1 else f"each of {len(devices)} devices"
    if sharers > 1:
        where = f"the host, for {sharers} simulated devices"
    return Memory(free, sharers, where)


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes of a model, its cache and its steps, on one device.

    Attributes:
        weights: of all weights, or the device's share.
        cache: of keys and values.
        workspace: of a step's intermediate values.
        loading: beside the weights while they are loaded; free again afterwards.
        batch: sequences that the cache is for.
        context: tokens of each.
        memory: the room there is.
    """

    weights: int
    cache: int
    workspace: int
    loading: int
    batch: int
    context: int
    memory: Memory

    @property
    def needed(self) -> int:
        """The most that is held at a time, on all devices that share the memory."""
        return (self.weights + max(self.loading, self.cache + self.workspace)) * self.memory.sharers

    @property
    def fits(self) -> bool:
        """Whether it fits, as far as anybody can say."""
        return self.memory.free is None or self.needed <= self.memory.free

    def __str__(self) -> str:
        free = "an unknown rest" if self.memory.free is None else gib(self.memory.free)
        return (
            f"{gib(self.needed)} on {self.memory.where}, which has {free} free: weights "
            f"{gib(self.weights)}, cache {gib(self.cache)} ({self.batch} x {self.context} tokens), "
            f"workspace {gib(self.workspace)}, loading {gib(self.loading)}"
        )


def gib(nbytes: int) -> str:
    """Bytes for a person."""
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**28 else f"{nbytes / 2**20:.2f} MiB"


def make_plan(
    storages: Mapping[str, Storage],
    config: ModelConfig,
    mesh: Mesh | AbstractMesh | None,
    memory: Memory,
    *,
    batch: int = 1,
    context: int = LEAST_CONTEXT,
    chunk: int = 512,
) -> MemoryPlan:
    """What a model takes on each device.

    Args:
        storages: how its weights are held, of `rfjax.io.storage.store`.
        config: its sizes.
        mesh: that of the storages.
        memory: the room there is.
        batch: sequences computed together.
        context: tokens that the cache holds of each.
        chunk: tokens of a sequence computed in one step.
    """
    context = min(context, config.context_length)
    packed = (math.prod(s.spec.shape[-2:]) for s in storages.values() if s.dtype is None)
    return MemoryPlan(
        weights=weight_bytes(storages),
        cache=cache_bytes(config.kv_shapes, batch, context, jnp.dtype(config.dtype), mesh),
        workspace=workspace_bytes(config, max(packed, default=0), batch, context, chunk),
        loading=loading_bytes(storages.values()),
        batch=batch,
        context=context,
        memory=memory,
    )


def weight_bytes(storages: Mapping[str, Storage]) -> int:
    """Bytes of all weights on one device: its share where the mesh splits them."""
    return sum(storage.nbytes for storage in storages.values())


def workspace_bytes(
    config: ModelConfig, largest_packed: int, batch: int, context: int, chunk: int
) -> int:
    """Bytes of a step's intermediate values on one device, from above: no split is counted.

    Counted are a packed matrix as plain numbers, the activations of a layer, attention's scores
    (or, where kernels run it, the parts of its results), and the logits while a token is drawn.

    Args:
        config: the model's sizes.
        largest_packed: elements of the largest packed matrix; of a stack, one expert's.
        batch: sequences computed together.
        context: keys of each.
        chunk: most tokens of a sequence in one step.
    """
    rows = batch * min(chunk, context)
    heads = max(layer.n_heads for layer in config.layers)
    query = batch * heads * context
    scores = 2 * 4 * min(rows * heads * context, max(_MAX_SCORES, 16 * query))
    if _attention_runs_by_kernels(config, paged=False):
        scores = _parts_bytes(config, batch)
    return _dense_bytes(config, largest_packed, rows) + scores + _logits_bytes(config, batch)


def step_bytes(
    config: ModelConfig, largest_packed: int, *, tokens: int, sequences: int, keys: int
) -> int:
    """Bytes of a step over pages on one device, from above; counted as in `workspace_bytes`.

    Args:
        config: the model's sizes.
        largest_packed: elements of the largest packed matrix; of a stack, one expert's.
        tokens: of all sequences.
        sequences: whose next token is drawn.
        keys: most that a query sees.
    """
    heads = max(layer.n_heads for layer in config.layers)
    scores = 3 * 4 * tokens * heads * min(keys, KEYS_AT_ONCE)
    if _attention_runs_by_kernels(config, paged=True):
        scores = _parts_bytes(config, sequences)
    logits = _logits_bytes(config, sequences)
    return _dense_bytes(config, largest_packed, tokens) + scores + logits


def _dense_bytes(config: ModelConfig, largest_packed: int, rows: int) -> int:
    """A packed matrix as plain numbers, and the activations of a layer."""
    widths = []
    for layer in config.layers:
        experts, latent = layer.experts, layer.latent
        ffn, copies = layer.ffn_dim, 0
        if experts is not None:
            ffn = 2 * experts.ffn_dim * experts.n_used + experts.shared_dim
            # A token's inputs and results by expert, in blocks that are not full.
            copies = 8 * config.d_model * experts.n_used
        heads = 2 * (layer.n_heads + layer.n_kv_heads) * layer.head_dim
        if latent is not None:
            # Queries in the space of the vectors, and what attention has summed of these so far.
            heads += layer.n_heads * (5 * latent.kv_rank + latent.rope_dim + latent.value_dim)
            made = latent.nope_dim + latent.value_dim
            largest_packed = max(largest_packed, 2 * layer.n_heads * made * latent.kv_rank)
        widths.append(heads + 3 * ffn + copies)
    activations = 4 * rows * (4 * config.d_model + max(widths))
    return largest_packed * jnp.dtype(config.dtype).itemsize + activations


def _parts_bytes(config: ModelConfig, sequences: int) -> int:
    """The parts of attention's results that kernels combine."""
    sizes = max(layer.n_heads * (layer.head_dim + 2) for layer in config.layers)
    return 4 * sequences * MAX_SPLITS * sizes


def _logits_bytes(config: ModelConfig, sequences: int) -> int:
    return 4 * _LOGITS_COPIES * sequences * config.vocab_size


def _attention_runs_by_kernels(config: ModelConfig, *, paged: bool) -> bool:
    """Whether no layer's attention falls to plain JAX, which holds scores."""
    target, policy = current_target(), config.kernels
    names = ("prefill_attention", "decode_attention")
    if paged:
        names = ("paged_prefill_attention", "paged_decode_attention")
    if target in ("interpret", "unknown") or policy.implementation == "xla":
        return False
    if any(policy.why_disabled(name) is not None for name in names):
        return False
    if any(layer.latent is not None for layer in config.layers):
        return False

    def declined(layer: LayerConfig) -> str | None:
        of_keys = (1, layer.n_kv_heads, 16 if paged else 1)
        shapes = ((1, 1, layer.n_heads), of_keys, of_keys)
        arrays: list[Any] = [
            jax.ShapeDtypeStruct((*shape, layer.head_dim), config.dtype) for shape in shapes
        ]
        check: Callable[..., str | None] = declines_pages if paged else declines
        return check(*arrays, layer.attention_scale, target)

    return all(declined(layer) is None for layer in config.layers)


def largest_fitting(make: Callable[[int], MemoryPlan], most: int) -> int:
    """The largest power of two up to `most` whose plan fits; 0 if none does."""
    size = 1 << max(0, most.bit_length() - 1)
    while size and not make(size).fits:
        size //= 2
    return size


@contextlib.contextmanager
def exhaustion_as_capacity_error(what: str, advice: str) -> Iterator[None]:
    """Turn XLA's report that an allocation failed into a `CapacityError`.

    Raises:
        CapacityError: a device ran out of memory inside; XLA's own words are its cause.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        first = str(error).partition("\n")[0]
        raise CapacityError(f"{what}: a device ran out of memory ({first}). {advice}") from error
