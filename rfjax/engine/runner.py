"""Runs batches of requests on the device: builds the state, prefills, decodes in bursts."""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rfjax.cache.dense import cache_bytes, init_cache
from rfjax.engine import state as steps
from rfjax.engine.buckets import SMALLEST_CAPACITY, prefill_chunks, round_up_power_of_two
from rfjax.engine.config import EngineConfig
from rfjax.engine.finite import check_not_nan
from rfjax.engine.request import Request
from rfjax.engine.state import DecodeState
from rfjax.errors import CapacityError
from rfjax.io.memory import free_bytes
from rfjax.models.config import ModelConfig
from rfjax.models.params import Params
from rfjax.ops.sampling import SamplingState


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

    def __init__(self, params: Params, config: ModelConfig, engine: EngineConfig):
        self._params = params
        self._config = config
        self._engine = engine
        self._prefill = jax.jit(
            steps.prefill, static_argnames=("length", "config"), donate_argnames="state"
        )
        self._decode = jax.jit(steps.decode, static_argnames="config", donate_argnames="state")

    def run(self, requests: Sequence[Request]) -> Iterator[Progress]:
        """Generate for up to `max_batch_size` requests, one `Progress` after each burst.

        The first burst is a single step, so that the first token shows without delay; the last
        `Progress` has every request finished.

        Raises:
            CapacityError: the cache would not fit in the device's free memory.
            ModelFormatError: the model computes NaN.
        """
        assert 0 < len(requests) <= self._engine.max_batch_size
        state = self._start(requests)
        longest = max(len(request.token_ids) for request in requests)
        for start, length in prefill_chunks(longest - 1, self._engine.prefill_chunk):
            state = self._prefill(
                self._params, state, np.int32(start), length=length, config=self._config
            )
        n_steps = 1
        while True:
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
        batch = round_up_power_of_two(len(requests))
        capacity = round_up_power_of_two(
            max(request.limit for request in requests), SMALLEST_CAPACITY
        )
        dtype = jnp.dtype(config.dtype)
        self._check_room(cache_bytes(config.kv_shapes, batch, capacity, dtype), batch, capacity)
        n_stop = round_up_power_of_two(max(len(request.stop_ids) for request in requests), 8)

        tokens = np.zeros((batch, capacity), np.int32)
        lengths = np.ones(batch, np.int32)
        limits = np.ones(batch, np.int32)
        stop_ids = np.full((batch, n_stop), -1, np.int32)
        seen = np.zeros((batch, config.vocab_size), bool)
        for row, request in enumerate(requests):
            n = len(request.token_ids)
            tokens[row, :n] = request.token_ids
            lengths[row] = n
            limits[row] = request.limit
            stop_ids[row, : len(request.stop_ids)] = request.stop_ids
            seen[row, list(request.token_ids)] = True

        def column(get: Callable[[Request], float], dtype: type) -> jax.Array:
            values = [get(request) for request in requests]
            return jnp.array(values + values[-1:] * (batch - len(values)), dtype)

        return DecodeState(
            cache=init_cache(config.kv_shapes, batch, capacity, dtype),
            tokens=jnp.array(tokens),
            logprobs=jnp.zeros((batch, capacity), jnp.float32),
            lengths=jnp.array(lengths),
            limits=jnp.array(limits),
            stop_ids=jnp.array(stop_ids),
            finished=jnp.arange(batch) >= len(requests),
            sampling=SamplingState(
                temperature=column(lambda r: r.params.temperature, np.float32),
                top_k=column(lambda r: max(0, r.params.top_k), np.int32),
                top_p=column(lambda r: r.params.top_p, np.float32),
                min_p=column(lambda r: r.params.min_p, np.float32),
                repetition_penalty=column(lambda r: r.params.repetition_penalty, np.float32),
                seed=column(lambda r: r.seed, np.uint32),
                seen=jnp.array(seen),
            ),
        )

    def _check_room(self, needed: int, batch: int, capacity: int) -> None:
        free = free_bytes(jax.devices()[0])
        if free is not None and needed > free:
            raise CapacityError(
                f"the cache of {batch} sequences of {capacity} tokens takes "
                f"{needed / 2**30:.2f} GiB, and {free / 2**30:.2f} GiB are free: lower "
                "max_batch_size, max_context or max_tokens"
            )
