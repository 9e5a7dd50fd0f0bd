"""Carries out the scheduler's plans on the device. See `rfjax.engine.plan` for what they ask."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rfjax.cache.paged import init_paged_cache
from rfjax.compile_threads import n_processors
from rfjax.engine import steps
from rfjax.engine.buckets import round_up_power_of_two
from rfjax.engine.burst import Burst, Reporting
from rfjax.engine.exhaustion import device_memory
from rfjax.engine.jitted_steps import jitted_steps
from rfjax.engine.plan import DecodeRows, Opened, PageCopies, PageWrites, Plan, PrefillChunk
from rfjax.engine.request import Request
from rfjax.engine.rows import rows_of, token_lists, uses_counts, widened
from rfjax.engine.sampling_params import MAX_LOGPROBS
from rfjax.engine.scheduler_config import SchedulerConfig
from rfjax.engine.step_programs import (
    LEAST_WRITES,
    Expected,
    Sizes,
    StepPrograms,
    shapes_of,
)
from rfjax.engine.warm_up import Program, UnderWay
from rfjax.models.config import ModelConfig
from rfjax.models.layer_groups import group_of_layers, layer_groups
from rfjax.models.params import Params
from rfjax.ops.sampling import LogitsProcessor
from rfjax.quant.qtensor import has_packed

_LEAST_LISTED = 8
"""Room for stop ids and biases of a request; it doubles when one needs more."""


class PlanRunner:
    """The cache and the rows of one model on its devices, and the compiled steps.

    Everything that plans change is given up to the next step (donated), so that a step that fails
    may leave nothing behind: `reset` then begins anew.
    """

    def __init__(
        self,
        params: Params,
        config: ModelConfig,
        sizes: SchedulerConfig,
        *,
        mesh: Mesh | None = None,
        kv_dtype: str | None = None,
        logits_processors: Sequence[LogitsProcessor] = (),
        compile_ahead: bool | None = None,
    ):
        """Allocates the cache.

        Args:
            params: the weights, spread over `mesh` if there is one.
            config: their sizes and mechanisms.
            sizes: what plans keep to; its groups are those of `layer_groups(config)`.
            mesh: the devices of the weights; kv heads are spread over its axis "model".
            kv_dtype: of keys and values, by name; None takes the config's.
            logits_processors: see `rfjax.ops.sampling.sample`.
            compile_ahead: begin to compile a plan's programs, and the one that its prompts will
                decode with, beside each other as soon as the plan is known, instead of each where
                it is called first. None does so where there are several processors, but not for
                the CPU's own devices, where it has not been shown to gain anything.
        """
        self._params = params
        self._config = config
        self._sizes = sizes
        self._mesh = mesh
        self._kv_dtype = jnp.dtype(kv_dtype or config.dtype)
        processors = tuple(logits_processors)
        self._reads_counts = bool(processors)  # they may
        few_programs = jax.default_backend() != "cpu"
        self._rounded = Sizes(sizes, few_programs)
        several = n_processors() > 1
        self._compiles_ahead = few_programs and several if compile_ahead is None else compile_ahead
        self._n_stop = self._n_bias = _LEAST_LISTED
        burst = max(sizes.burst, sizes.mixed_burst)
        self._compiled = jitted_steps(has_packed(params), mesh, burst, processors)
        self._n_top = min(MAX_LOGPROBS, config.vocab_size)
        self.reset()

    def reset(self) -> None:
        """Empty pages and slots, whatever was under way.

        Raises:
            CapacityError: they do not fit in the device's memory.
        """
        with device_memory():
            self._reset()

    def release(self) -> None:
        """Free the device's memory but for the weights; `reset` takes it again."""
        self._cache: Any = None
        self._rows: Any = None
        self._counts: Any = None
        self._tables: Any = None

    def dispatch(self, plan: Plan) -> Burst:
        """Start a plan behind those before it, and do not wait for it.

        Raises:
            CapacityError: a device ran out of memory. The runner is to be reset.
        """
        with device_memory():
            return self._dispatch(plan)

    def _reset(self) -> None:
        self.release()  # before the new ones are made
        sizes, config = self._sizes, self._config
        self._n_logprobs: dict[int, int | None] = {}
        self._prompts: dict[int, tuple[int, ...]] = {}
        self._cache = init_paged_cache(
            config.kv_shapes,
            group_of_layers(layer_groups(config)),
            tuple(group.n_pages for group in sizes.groups),
            sizes.page_size,
            self._kv_dtype,
            self._mesh,
        )
        width = sizes.max_pages
        empty = rows_of([], sizes.slots, config.vocab_size, self._n_stop, self._n_bias)
        self._rows = self._everywhere(jax.tree.map(np.asarray, empty))
        self._counts = self._everywhere(np.zeros((sizes.slots, config.vocab_size), np.int32))
        self._tables = self._everywhere(
            tuple(np.zeros((sizes.slots, width), np.int32) for _ in sizes.groups)
        )
        self._know_programs()

    def _know_programs(self) -> None:
        """The programs for arrays of the present shapes, of which none is known to be compiled."""
        state = self._params, self._cache, self._rows, self._counts, self._tables
        shapes = shapes_of(state)
        self._programs = StepPrograms(
            self._compiled, shapes, self._rounded, self._config, self._n_top
        )
        self._begun: set[tuple[str, int, int]] = set()
        self._under_way = UnderWay()

    def programs(
        self, requests: Sequence[Request], *, sequences: int, prompt_tokens: int
    ) -> tuple[Program, ...]:
        """All programs that such requests may need, those that take long first.

        Makes room for what these requests list, so that others need no other programs.

        Args:
            requests: of every kind that will come; their prompts do not matter.
            sequences: most of them under way at a time.
            prompt_tokens: most tokens of prompts that arrive together.
        """
        with device_memory():
            self._make_room(requests)
        params = [request.params for request in requests]
        expected = Expected(
            sequences,
            prompt_tokens,
            counts=self._reads_counts or any(map(uses_counts, params)),
            forks=any(one.n > 1 for one in params),
            reports=any(one.prompt_logprobs is not None for one in params),
        )
        return tuple(self._programs.expected(expected))

    def _dispatch(self, plan: Plan) -> Burst:
        for opened in plan.opened:
            self._n_logprobs[opened.slot] = opened.request.params.logprobs
            self._prompts.pop(opened.slot, None)
            if opened.request.params.prompt_logprobs is not None and opened.index == 0:
                self._prompts[opened.slot] = opened.token_ids
        self._make_room([opened.request for opened in plan.opened])
        silent = [*self._steps_of([c for c in plan.prefill if c.prompt_logprobs is None])]
        reported = [*self._steps_of([c for c in plan.prefill if c.prompt_logprobs is not None])]
        if self._compiles_ahead:
            self._look_ahead(plan, silent, reported)
        self._open(plan.opened)
        self._write(plan.writes)
        self._prefill(silent)
        reporting = self._prefill_reporting(reported)
        self._copy(plan.copies)
        made = self._decode(plan.decode, plan.n_steps) if plan.decode.slots else None
        asked = [self._n_logprobs[slot] for slot in plan.decode.slots]
        return Burst(plan, made, asked, reporting)

    def _look_ahead(
        self, plan: Plan, silent: Sequence["_Pieces"], reported: Sequence["_Pieces"]
    ) -> None:
        """Begin to compile what this plan needs, and what decodes once its prompts are computed."""
        prompts = {chunk.slot for chunk in plan.prefill}
        decoding = [plan.decode.slots, prompts.union(plan.decode.slots)]
        needed = [
            *(("prefill", *pieces.tokens.shape) for pieces in silent),
            *(("reporting", *pieces.tokens.shape) for pieces in reported),
            *(("decode", self._rounded.rows(len(slots)), 1) for slots in decoding if slots),
        ]
        new = [key for key in dict.fromkeys(needed) if key not in self._begun]
        self._begun.update(new)
        if len(new) > 1 or (new and plan.opened):
            self._under_way.begin({key: self._program(*key) for key in new})

    def _program(self, step: str, n: int, length: int) -> Program:
        if step == "decode":
            return self._programs.decode(n)
        return self._programs.prefill(n, length, reports=step == "reporting")

    def _everywhere(self, tree: Any) -> Any:
        """Arrays on all devices."""
        if self._mesh is None:
            return jax.tree.map(jnp.array, tree)
        return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec()))

    def _open(self, opened: Sequence[Opened]) -> None:
        if not opened:
            return
        n = round_up_power_of_two(len(opened))
        slots = self._sizes.slots
        at = _padded([o.slot for o in opened], n, slots)
        new = rows_of(opened, n, self._config.vocab_size, self._n_stop, self._n_bias)
        self._rows, self._tables = self._compiled.open_rows(self._rows, self._tables, at, new)
        counted = [o for o in opened if self._reads_counts or uses_counts(o.request.params)]
        if counted:
            n = round_up_power_of_two(len(counted))
            width = round_up_power_of_two(max(len(o.token_ids) for o in counted), LEAST_WRITES)
            at = _padded([o.slot for o in counted], n, slots)
            lists = token_lists(counted, n, width)
            self._counts = self._compiled.count_tokens(self._counts, at, *lists)

    def _make_room(self, requests: Sequence[Request]) -> None:
        """Wider lists of stop ids and biases, where these requests need them."""
        n_stop = max((len(request.stop_ids) for request in requests), default=0)
        n_bias = max((len(request.params.logit_biases) for request in requests), default=0)
        wider = tuple(
            round_up_power_of_two(n, least)
            for n, least in ((n_stop, self._n_stop), (n_bias, self._n_bias))
        )
        if wider != (self._n_stop, self._n_bias):
            self._n_stop, self._n_bias = wider
            self._rows = self._everywhere(widened(self._rows, *wider))
            self._know_programs()

    def _write(self, writes: Sequence[PageWrites]) -> None:
        n = round_up_power_of_two(max(len(write.slots) for write in writes), LEAST_WRITES)
        if not any(write.slots for write in writes):
            return
        slots = self._sizes.slots
        columns = tuple(
            (_padded(w.slots, n, slots), _padded(w.indices, n, 0), _padded(w.pages, n, 0))
            for w in writes
        )
        self._tables = self._compiled.write_tables(self._tables, columns)

    def _prefill(self, steps: Sequence["_Pieces"]) -> None:
        for pieces in steps:
            self._under_way.wait(("prefill", *pieces.tokens.shape))
            state = self._params, self._cache, self._tables
            self._cache = self._compiled.prefill(*state, *pieces.arrays, config=self._config)

    def _prefill_reporting(self, steps: Sequence["_Pieces"]) -> list[Reporting]:
        """Prompts that report their log-probabilities: by a program of their own."""
        reporting = []
        for pieces in steps:
            following = np.zeros_like(pieces.tokens)
            for chunk, first, n in pieces.places:
                begin = chunk.start + 1
                known = self._prompts[chunk.slot][begin : begin + len(chunk.token_ids)]
                following[first : first + n].reshape(-1)[: len(known)] = known
            self._under_way.wait(("reporting", *pieces.tokens.shape))
            self._cache, values = self._compiled.prefill_reporting(
                self._params,
                self._cache,
                self._tables,
                *pieces.arrays,
                following,
                n_top=self._n_top,
                config=self._config,
            )
            reporting.append(Reporting(pieces.places, values))
        return reporting

    def _steps_of(self, chunks: Sequence[PrefillChunk]) -> Iterator["_Pieces"]:
        """The chunks in as many steps as keep each within `most_prompt_tokens`."""
        if not chunks:
            return
        longest = max(len(chunk.token_ids) for chunk in chunks)
        length = self._rounded.piece(longest)
        most = self._rounded.most_pieces(length)
        taken, n = [], 0
        for chunk in chunks:
            n_pieces = -(-len(chunk.token_ids) // length)
            if taken and self._rounded.pieces(n + n_pieces) > most:
                yield self._pieces(taken, n, length)
                taken, n = [], 0
            taken.append((chunk, n, n_pieces))
            n += n_pieces
        yield self._pieces(taken, n, length)

    def _pieces(
        self, places: Sequence[tuple[PrefillChunk, int, int]], n: int, length: int
    ) -> "_Pieces":
        rows = self._rounded.pieces(n)
        tokens = np.zeros((rows, length), np.int32)
        positions = np.full((rows, length), -1, np.int32)
        slots = np.zeros(rows, np.int32)
        for chunk, first, n_pieces in places:
            size, whole = len(chunk.token_ids), slice(first, first + n_pieces)
            tokens[whole].reshape(-1)[:size] = chunk.token_ids
            positions[whole].reshape(-1)[:size] = np.arange(chunk.start, chunk.start + size)
            slots[whole] = chunk.slot
        return _Pieces(tokens, positions, slots, tuple(places))

    def _copy(self, copies: Sequence[PageCopies]) -> None:
        if not any(pairs.sources for pairs in copies):
            return
        n = round_up_power_of_two(max(len(pairs.sources) for pairs in copies))
        columns = tuple(
            (_padded(pairs.sources, n, 0), _padded(pairs.targets, n, group.n_pages))
            for pairs, group in zip(copies, self._sizes.groups, strict=True)
        )
        self._cache = self._compiled.copy_pages(self._cache, columns)

    def _decode(self, decode: DecodeRows, n_steps: int) -> steps.Made:
        sizes = self._sizes
        n = self._rounded.rows(len(decode.slots))
        self._under_way.wait(("decode", n, 1))
        self._cache, self._rows, self._counts, made = self._compiled.decode(
            self._params,
            self._cache,
            self._rows,
            self._counts,
            self._tables,
            _padded(decode.slots, n, sizes.slots),
            _padded(decode.steps, n, 0),
            np.int32(n_steps),
            n_top=self._n_top,
            config=self._config,
        )
        return made


@dataclasses.dataclass(frozen=True)
class _Pieces:
    """Prompts cut into rows of one length.

    Attributes:
        tokens: int32 [B, L]; positions: int32 [B, L], -1 at padding; slots: int32 [B].
        places: each chunk with its first row and the number of its rows.
    """

    tokens: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    places: tuple[tuple[PrefillChunk, int, int], ...]

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.tokens, self.positions, self.slots


def _padded(values: Sequence[int], n: int, fill: int) -> np.ndarray:
    return np.array([*values, *[fill] * (n - len(values))], np.int32)
