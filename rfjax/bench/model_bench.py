"""Measures the cases of a model: a warm-up, then repetitions, as llama-bench does."""

import dataclasses
import datetime
import functools
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rfjax.bench.case import Case
from rfjax.bench.environment import find_environment
from rfjax.bench.result import Result
from rfjax.bench.roof import Roof
from rfjax.bench.steps import generate, prompt_step
from rfjax.bench.subject import Subject
from rfjax.bench.traffic import case_bytes, case_flops
from rfjax.cache.dense import DenseCache, cache_bytes, init_cache
from rfjax.engine.buckets import round_up_power_of_two
from rfjax.engine.compiler_options import compiler_options
from rfjax.errors import CapacityError, ConfigError
from rfjax.evals.score import score
from rfjax.io.memory import free_bytes, gib
from rfjax.models.decoder import project
from rfjax.models.params import Params
from rfjax.quant.qtensor import has_packed
from rfjax.typing import Array

_SMALLEST_CAPACITY = 64
"""Tokens that a row of the cache holds at least."""

_MOST_REPETITIONS = 200
"""For which a case is measured for the sake of `BenchConfig.least_seconds`."""

Run = Callable[[], tuple[float, object]]
"""One repetition: its seconds, and what it computed."""


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """How to measure.

    Attributes:
        repetitions: of every case, after one run that warms up.
        prompt_chunk: most prompt tokens of a sequence computed in one step.
        seed: of the random tokens.
        least_seconds: repeat further until the repetitions of a case took so long together, or
            are 200.
    """

    repetitions: int = 5
    prompt_chunk: int = 512
    seed: int = 0
    least_seconds: float = 0.0

    def __post_init__(self):
        for name, least in (("repetitions", 1), ("prompt_chunk", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name}: got {value!r}, expected an integer of at least {least}")


def bench(
    subject: Subject,
    cases: Sequence[Case],
    *,
    config: BenchConfig | None = None,
    roof: Roof | None = None,
    on_run: Callable[[Case, int], None] | None = None,
) -> Iterator[Result]:
    """Measure a model, case by case.

    Counted, as in llama-bench: a prompt is computed in chunks with the logits of its last token;
    generation computes the logits of every step and samples nothing, from an empty cache or from
    the depth. Tokens are random, BOS first where the vocabulary adds one, and on the device before
    the clock starts. All of a case's steps are dispatched, and generation loops on the device:
    the host waits once, at the end. Scoring computes the likelihoods of the second half of its
    contexts, and counts all tokens.

    Args:
        subject: the model.
        cases: what to measure.
        config: repetitions and the like; None takes the defaults.
        roof: measured ceilings; None leaves the shares of them out.
        on_run: called with the case and the number of the run, 0 for the warm-up.

    Raises:
        ConfigError: a case needs more context than the model has; raised before anything runs.
        CapacityError: a case's cache would not fit in free memory; raised when its turn comes.
    """
    config = config or BenchConfig()
    for case in cases:
        if case.n_context > subject.config.context_length:
            raise ConfigError(
                f"{case.name} takes a context of {case.n_context} tokens, and the model's holds "
                f"{subject.config.context_length}"
            )
    return _results(subject, cases, config, roof, on_run)


def _results(
    subject: Subject,
    cases: Sequence[Case],
    config: BenchConfig,
    roof: Roof | None,
    on_run: Callable[[Case, int], None] | None,
) -> Iterator[Result]:
    environment = find_environment()
    for case in cases:
        test_time = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        run = _prepare(subject, case, config)
        tell = functools.partial(on_run or (lambda case, number: None), case)
        tell(0)
        start = time.perf_counter()
        run()
        warmup = time.perf_counter() - start
        seconds = []
        while len(seconds) < config.repetitions or (
            sum(seconds) < config.least_seconds and len(seconds) < _MOST_REPETITIONS
        ):
            tell(len(seconds) + 1)
            taken, _ = run()
            seconds.append(taken)
        yield Result(
            environment=environment,
            model_filename=subject.filename,
            model_type=subject.description,
            model_size=subject.stored_bytes,
            model_n_params=subject.n_params,
            n_ubatch=config.prompt_chunk,
            type_k=_cache_type(subject.config.dtype),
            type_v=_cache_type(subject.config.dtype),
            dtype=subject.config.dtype,
            weights=subject.weights,
            implementation=subject.config.kernels.implementation or "auto",
            **dataclasses.asdict(case),
            test=case.name,
            test_time=test_time,
            warmup_s=warmup,
            samples_ns=tuple(round(taken * 1e9) for taken in seconds),
            n_tokens=case.n_tokens,
            bytes_read=case_bytes(subject.params, subject.config, case),
            flops=case_flops(subject.config, case),
            copy_bytes_per_s=None if roof is None else roof.copy_bytes_per_s,
            matmul_flop_per_s=None if roof is None else roof.matmul_flop_per_s,
        )


def _cache_type(dtype: str) -> str:
    """A dtype as ggml names it."""
    return {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[dtype]


def _prepare(subject: Subject, case: Case, config: BenchConfig) -> Run:
    return (
        _prepare_score(subject, case, config) if case.n_score else _Decoding(subject, case, config)
    )


def _jit(function: Callable, params: Params, **arguments) -> Callable:
    """Compiled as `LLM` compiles its steps."""
    options = compiler_options(packed=has_packed(params))
    return jax.jit(function, compiler_options=options, **arguments)


def _random_tokens(subject: Subject, shape: tuple[int, int], seed: int) -> np.ndarray:
    """Token ids int32 `[B, L]`, BOS first where the vocabulary adds one."""
    tokens = np.random.default_rng(seed).integers(0, subject.config.vocab_size, shape)
    if subject.bos_id is not None and shape[1]:
        tokens[:, 0] = subject.bos_id
    return tokens.astype(np.int32)


def _prepare_score(subject: Subject, case: Case, config: BenchConfig) -> Run:
    tokens = jnp.asarray(_random_tokens(subject, (case.n_seqs, case.n_score), config.seed))
    mask = jnp.ones(tokens.shape, jnp.bool_)
    scoring = _jit(score, subject.params, static_argnames=("first", "config"))

    def run() -> tuple[float, object]:
        start = time.perf_counter()
        logprobs = scoring(
            subject.params, tokens, mask, first=case.n_score // 2, config=subject.config
        )
        jax.block_until_ready(logprobs)
        return time.perf_counter() - start, logprobs

    return run


class _Decoding:
    """A prompt, generation, or one after the other, from a depth that is computed once."""

    def __init__(self, subject: Subject, case: Case, config: BenchConfig):
        self._params, self._config = subject.params, subject.config
        self._case, self._chunk = case, config.prompt_chunk
        self._capacity = round_up_power_of_two(case.n_context, _SMALLEST_CAPACITY)
        self._check_room()
        jit = functools.partial(_jit, params=subject.params, static_argnames="config")
        self._prompt_step = jit(prompt_step, donate_argnames="cache")
        self._generate = jit(generate, donate_argnames="cache")
        self._project = jit(project)
        rng_shapes = (case.n_depth, case.n_prompt, case.n_gen)
        self._depth_chunks, self._prompt_chunks, generated = (
            self._chunks(_random_tokens(subject, (case.n_seqs, n), config.seed + i), whole=i == 2)
            for i, n in enumerate(rng_shapes)
        )
        self._generated = generated[0] if case.n_gen else None
        self._deep: DenseCache | None = None

    def __call__(self) -> tuple[float, object]:
        case = self._case
        cache = jax.block_until_ready(self._cache())
        logits = None
        start = time.perf_counter()
        position = case.n_depth
        if case.n_prompt:
            hidden, cache = self._compute(cache, self._prompt_chunks, position)
            logits = self._project(self._params, hidden, config=self._config)
            position += case.n_prompt
        if self._generated is not None:
            logits, cache = self._generate(
                self._params, cache, self._generated, np.int32(position), config=self._config
            )
        jax.block_until_ready((logits, cache))
        return time.perf_counter() - start, logits

    def _chunks(self, tokens: np.ndarray, *, whole: bool) -> list[Array]:
        """Tokens on the device, cut along their second axis."""
        step = max(1, tokens.shape[1] if whole else self._chunk)
        starts = range(0, tokens.shape[1], step)
        return [jnp.asarray(tokens[:, start : start + step]) for start in starts]

    def _compute(
        self, cache: DenseCache, chunks: list[Array], position: int
    ) -> tuple[Array | None, DenseCache]:
        hidden = None
        for chunk in chunks:
            hidden, cache = self._prompt_step(
                self._params, cache, chunk, np.int32(position), config=self._config
            )
            position += chunk.shape[1]
        return hidden, cache

    def _cache(self) -> DenseCache:
        """An empty cache, or a copy of one filled to the depth: the steps consume it."""
        if self._deep is not None:
            return jax.tree.map(jnp.copy, self._deep)
        cache = init_cache(
            self._config.kv_shapes,
            self._case.n_seqs,
            self._capacity,
            jnp.dtype(self._config.dtype),
        )
        if not self._depth_chunks:
            return cache
        _, self._deep = self._compute(cache, self._depth_chunks, 0)
        return jax.tree.map(jnp.copy, self._deep)

    def _check_room(self) -> None:
        n_caches = 2 if self._case.n_depth else 1
        needed = n_caches * cache_bytes(
            self._config.kv_shapes,
            self._case.n_seqs,
            self._capacity,
            jnp.dtype(self._config.dtype),
        )
        free = free_bytes(jax.devices()[0])
        if free is not None and needed > free:
            raise CapacityError(
                f"{self._case.name}: the cache takes {gib(needed)}, and {gib(free)} are free: "
                "measure fewer sequences or a smaller depth"
            )
