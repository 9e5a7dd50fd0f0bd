"""The main class: one model file, ready to generate and to be measured."""

import collections
import contextlib
import dataclasses
import logging
import os
import reprlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from rfjax.engine.cache_plan import plan_cache
from rfjax.engine.chat_stream import ReasoningMode, chat_stream, check_reasoning
from rfjax.engine.compilation_cache import enable_compilation_cache
from rfjax.engine.config import EngineConfig
from rfjax.engine.engine import Engine, Prompt
from rfjax.engine.handle import RequestHandle
from rfjax.engine.output import RequestOutput, StreamOutput
from rfjax.engine.plan_runner import PlanRunner
from rfjax.engine.request import Request
from rfjax.engine.sampling_params import SamplingParams
from rfjax.engine.warm_up import WarmUp
from rfjax.errors import CapacityError, ConfigError, RequestError
from rfjax.evals.loglikelihood import (
    Likelihood,
    RollingLikelihood,
    loglikelihood,
    loglikelihood_rolling,
)
from rfjax.evals.perplexity import PerplexityResult, perplexity
from rfjax.evals.records.journal import Journal
from rfjax.evals.records.provenance import provenance
from rfjax.evals.scoring.scorer import Scorer
from rfjax.io.load import Model, load
from rfjax.models.config import ModelConfig
from rfjax.ops.dispatch import KernelPolicy
from rfjax.ops.sampling import LogitsProcessor
from rfjax.progress import progress_bar
from rfjax.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class LLM:
    """A model loaded from a GGUF file.

    Args:
        path: a GGUF file, or any part of a split one.
        dtype: "float32", "bfloat16" or "float16"; None takes bfloat16 on GPUs, float32 on the CPU.
        mesh: devices to spread the model over, with axes "model" (the weights) and "data" (the
            sequences of a batch); None takes one. See `rfjax.sharding.make_mesh`.
        weights: "packed" or "dequantized", as in `rfjax.load`; None takes what is faster and fits.
        engine: sizes of batches, chunks, bursts and the cache, which is made at the first use.
        kernels: which kernels may run, such as `KernelPolicy("xla")` for none; None takes one
            wherever it accepts.
        compilation_cache: keep compiled programs in the user's cache folder.
        selfcheck: whether to try the kernels before their first use and disable those that fail,
            as in `rfjax.load`; None does so on GPUs.
        logits_processors: pure functions that change the logits of every generated token, in
            order; see `rfjax.ops.sampling`.

    Raises:
        ModelFormatError, UnsupportedError, CapacityError, ConfigError: as `rfjax.load`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        dtype: str | None = None,
        mesh: Mesh | None = None,
        weights: str | None = None,
        engine: EngineConfig | None = None,
        kernels: KernelPolicy | None = None,
        compilation_cache: bool = True,
        selfcheck: bool | None = None,
        logits_processors: Sequence[LogitsProcessor] = (),
    ):
        if compilation_cache:
            enable_compilation_cache()
        engine = engine or EngineConfig()
        self._model = load(
            path,
            dtype=dtype,
            mesh=mesh,
            weights=weights,
            context=engine.max_context,
            kernels=kernels,
            selfcheck=selfcheck,
        )
        limit = self._model.config.context_length
        if engine.max_context is not None and engine.max_context > limit:
            raise ConfigError(
                f"max_context: got {engine.max_context}, and the model's context holds {limit}"
            )
        self._settings = engine
        self._logits_processors = tuple(logits_processors)
        self._engine: Engine | None = None
        self._making = threading.Lock()

    @property
    def model(self) -> Model:
        """Weights, configuration and tokenizer, for the functional level."""
        return self._model

    @property
    def config(self) -> ModelConfig:
        """The model's sizes and mechanisms."""
        return self._model.config

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The file's tokenizer; None when it has none."""
        return self._model.tokenizer

    @property
    def max_context(self) -> int:
        """Most tokens of a sequence, prompt and output.

        The engine, once it is made, may allow less than the model does, where memory is short.
        """
        if self._engine is not None:
            return self._engine.max_context
        return self._settings.max_context or self._model.config.context_length

    @property
    def engine(self) -> Engine:
        """What `generate`, `stream` and `chat` run on, with its cache: made when first asked for.

        For requests that come and go: `submit` and `step` by hand, or an
        `rfjax.engine.async_engine.AsyncEngine` over it. All use the same pages.

        Raises:
            CapacityError: one sequence's cache does not fit in the free memory; says what would.
            UnsupportedError: the model is bidirectional and generates no text.
        """
        with self._making:
            if self._engine is None:
                model, settings = self._model, self._settings
                plan = plan_cache(model.params, model.config, settings, model.mesh)
                runner = PlanRunner(
                    model.params,
                    model.config,
                    plan.sizes,
                    mesh=model.mesh,
                    kv_dtype=settings.kv_dtype,
                    logits_processors=self._logits_processors,
                )
                self._engine = Engine(
                    runner,
                    plan.sizes,
                    vocab_size=model.config.vocab_size,
                    tokenizer=model.tokenizer,
                )
            return self._engine

    def warm_up(
        self,
        sampling_params: SamplingParams | Sequence[SamplingParams] = (),
        *,
        sequences: int | None = None,
        prompt_tokens: int | None = None,
        threads: int | None = None,
    ) -> WarmUp:
        """Compile ahead what requests will need, side by side, so that none waits for it.

        See `rfjax.engine.engine.Engine.warm_up`, whose arguments these are. The smaller the
        numbers of sequences and tokens, the fewer programs.

        Returns:
            What was compiled, and how long it took.

        Raises:
            RequestError, ConfigError, CapacityError: as that, and as `engine`.
        """
        one = isinstance(sampling_params, SamplingParams)
        kinds = [sampling_params] if one else list(sampling_params)
        return self.engine.warm_up(
            kinds, sequences=sequences, prompt_tokens=prompt_tokens, threads=threads
        )

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Continue prompts, many at once.

        Prompts that begin as earlier ones did take those parts from the cache, across calls too.
        An interrupted call cancels its requests; the next one finds all pages free.

        Args:
            prompts: texts or lists of token ids; a single one is a batch of one.
            sampling_params: for all prompts, or one each; None takes the defaults.

        Returns:
            One output per prompt, in order. One that fails alone, as with NaN among its logits,
            has the finish reason "error" and says why in `error`.

        Raises:
            RequestError: an empty or too long prompt, ids outside the vocabulary, text for a
                model without tokenizer, what is neither text nor ids, or numbers of prompts and
                parameters that differ. Raised before anything runs.
            CapacityError: the cache does not fit in free memory, or a step's values do not.
        """
        listed = _as_list(prompts)
        params = _params_for(listed, sampling_params)
        engine = self.engine
        requests = [engine.make_request(p, s) for p, s in zip(listed, params, strict=True)]
        texts = [prompt if isinstance(prompt, str) else None for prompt in listed]
        waiting = collections.deque(zip(requests, texts, strict=True))
        handles: list[RequestHandle] = []
        unfinished: list[RequestHandle] = []
        try:
            while waiting or unfinished:
                unfinished += _submitted(engine, waiting, handles)
                engine.step()
                unfinished = [handle for handle in unfinished if not handle.done]
        except BaseException:
            for request in requests:
                engine.cancel(request.id)
            raise
        outputs = [handle.output() for handle in handles]
        errors = [s.error for output in outputs for s in output.samples if s.error is not None]
        if errors:
            logger.warning("%d generations failed, the first with: %s", len(errors), errors[0])
        return outputs

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> Iterator[StreamOutput]:
        """Continue one prompt, piece by piece; a piece never ends inside a character.

        Pieces of several samples (`SamplingParams.n`) come in turns and say whose they are.
        Leaving the iterator before its end cancels the request.

        Raises:
            RequestError, CapacityError: as `generate`, at the first piece asked for; or the queue
                is full of others' requests.
        """
        (params,) = _params_for([prompt], sampling_params)
        engine = self.engine
        request = engine.make_request(prompt, params)
        try:
            handle = engine.submit(request, prompt=prompt if isinstance(prompt, str) else None)
            yield from engine.stream(handle)
        except BaseException:
            engine.cancel(request.id)
            raise

    def chat(
        self,
        messages: Sequence[dict],
        sampling_params: SamplingParams | None = None,
        *,
        template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        reasoning: ReasoningMode = "show",
    ) -> Iterator[StreamOutput]:
        """Answer a conversation, streamed, through the file's own chat template.

        Args:
            messages: dicts with "role" and "content", oldest first. Replies may hold their
                reasoning, or have it in "reasoning_content": the template decides what of it the
                model sees again.
            sampling_params: as for `stream`.
            template: another template: its name in the file or in `rfjax.tokenizer.families`, such
                as "chatml", or Jinja source. With a family's name, what ends a turn in that
                family ends the answer as well.
            template_kwargs: handed to the template, such as `{"enable_thinking": False}`.
            reasoning: whether a thinking model's reasoning stays in the pieces' `text`, with its
                delimiters ("show"), or is left out of it ("hide") and given in `reasoning`.

        Raises:
            RequestError: no tokenizer or no template, or the template refuses the messages; or as
                `stream`, at the first piece asked for.
        """
        check_reasoning(reasoning)
        tokenizer = self._need_tokenizer()
        prompt = tokenizer.chat_prompt(messages, template=template, template_kwargs=template_kwargs)
        (params,) = _params_for([prompt.token_ids], sampling_params)
        if (prompt.stop or prompt.stop_token_ids) and not params.ignore_eos:
            params = dataclasses.replace(
                params,
                stop=(*params.stop_strings, *prompt.stop),
                stop_token_ids=(*params.stop_token_ids, *prompt.stop_token_ids),
            )
        return chat_stream(self.stream(prompt.token_ids, params), tokenizer, prompt, reasoning)

    def perplexity(
        self,
        text: Prompt,
        *,
        n_ctx: int = 512,
        chunks: int | None = None,
        batch_size: int | None = None,
        on_chunk: Callable[[int, int, float], None] | None = None,
    ) -> PerplexityResult:
        """Perplexity of a text as llama-perplexity counts it.

        See `rfjax.evals.perplexity.perplexity`, whose arguments these are. The engine's cache makes
        room for it: prefixes of earlier prompts are computed again.
        """
        if self._engine is not None:
            self._engine.release()
        return perplexity(
            self._model,
            text,
            n_ctx=n_ctx,
            chunks=chunks,
            batch_size=batch_size,
            on_chunk=on_chunk,
        )

    def scorer(self, *, batch_invariant: bool = True) -> Scorer:
        """What `loglikelihood` scores with, for tokens one by one and for tasks of one's own.

        The engine's cache makes room for it. See `rfjax.evals.scoring.scorer.Scorer`.

        Raises:
            UnsupportedError: the model is bidirectional.
        """
        if self._engine is not None:
            self._engine.release()
        return Scorer(self._model, batch_invariant=batch_invariant)

    def loglikelihood(
        self,
        requests: Sequence[tuple[Prompt, Prompt]],
        *,
        batch_invariant: bool = True,
        journal: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> list[Likelihood]:
        """Log-probabilities of continuations after their contexts, many at once.

        `llm.loglikelihood([("The capital of France is", " Paris")])` gives `[(logprob,
        is_greedy)]`. Contexts that begin alike are computed once. Texts are split into tokens as
        lm-evaluation-harness does it, see `rfjax.evals.loglikelihood`.

        Args:
            requests: pairs of context and continuation, texts or lists of token ids.
            batch_invariant: whether results must be the same, bit for bit, whatever else is
                scored and in whatever order; costs time where few are, see `Scorer`.
            journal: a file that results are kept in as they come: after an interruption the same
                call goes on where it stopped.
            progress: show a bar on stderr, if that is a terminal.

        Raises:
            RequestError: an empty or too long continuation, ids outside the vocabulary, text for a
                model without tokenizer; or the journal is another model's.
            UnsupportedError: the model is bidirectional.
            CapacityError: the cache does not fit in the free memory.
        """
        scorer = self.scorer(batch_invariant=batch_invariant)
        with self._journal(journal, scorer) as kept, _bar(progress) as tell:
            return loglikelihood(scorer, self.tokenizer, requests, journal=kept, on_progress=tell)

    def loglikelihood_rolling(
        self,
        texts: Prompt | Sequence[Prompt],
        *,
        batch_invariant: bool = True,
        journal: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> list[RollingLikelihood]:
        """Log-probabilities of whole texts, in windows of the model's context.

        Args:
            texts: texts or lists of token ids without BOS; a single one is a list of one.
            batch_invariant, journal, progress: as for `loglikelihood`; the bar counts windows.

        Raises:
            RequestError, UnsupportedError, CapacityError: as `loglikelihood`.
        """
        scorer = self.scorer(batch_invariant=batch_invariant)
        with self._journal(journal, scorer) as kept, _bar(progress) as tell:
            return loglikelihood_rolling(
                scorer, self.tokenizer, _as_list(texts), journal=kept, on_progress=tell
            )

    def _journal(
        self, path: str | os.PathLike[str] | None, scorer: Scorer
    ) -> contextlib.AbstractContextManager[Journal | None]:
        if path is None:
            return contextlib.nullcontext()
        about = provenance(self._model, scorer.settings)
        return Journal.open(path, about)

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise RequestError(
                f"{self._model.path} has no tokenizer: give token ids instead of text"
            )
        return self.tokenizer


@contextlib.contextmanager
def _bar(wanted: bool) -> Iterator[Callable[[int, int], None] | None]:
    """What to tell progress to."""
    if not wanted:
        yield None
        return
    with progress_bar() as bar:
        task = bar.add_task("scoring", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _submitted(
    engine: Engine,
    waiting: collections.deque[tuple[Request, str | None]],
    handles: list[RequestHandle],
) -> list[RequestHandle]:
    """Submit what the engine's queue has room for, in order."""
    before = len(handles)
    while waiting:
        request, text = waiting[0]
        try:
            handles.append(engine.submit(request, prompt=text))
        except CapacityError:
            break
        waiting.popleft()
    return handles[before:]


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Iterable) or isinstance(prompts, bytes | bytearray):
        return [prompts]  # refused with the prompts themselves
    listed: list[Any] = list(prompts)
    if listed and not any(hasattr(p, "__len__") for p in listed):
        return [listed]  # one prompt of token ids
    return listed


def _params_for(
    prompts: list[Prompt], given: SamplingParams | Sequence[SamplingParams] | None
) -> list[SamplingParams]:
    if given is None or isinstance(given, SamplingParams):
        return [given or SamplingParams()] * len(prompts)
    if not all(isinstance(params, SamplingParams) for params in given):
        raise RequestError(
            f"sampling parameters: got {reprlib.repr(given)}, expected rfjax.SamplingParams, one "
            "for all prompts or a list of one each"
        )
    if len(given) != len(prompts):
        raise RequestError(
            f"{len(prompts)} prompts and {len(given)} sampling parameters: give one for all, or "
            "one for each prompt"
        )
    return list(given)
