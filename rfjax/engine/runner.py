"""Runs batches of requests on the device: builds the state, prefills, decodes in bursts."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rfjax.cache.dense import DenseCache, cache_bytes, cache_sharding, init_cache
from rfjax.engine import state as steps
from rfjax.engine.buckets import SMALLEST_CAPACITY, prefill_chunks, round_up_power_of_two
from rfjax.engine.compiler_options import compiler_options
from rfjax.engine.config import EngineConfig
from rfjax.engine.finite import check_not_nan
from rfjax.engine.request import Request
from rfjax.engine.state import DecodeState
from rfjax.errors import CapacityError
from rfjax.io.memory import (
    MemoryPlan,
    exhaustion_as_capacity_error,
    gib,
    largest_fitting,
    memory_of,
    workspace_bytes,
)
from rfjax.models.config import ModelConfig
from rfjax.models.params import Params
from rfjax.ops.penalties import IN_PROMPT
from rfjax.ops.sampling import greedy
from rfjax.quant.qtensor import has_packed, packed_leaves
from rfjax.sharding import batch_sharding


class Progress:
    """What the host sees of a batch after a burst: one transfer, arrays on the host.

    Attributes:
        tokens: int32 [B, S]; logprobs: f32 [B, S]; lengths: int32 [B]; finished: bool [B].
    """

    def __init__(self, state: DecodeState):
        self.tokens, self.logprobs, self.lengths, self.finished = jax.device_get(
            (state.tokens, state.logprobs, state.lengths, state.finished)
        )


class Runner:
    """Compiled steps of one model. Holds no state of any request."""

    def __init__(
        self,
        params: Params,
        config: ModelConfig,
        engine: EngineConfig,
        mesh: Mesh | None = None,
    ):
        """A runner.

        Args:
            params: the weights, spread over `mesh` if there is one.
            config: their sizes and mechanisms.
            engine: sizes of batches, chunks and bursts.
            mesh: the devices of the weights; sequences are spread over its axis "data".
        """
        self._params = params
        self._config = config
        self._engine = engine
        self._mesh = mesh

        def prefill(params, state, start, length, config):
            return self._pinned(steps.prefill(params, state, start, length=length, config=config))

        def decode(params, state, n_steps, config):
            return self._pinned(steps.decode(params, state, n_steps, config=config))

        jit = functools.partial(
            jax.jit,
            donate_argnames="state",
            compiler_options=compiler_options(packed=has_packed(params)),
        )
        self._prefill = jit(prefill, static_argnames=("length", "config"))
        self._decode = jit(decode, static_argnames="config")

    def run(self, requests: Sequence[Request]) -> Iterator[Progress]:
        """Generate for up to `max_batch_size` requests, one `Progress` after each burst.

        The first burst is a single step, so that the first token shows without delay; the last
        `Progress` has every request finished.

        Raises:
            CapacityError: the cache would not fit in the device's free memory.
            ModelFormatError: the model computes NaN.
        """
        assert 0 < len(requests) <= self._engine.max_batch_size
        exhaustion = functools.partial(
            exhaustion_as_capacity_error,
            "generating",
            "Lower max_batch_size, max_context, prefill_chunk or max_tokens, or use a mesh",
        )
        with exhaustion():
            state = self._start(requests)
            longest = max(len(request.token_ids) for request in requests)
            for start, length in prefill_chunks(longest - 1, self._engine.prefill_chunk):
                state = self._prefill(
                    self._params, state, np.int32(start), length=length, config=self._config
                )
        n_steps = 1
        while True:
            with exhaustion():
                state = self._decode(self._params, state, np.int32(n_steps), config=self._config)
                progress = Progress(state)
            check_not_nan(progress.logprobs, self._config.dtype)
            yield progress
            if progress.finished.all():
                return
            n_steps = self._engine.burst

    def _start(self, requests: Sequence[Request]) -> DecodeState:
        """The state before prefill; batch, capacity and stop list rounded up to their buckets."""
        config = self._config
        batch = self._batch_size(len(requests))
        capacity = round_up_power_of_two(
            max(request.limit for request in requests), SMALLEST_CAPACITY
        )
        dtype = jnp.dtype(config.dtype)
        self._check_room(batch, capacity)
        n_stop = round_up_power_of_two(max(len(request.stop_ids) for request in requests), 8)

        tokens = np.zeros((batch, capacity), np.int32)
        lengths = np.ones(batch, np.int32)
        limits = np.ones(batch, np.int32)
        stop_ids = np.full((batch, n_stop), -1, np.int32)
        counts = np.zeros((batch, config.vocab_size), np.int32)
        for row, request in enumerate(requests):
            n = len(request.token_ids)
            tokens[row, :n] = request.token_ids
            lengths[row] = n
            limits[row] = request.limit
            stop_ids[row, : len(request.stop_ids)] = request.stop_ids
            counts[row, list(request.token_ids)] = IN_PROMPT

        def column(get: Callable[[Request], float], dtype: type) -> jax.Array:
            values = [get(request) for request in requests]
            return jnp.array(values + values[-1:] * (batch - len(values)), dtype)

        state = DecodeState(
            cache=init_cache(config.kv_shapes, batch, capacity, dtype, self._mesh),
            tokens=jnp.array(tokens),
            logprobs=jnp.zeros((batch, capacity), jnp.float32),
            lengths=jnp.array(lengths),
            limits=jnp.array(limits),
            stop_ids=jnp.array(stop_ids),
            finished=jnp.arange(batch) >= len(requests),
            sampling=dataclasses.replace(
                greedy(batch, config.vocab_size),
                temperature=column(lambda r: r.params.temperature, np.float32),
                top_k=column(lambda r: max(0, r.params.top_k), np.int32),
                top_p=column(lambda r: r.params.top_p, np.float32),
                min_p=column(lambda r: r.params.min_p, np.float32),
                repetition_penalty=column(lambda r: r.params.repetition_penalty, np.float32),
                seed=column(lambda r: r.seed, np.uint32),
            ),
            counts=jnp.array(counts),
        )
        if self._mesh is None:
            return state
        return jax.device_put(state, self._shardings(state))

    def _batch_size(self, n_requests: int) -> int:
        """Rows for so many requests: a bucket, and a whole number on each group of devices."""
        rows = round_up_power_of_two(n_requests)
        groups = 1 if self._mesh is None else self._mesh.shape.get("data", 1)
        return -(-rows // groups) * groups

    def _shardings(self, state: DecodeState) -> DecodeState:
        """Where every array of a state lives: rows over "data", kv heads over "model"."""
        assert self._mesh is not None
        rows = state.lengths.shape[0]
        by_row = batch_sharding(self._mesh, rows)
        caches = tuple(
            cache_sharding(self._mesh, rows, layer.k.shape[1]) for layer in state.cache.layers
        )
        placed = jax.tree.map(lambda _: by_row, state)
        # A tree of shardings in the shape of the arrays'.
        layers = tuple(
            jax.tree.map(lambda _, split=split: split, layer)
            for layer, split in zip(state.cache.layers, caches, strict=True)
        )
        return dataclasses.replace(placed, cache=DenseCache(layers=layers))

    def _pinned(self, state: DecodeState) -> DecodeState:
        """A step's result where its input was, so that the next step needs no other program."""
        if self._mesh is None:
            return state
        return jax.lax.with_sharding_constraint(state, self._shardings(state))

    def _check_room(self, batch: int, capacity: int) -> None:
        config, mesh = self._config, self._mesh
        memory = memory_of(jax.devices()[:1] if mesh is None else list(mesh.devices.flat))
        sizes = (math.prod(leaf.shape[-2:]) for leaf in packed_leaves(self._params))
        packed = max(sizes, default=0)

        def plan(batch: int, capacity: int) -> MemoryPlan:
            dtype = jnp.dtype(config.dtype)
            chunk = self._engine.prefill_chunk
            return MemoryPlan(
                weights=0,  # there already
                cache=cache_bytes(config.kv_shapes, batch, capacity, dtype, mesh),
                workspace=workspace_bytes(config, packed, batch, capacity, chunk),
                loading=0,
                batch=batch,
                context=capacity,
                memory=memory,
            )

        asked = plan(batch, capacity)
        if asked.fits:
            return
        rows = largest_fitting(lambda n: plan(n, capacity), batch)
        tokens = largest_fitting(lambda n: plan(batch, n), capacity)
        ways = [f"{rows} sequences of {capacity} tokens (max_batch_size)"] if rows else []
        if tokens >= SMALLEST_CAPACITY:
            ways.append(f"{batch} of {tokens} (max_context, max_tokens)")
        would_fit = f"what would fit: {', or '.join(ways)}" if ways else "nothing would fit"
        raise CapacityError(
            f"the cache of {batch} sequences of {capacity} tokens takes {gib(asked.cache)} and a "
            f"step {gib(asked.workspace)} on {memory.where}, where {gib(memory.free or 0)} are "
            f"free; {would_fit}"
        )
