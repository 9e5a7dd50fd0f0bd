"""How large the engine's cache is: planned from free memory before anything is allocated."""

import dataclasses
import logging
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rfjax.cache.paged import page_bytes
from rfjax.engine.buckets import PIECE, most_prompt_tokens
from rfjax.engine.config import EngineConfig
from rfjax.engine.page_table import CacheGroup
from rfjax.engine.rows import row_bytes
from rfjax.engine.scheduler_config import SchedulerConfig, longest_step
from rfjax.errors import CapacityError, ConfigError, UnsupportedError
from rfjax.io.memory import Memory, gib, memory_of, step_bytes
from rfjax.models.config import ModelConfig
from rfjax.models.layer_groups import layer_groups
from rfjax.models.params import Params
from rfjax.pallas.page_tile import UNINDEXED
from rfjax.quant.qtensor import packed_leaves

logger = logging.getLogger(__name__)

_SHARE_OF_CPU = 0.25
_SHARE_OF_DEVICE = 0.9
"""Of the memory that is free beside the weights, for cache, rows and a step."""

_LEAST_CONTEXT = 64


@dataclasses.dataclass(frozen=True)
class CachePlan:
    """Sizes of an engine, and what they take on each device.

    Attributes:
        sizes: for the scheduler and the runner.
        cache: bytes of all pages.
        rows: bytes of the state of all slots.
        workspace: bytes of a step's intermediate values, from above.
        memory: the room there was.
    """

    sizes: SchedulerConfig
    cache: int
    rows: int
    workspace: int
    memory: Memory

    def __str__(self) -> str:
        sizes = self.sizes
        free = "an unknown rest" if self.memory.free is None else gib(self.memory.free)
        pages = ", ".join(f"{g.n_pages} ({g.name})" for g in sizes.groups)
        return (
            f"cache {gib(self.cache)} of {pages} pages of {sizes.page_size} tokens, for "
            f"{sizes.slots} sequences of up to {sizes.max_context} tokens; rows {gib(self.rows)}, "
            f"workspace {gib(self.workspace)}; {self.memory.where} has {free} free"
        )


def plan_cache(
    params: Params, config: ModelConfig, engine: EngineConfig, mesh: Mesh | None = None
) -> CachePlan:
    """Pages for as many whole sequences as the settings allow and the memory holds.

    Where the settings name no context and the model's does not fit even once, the context becomes
    what fits, with a line in the log.

    Args:
        params: the weights, which are on the devices already.
        config: their sizes.
        engine: the settings.
        mesh: the devices; None is the first one.

    Raises:
        CapacityError: a sequence of the context asked for does not fit; says what would.
        ConfigError: the context asked for is more than the model's.
        UnsupportedError: its tokens see those behind them, so that none follows from a cache.
    """
    devices = jax.devices()[:1] if mesh is None else list(mesh.devices.flat)
    memory = memory_of(devices)
    share = engine.cache_share
    if share is None:
        share = _SHARE_OF_CPU if devices[0].platform == "cpu" else _SHARE_OF_DEVICE
    return plan_in(params, config, engine, memory, share, mesh)


def plan_in(
    params: Params,
    config: ModelConfig,
    engine: EngineConfig,
    memory: Memory,
    share: float,
    mesh: Mesh | None = None,
) -> CachePlan:
    """`plan_cache` in a given room, of which a given share is for the engine."""
    if any(layer.mask.kind == "bidirectional" for layer in config.layers):
        raise UnsupportedError(
            f"{config.architecture} generates no token after another: its tokens see those behind "
            "them, too, and all of a text is computed at once. Take rfjax.models.decoder.forward "
            "for its logits"
        )
    if engine.max_context is not None and engine.max_context > config.context_length:
        raise ConfigError(
            f"max_context: got {engine.max_context}, and the model's context holds "
            f"{config.context_length}"
        )
    slots = engine.max_batch_size
    rows = row_bytes(slots, config.vocab_size)
    workspace = _workspace(params, config, engine)
    room = None
    if memory.free is not None:
        room = int(share * memory.free) // memory.sharers - rows - workspace
    pages = _Pages(config, engine, mesh)

    asked = engine.max_context or config.context_length
    context = asked if room is None else pages.longest_context(asked, room)
    if context < asked and (engine.max_context is not None or context < _LEAST_CONTEXT):
        would = f"what would fit: max_context={context}" if context >= 2 else "nothing would fit"
        needed = pages.nbytes(asked, 1)
        raise CapacityError(
            f"the cache of one sequence of {asked} tokens takes {gib(needed)}, and "
            f"{gib(max(0, room or 0))} of the {gib(memory.free or 0)} free on {memory.where} are "
            f"for it ({rows + workspace} bytes go to {slots} rows and a step): {would}; or lower "
            "max_batch_size or token_budget, raise cache_share, or store it as kv_dtype='int8'"
        )
    if context < asked:
        logger.warning(
            "the model's context of %d tokens does not fit in memory: it is cut to %d. Give "
            "max_context, or more memory by cache_share, to choose",
            asked,
            context,
        )
    sequences = slots if room is None else pages.most_sequences(context, slots, room)
    plan = CachePlan(
        sizes=pages.sizes(context, sequences),
        cache=pages.nbytes(context, sequences),
        rows=rows,
        workspace=workspace,
        memory=memory,
    )
    logger.info("%s", plan)
    return plan


def _workspace(params: Params, config: ModelConfig, engine: EngineConfig) -> int:
    """Bytes of the larger of a prompt's step and of a decode step."""
    packed = max((math.prod(leaf.shape[-2:]) for leaf in packed_leaves(params)), default=0)
    keys, slots = config.context_length, engine.max_batch_size
    tokens = most_prompt_tokens(engine.token_budget)
    return max(
        # Logits of one piece at a time, for log-probabilities of prompts.
        step_bytes(config, packed, tokens=tokens, sequences=PIECE, keys=keys),
        step_bytes(config, packed, tokens=slots, sequences=slots, keys=keys),
    )


class _Pages:
    """Numbers of pages, and their bytes on each device."""

    def __init__(self, config: ModelConfig, engine: EngineConfig, mesh: Mesh | None):
        self._engine = engine
        self._groups = layer_groups(config)
        self._dtype = dtype = jnp.dtype(engine.kv_dtype or config.dtype)
        shapes = config.kv_shapes
        by_group = [tuple(shapes[i] for i in group.layers) for group in self._groups]
        self._largest = [  # numbers of a page in the widest layer of each group
            engine.page_size * max(s.n_kv * max(s.k_dim, s.v_dim) for s in own) for own in by_group
        ]
        self._bytes = [page_bytes(own, engine.page_size, dtype, mesh) for own in by_group]

    def counts(self, context: int, sequences: float) -> list[int]:
        """Pages of each group for so many sequences, the null page included."""
        step = longest_step(self._engine.prefill_chunk, self._burst)
        counts = []
        for group in self._groups:
            sized = CacheGroup(group.name, 2, group.window)
            most = sized.most_pages(context, step, self._engine.page_size)
            counts.append(1 + math.ceil(sequences * most))
        if self._dtype == jnp.int8:
            most, end = UNINDEXED  # which kernels decline
            pairs = zip(counts, self._largest, strict=True)
            counts = [most // size if most < n * size <= end else n for n, size in pairs]
        return counts

    def nbytes(self, context: int, sequences: float) -> int:
        counts = self.counts(context, sequences)
        return sum(n * size for n, size in zip(counts, self._bytes, strict=True))

    def longest_context(self, asked: int, room: int) -> int:
        """The longest context up to `asked` of which one sequence fits; 0 if none does."""
        low, high = 0, asked
        while low < high:
            middle = (low + high + 1) // 2
            if self.nbytes(middle, 1) <= room:
                low = middle
            else:
                high = middle - 1
        return low

    def most_sequences(self, context: int, slots: int, room: int) -> float:
        """How many whole sequences fit, at most a slot each; in steps of 1/64."""
        low, high = 64, 64 * slots  # one fits
        while low < high:
            middle = (low + high + 1) // 2
            if self.nbytes(context, middle / 64) <= room:
                low = middle
            else:
                high = middle - 1
        return low / 64

    def sizes(self, context: int, sequences: float) -> SchedulerConfig:
        engine = self._engine
        counts = self.counts(context, sequences)
        return SchedulerConfig(
            groups=tuple(
                CacheGroup(group.name, n, group.window)
                for group, n in zip(self._groups, counts, strict=True)
            ),
            page_size=engine.page_size,
            max_context=context,
            slots=engine.max_batch_size,
            token_budget=engine.token_budget,
            prefill_chunk=engine.prefill_chunk,
            burst=engine.burst,
            mixed_burst=engine.mixed_burst,
            max_queue=engine.max_queue,
            prefix_caching=engine.prefix_caching,
        )

    @property
    def _burst(self) -> int:
        return max(self._engine.burst, self._engine.mixed_burst)
