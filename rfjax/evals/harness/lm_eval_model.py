"""A GGUF model for lm-evaluation-harness. Importing this imports lm-eval.

The arithmetic is that of lm-eval's Hugging Face backend: texts are split as `TemplateLM` does it,
names of special tokens in a text are these tokens, BOS is added where the vocabulary says so and
the text does not begin with it, and what is too long loses its beginning.
"""

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import model_registry
from lm_eval.models.utils import (
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from rfjax.errors import ConfigError, ModelFormatError, RequestError
from rfjax.evals.harness.lm_eval_generation import Generation, generation
from rfjax.evals.loglikelihood import loglikelihood
from rfjax.evals.records.journal import Journal
from rfjax.llm import LLM
from rfjax.tokenizer import Tokenizer
from rfjax.tokenizer.families import FAMILIES

logger = logging.getLogger(__name__)

_GENERATED_AT_ONCE = 256  # as often the journal gets what is done
OnProgress = Callable[[str, int, int], None]
"""Called with what is going on, and how many of how many are done."""


class RfjaxLM(TemplateLM):
    """lm-eval's model class over an `rfjax.LLM`.

    `rfjax eval` makes one. By hand:

        lm_eval.simple_evaluate(model=RfjaxLM(rfjax.LLM("model.gguf")), tasks=["hellaswag"])

    Args:
        pretrained: a model, or the path of a GGUF file.
        dtype, weights: as of `rfjax.LLM`, for a path.
        max_length: most tokens that the model reads at a time; None takes the model's context.
        prefix_token_id: what stands before texts without a context; None takes BOS, else EOS.
        add_bos_token: False leaves out the special tokens that the vocabulary adds to texts.
        batch_invariant: whether likelihoods must not depend on what is scored beside them.
        chat_template: name of a template in the file or in `rfjax.tokenizer.families`, or Jinja
            source; None takes the file's own.
        seed: of generations that sample; request i of a call takes `seed + i`.
        journal: results are taken from it and added to it.
        on_progress: told how far it is.
        batch_size, max_batch_size, device: what lm-eval hands to every model; rfjax chooses.

    Raises:
        RequestError: the model has no tokenizer.
        ConfigError: `max_length` is out of range.
        RfjaxError: as `rfjax.LLM`, for a path.
    """

    def __init__(
        self,
        pretrained: LLM | str | os.PathLike[str],
        *,
        dtype: str | None = None,
        weights: str | None = None,
        max_length: int | None = None,
        prefix_token_id: int | None = None,
        add_bos_token: bool | None = None,
        batch_invariant: bool = True,
        chat_template: str | None = None,
        seed: int = 1234,
        journal: Journal | None = None,
        on_progress: OnProgress | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ):
        super().__init__()
        given = pretrained
        llm = given if isinstance(given, LLM) else LLM(given, dtype=dtype, weights=weights)
        if llm.tokenizer is None:
            raise RequestError(f"{llm.model.path} has no tokenizer, and lm-eval's tasks are texts")
        limit = llm.config.context_length
        if max_length is not None and not 1 <= max_length <= limit:
            raise ConfigError(
                f"max_length: got {max_length}, expected 1 to the model's context of {limit}"
            )
        self._llm = llm
        self._words: Tokenizer = llm.tokenizer
        self._max_length = max_length or limit
        self._prefix = prefix_token_id
        self._add_special = add_bos_token is not False
        self._batch_invariant = batch_invariant
        self._template = chat_template
        self._seed = seed
        self._journal = journal
        self._on_progress = on_progress
        self._too_long: set[tuple[str, str]] = set()  # of the call that is going on
        self._truncated: dict[str, set[int]] = {}

    @property
    def path(self) -> str:
        """Of the model's file."""
        return str(self._llm.model.path)

    @property
    def eot_token_id(self) -> int:
        """The end of a text.

        Raises:
            RequestError: the vocabulary has none.
        """
        if self._words.eos_id is None:
            raise RequestError(f"{self._llm.model.path}: the vocabulary has no end of text")
        return self._words.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context: BOS, else the end of a text."""
        if self._prefix is not None:
            return self._prefix
        return self.eot_token_id if self._words.bos_id is None else self._words.bos_id

    @property
    def max_length(self) -> int:
        """Most tokens that the model reads at a time."""
        return self._max_length

    @property
    def max_gen_toks(self) -> int:
        """Tokens of a generation whose task names no number; lm-eval's own default."""
        return 256

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval tells its caches of prompts apart by."""
        return f"rfjax__{os.path.basename(self.path)}__{self._template or 'default'}"

    @property
    def n_truncated(self) -> dict[str, int]:
        """By task, the documents of which something did not fit in the context."""
        return {task: len(documents) for task, documents in self._truncated.items()}

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Tokens of a text.

        Args:
            string: the text. Names of special tokens in it are these tokens.
            add_special_tokens: whether to add BOS and the like where the vocabulary does; None
                does so unless the text begins with the prefix token's name.
            left_truncate_len: keep so many tokens at the end.
            **kwargs: what lm-eval may hand to other tokenizers.
        """
        add = add_special_tokens
        if add is None:
            prefix = self._words.id_to_piece(self.prefix_token_id)
            add = self._add_special and not has_bos_prefix(string, prefix)
        ids = self._words.encode(string, add_special_tokens=add, parse_special=True)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Of every continuation: its log-probability, and whether it is what greedy decoding gives.

        Raises:
            RequestError: a continuation without tokens.
        """
        for request in requests:
            _, continuation = _arguments(request)
            if not continuation:
                raise RequestError(f"{_named(request)}: got an empty continuation")
        self._too_long.clear()
        results = super().loglikelihood(requests, disable_tqdm=True)
        self._count_truncated([one for one in requests if one.args in self._too_long])
        return results

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        windows = []
        for pair, context, continuation in requests:
            if not continuation:
                raise RequestError(
                    f"the continuation {'' if pair is None else pair[1]!r} has no tokens of its "
                    "own: the tokenizer joins it with the end of its context"
                )
            context = context or [self.prefix_token_id]  # white space alone, without BOS
            whole = (context + continuation)[-(self.max_length + 1) :]
            n = min(len(continuation), len(whole) - 1)
            windows.append((whole[:-n], whole[-n:]))
            if pair is not None and len(whole) < len(context) + len(continuation):
                self._too_long.add(pair)
        scored = loglikelihood(
            self._llm.scorer(batch_invariant=self._batch_invariant),
            None,
            windows,
            journal=self._journal,
            on_progress=self._progress("scoring"),
        )
        answers = [(one.logprob, one.is_greedy) for one in scored]
        for (pair, _, _), answer in zip(requests, answers, strict=True):
            if pair is not None:
                self.cache_hook.add_partial("loglikelihood", pair, answer)
        return answers

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of every text, in windows of at most `max_length` tokens."""
        windows, counts = [], []
        for request in requests:
            cut = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            own = [(None, *make_disjoint_window(window)) for window in cut]
            windows += own
            counts.append(len(own))
        scores = iter(self._loglikelihood_tokens(windows))
        totals = [sum((next(scores)[0] for _ in range(count)), 0.0) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts that continue contexts, each up to the first of its `until`, or of end of text.

        Raises:
            RequestError: a setting that rfjax does not have, or no room for a prompt beside as
                many tokens as the task wants.
            ModelFormatError: the model computes NaN.
        """
        room = min(self.max_length, self._llm.engine.max_context)
        wanted = [self._generation(i, request, room) for i, request in enumerate(requests)]
        texts = {one.key: text for one in wanted if (text := self._known(one.key)) is not None}
        left = list({one.key: one for one in wanted if one.key not in texts}.values())
        progress = self._progress("generating")
        total = len(texts) + len(left)
        for start in range(0, len(left), _GENERATED_AT_ONCE):
            if progress is not None:
                progress(len(texts), total)
            part = left[start : start + _GENERATED_AT_ONCE]
            outputs = self._llm.generate(
                [list(one.prompt) for one in part], [one.params for one in part]
            )
            for one, output in zip(part, outputs, strict=True):
                if output.error is not None:
                    raise ModelFormatError(output.error)
                texts[one.key] = self._text(output.token_ids, one.until)
                if self._journal is not None:
                    self._journal.add(one.key, texts[one.key])
        if progress is not None:
            progress(total, total)
        for request, one in zip(requests, wanted, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, texts[one.key])
        cut = [request for request, one in zip(requests, wanted, strict=True) if one.n_cut]
        self._count_truncated(cut)
        return [texts[one.key] for one in wanted]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as the text of a prompt.

        Args:
            chat_history: messages with "role" and "content".
            add_generation_prompt: end with the header of an answer; otherwise the last message
                stays open, to be continued.

        Raises:
            RequestError: there is no template, or it refuses the messages.
        """
        text = self._words.apply_chat_template(
            chat_history,
            add_generation_prompt=add_generation_prompt,
            chat_template=self._template,
        )
        return text if add_generation_prompt else _left_open(text, chat_history[-1]["content"])

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Source of a template, which is then the one that is applied.

        Args:
            chat_template: a name as of the class, True for the one chosen there, False for none.

        Raises:
            RequestError: there is no such template.
        """
        if chat_template is False or chat_template is None:
            return None
        if isinstance(chat_template, str):
            self._template = chat_template
        name = self._template
        if name is None:
            source = self._words.chat_template
        elif name in self._words.chat_templates:
            source = self._words.chat_templates[name]
        else:
            source = FAMILIES[name].source if name in FAMILIES else name
        self.apply_chat_template([{"role": "user", "content": "?"}])  # refuses what is none
        return source

    def _progress(self, what: str) -> Callable[[int, int], None] | None:
        report = self._on_progress
        return None if report is None else lambda done, total: report(what, done, total)

    def _known(self, key: str) -> str | None:
        return None if self._journal is None else self._journal.get(key)

    def _generation(self, index: int, request: Instance, room: int) -> Generation:
        context, given = _arguments(request)
        end = self._words.eos_id
        return generation(
            self.tok_encode(context) or [self.prefix_token_id],
            normalize_gen_kwargs(given, self.max_gen_toks),
            end=None if end is None else self._words.id_to_piece(end),
            room=room,
            seed=(self._seed + index) % 2**32,
            name=_named(request),
        )

    def _text(self, ids: Sequence[int], until: tuple[str, ...]) -> str:
        """As `transformers` decodes what it generated: the first word's space is dropped."""
        return postprocess_generated_text(self._words.decode(ids), list(until), None)

    def _count_truncated(self, requests: Sequence[Instance]) -> None:
        """Remember and tell which documents had requests that are too long."""
        for request in requests:
            documents = self._truncated.setdefault(str(request.task_name), set())
            documents.add(-1 if request.doc_id is None else request.doc_id)
        if requests:
            logger.warning(
                "%d requests do not fit in the context of %d tokens and lose their beginning",
                len(requests),
                self.max_length,
            )


if "rfjax" not in model_registry:  # a release that reads entry points has it already
    model_registry.register("rfjax", target=RfjaxLM)


def _arguments(request: Instance) -> tuple[Any, ...]:
    """A request's own, which lm-eval types as one."""
    return tuple(request.args)


def _named(request: Instance) -> str:
    return f"task {request.task_name}, document {request.doc_id}"


def _left_open(text: str, content: str) -> str:
    """A rendered conversation up to the end of its last message's text.

    Raises:
        RequestError: the template does not show the text.
    """
    start = text.rfind(content.strip())
    if start < 0:
        raise RequestError(
            "the chat template does not render the last message's text as it is, so it cannot be "
            "continued: do without a prefix of the answer"
        )
    kept = content.lstrip()
    return text[: start + len(kept if text.startswith(kept, start) else content.strip())]
