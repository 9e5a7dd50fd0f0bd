"""The main class: one model file, ready to generate and to be measured."""

import os
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jax.sharding import Mesh

from rfjax.engine.compilation_cache import enable_compilation_cache
from rfjax.engine.config import EngineConfig
from rfjax.engine.output import RequestOutput, SampleOutput, StreamOutput
from rfjax.engine.request import Request, as_token_ids, make_request
from rfjax.engine.runner import Progress, Runner
from rfjax.engine.sampling_params import SamplingParams
from rfjax.errors import ConfigError, RequestError, UnsupportedError
from rfjax.evals.perplexity import PerplexityResult, perplexity
from rfjax.io.load import Model, load
from rfjax.models.config import ModelConfig
from rfjax.ops.dispatch import KernelPolicy
from rfjax.tokenizer import Tokenizer

Prompt = str | Sequence[int]

_NOT_SAMPLED_BY_YET = (
    "typical_p",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "allowed_token_ids",
    "min_tokens",
    "stop",
    "include_stop_str_in_output",
    "n",
    "prompt_logprobs",
)
"""Sampling parameters that the decode loop does not know."""


class LLM:
    """A model loaded from a GGUF file.

    Args:
        path: a GGUF file, or any part of a split one.
        dtype: "float32", "bfloat16" or "float16"; None takes bfloat16 on GPUs, float32 on the CPU.
        mesh: devices to spread the model over, with axes "model" (the weights) and "data" (the
            sequences of a batch); None takes one. See `rfjax.sharding.make_mesh`.
        weights: "packed" or "dequantized", as in `rfjax.load`; None takes what is faster and fits.
        engine: sizes of batches, chunks and bursts.
        kernels: which kernels may run, such as `KernelPolicy("xla")` for none; None takes one
            wherever it accepts.
        compilation_cache: keep compiled programs in the user's cache folder.
        selfcheck: whether to try the kernels before their first use and disable those that fail,
            as in `rfjax.load`; None does so on GPUs.

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
        self._engine = engine
        model = self._model
        self._runner = Runner(model.params, model.config, engine, model.mesh)

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
        """Most tokens of a sequence, prompt and output."""
        return self._engine.max_context or self._model.config.context_length

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Continue prompts, many at once.

        Args:
            prompts: texts or lists of token ids; a single one is a batch of one.
            sampling_params: for all prompts, or one each; None takes the defaults.

        Returns:
            One output per prompt, in order.

        Raises:
            RequestError: an empty or too long prompt, ids outside the vocabulary, text for a
                model without tokenizer, what is neither text nor ids, or numbers of prompts and
                parameters that differ. Raised before anything runs.
            CapacityError: the cache would not fit in free memory.
        """
        listed = _as_list(prompts)
        params = _params_for(listed, sampling_params)
        requests = [self._request(p, s) for p, s in zip(listed, params, strict=True)]
        outputs: dict[int, RequestOutput] = {}
        # Neighbours in length share a batch: less padding, and less waiting for the longest.
        order = sorted(range(len(requests)), key=lambda i: requests[i].limit)
        size = self._engine.max_batch_size
        for start in range(0, len(order), size):
            group = order[start : start + size]
            progress = None
            for progress in self._runner.run([requests[i] for i in group]):  # noqa: B007
                pass
            assert progress is not None
            for row, i in enumerate(group):
                outputs[i] = self._output(listed[i], requests[i], progress, row)
        return [outputs[i] for i in range(len(requests))]

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> Iterator[StreamOutput]:
        """Continue one prompt, piece by piece; a piece never ends inside a character.

        Raises:
            RequestError, CapacityError: as `generate`, at the first piece asked for.
        """
        request = self._request(prompt, sampling_params or SamplingParams())
        decoder = None if self.tokenizer is None else self.tokenizer.stream(continuation=True)
        sent = len(request.token_ids)
        for progress in self._runner.run([request]):
            length = int(progress.lengths[0])
            ids = progress.tokens[0, sent:length].tolist()
            logprobs = progress.logprobs[0, sent:length].tolist()
            sent = length
            reason = _finish_reason(ids, request) if progress.finished[0] else None
            shown = ids[:-1] if reason == "stop" else ids
            text = "" if decoder is None else decoder.push(shown)
            if reason is not None and decoder is not None:
                text += decoder.flush()
            yield StreamOutput(text=text, token_ids=ids, logprobs=logprobs, finish_reason=reason)

    def chat(
        self,
        messages: Sequence[dict],
        sampling_params: SamplingParams | None = None,
        **template_arguments: Any,
    ) -> Iterator[StreamOutput]:
        """Answer a conversation, streamed, through the file's own chat template.

        Args:
            messages: dicts with "role" and "content", oldest first.
            template_arguments: handed to the template, such as `enable_thinking=False`.

        Raises:
            RequestError: no tokenizer or no template, or the template refuses the messages.
        """
        tokenizer = self._need_tokenizer()
        text = tokenizer.apply_chat_template(messages, **template_arguments)
        ids = tokenizer.encode(text, add_special_tokens=False, parse_special=True)
        return self.stream(ids, sampling_params)

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

        See `rfjax.evals.perplexity.perplexity`, whose arguments these are.
        """
        return perplexity(
            self._model,
            text,
            n_ctx=n_ctx,
            chunks=chunks,
            batch_size=batch_size,
            on_chunk=on_chunk,
        )

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise RequestError(
                f"{self._model.path} has no tokenizer: give token ids instead of text"
            )
        return self.tokenizer

    def _request(self, prompt: Prompt, params: SamplingParams) -> Request:
        _check_supported(params)
        if isinstance(prompt, str):
            ids = self._need_tokenizer().encode(prompt) if prompt else []
        else:
            ids = as_token_ids(prompt)
        end_ids = frozenset() if self.tokenizer is None else self.tokenizer.eog_ids
        return make_request(
            ids,
            params,
            vocab_size=self.config.vocab_size,
            max_context=self.max_context,
            end_ids=end_ids,
        )

    def _output(
        self, prompt: Prompt, request: Request, progress: Progress, row: int
    ) -> RequestOutput:
        begin, end = len(request.token_ids), int(progress.lengths[row])
        ids = progress.tokens[row, begin:end].tolist()
        reason = _finish_reason(ids, request)
        shown = ids[:-1] if reason == "stop" else ids
        text = "" if self.tokenizer is None else self.tokenizer.decode(shown, continuation=True)
        return RequestOutput(
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=list(request.token_ids),
            samples=(
                SampleOutput(
                    text=text,
                    token_ids=ids,
                    finish_reason=reason,
                    logprobs=progress.logprobs[row, begin:end].tolist(),
                ),
            ),
        )


def _finish_reason(ids: list[int], request: Request):
    return "stop" if ids and ids[-1] in request.stop_ids else "length"


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Iterable) or isinstance(prompts, bytes | bytearray):
        return [prompts]  # refused with the prompts themselves
    listed: list[Any] = list(prompts)
    if listed and not any(hasattr(p, "__len__") for p in listed):
        return [listed]  # one prompt of token ids
    return listed


def _check_supported(params: SamplingParams) -> None:
    default = SamplingParams()
    given = [n for n in _NOT_SAMPLED_BY_YET if getattr(params, n) != getattr(default, n)]
    given += ["logprobs"] if params.logprobs else []
    if given:
        raise UnsupportedError(
            f"sampling parameters: got {', '.join(given)}, which this version does not apply yet: "
            "leave them at their defaults"
        )


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
