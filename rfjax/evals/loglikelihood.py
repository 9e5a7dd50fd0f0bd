"""Log-likelihoods of texts, by the conventions of lm-evaluation-harness.

A context and its continuation are tokenized together, and the tokens behind those of the context
alone are the continuation; what a context ends with in spaces belongs to the continuation. Long
contexts lose their beginning. A text is scored as a whole in windows that do not overlap.
Source: `TemplateLM` and `lm_eval.utils` of lm-evaluation-harness 0.4.
"""

import logging
import reprlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rfjax.engine.request import as_token_ids
from rfjax.errors import RequestError
from rfjax.evals.records.journal import Journal, continuation_key
from rfjax.evals.scoring.continuation import Continuation, ContinuationScore
from rfjax.evals.scoring.scorer import Scorer
from rfjax.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

Text = str | Sequence[int]
"""A text or its token ids."""

OnProgress = Callable[[int, int], None]
"""Called with how many of how many are done."""


class Likelihood(NamedTuple):
    """Of a continuation: natural logarithm of its probability, and whether greedy decoding
    would produce it."""

    logprob: float
    is_greedy: bool


class RollingLikelihood(NamedTuple):
    """Of a text: natural logarithm of its probability, and how many tokens it has."""

    logprob: float
    n_tokens: int


def loglikelihood(
    scorer: Scorer,
    tokenizer: Tokenizer | None,
    requests: Sequence[tuple[Text, Text]],
    *,
    journal: Journal | None = None,
    on_progress: OnProgress | None = None,
) -> list[Likelihood]:
    """How likely continuations are after their contexts.

    Args:
        scorer: of the model.
        tokenizer: the model's; None takes ids alone.
        requests: pairs of context and continuation, texts or ids both. Ids are taken as they are;
            texts get BOS where the vocabulary adds it. An empty context is BOS or, where there is
            none, the end of text.
        journal: results are taken from it and added to it.
        on_progress: told how many distinct requests are done.

    Returns:
        For each request in order.

    Raises:
        RequestError: what is neither text nor ids, text without a tokenizer, a continuation
            without tokens or longer than the model's context.
    """
    wanted = [_continuation(scorer, tokenizer, i, request) for i, request in enumerate(requests)]
    cut = sum(one.n_cut > 0 for one in wanted)
    if cut:
        logger.warning("%d of %d contexts do not fit and lose their beginning", cut, len(wanted))
    return _score_each(scorer, [one.continuation for one in wanted], journal, on_progress)


def loglikelihood_rolling(
    scorer: Scorer,
    tokenizer: Tokenizer | None,
    texts: Sequence[Text],
    *,
    journal: Journal | None = None,
    on_progress: OnProgress | None = None,
) -> list[RollingLikelihood]:
    """How likely whole texts are.

    A text longer than the model's context is cut into windows; the last has as much context as
    fits. The first token stands after BOS or, where there is none, the end of text.

    Args:
        scorer, tokenizer, journal, on_progress: as for `loglikelihood`.
        texts: texts or ids, which then begin without BOS.

    Raises:
        RequestError: what is neither text nor ids, text without a tokenizer, no tokens.
    """
    windows, counts = [], []
    for i, text in enumerate(texts):
        ids = _ids(tokenizer, text, f"text {i}")
        if not ids:
            raise RequestError(f"text {i}: got no tokens, expected at least one")
        own = rolling_windows(ids, prefix_token(tokenizer), scorer.max_inputs)
        windows += own
        counts.append((len(own), len(ids)))
    scores = iter(_score_each(scorer, windows, journal, on_progress))
    return [
        RollingLikelihood(sum(next(scores).logprob for _ in range(n)), n_tokens)
        for n, n_tokens in counts
    ]


def rolling_windows(ids: Sequence[int], prefix: int, length: int) -> list[Continuation]:
    """Windows of at most `length` inputs that score every token once.

    Args:
        ids: the text's.
        prefix: stands before the first.
        length: of a window; the last one's context is as long as that leaves room for.
    """
    ids = tuple(ids)
    windows = [Continuation((prefix,), ids[:length])]
    for start in range(length, len(ids), length):
        end = min(start + length, len(ids))
        windows.append(Continuation(ids[end - length - 1 : start], ids[start:end]))
    return windows


def prefix_token(tokenizer: Tokenizer | None) -> int:
    """What stands before a text that has no context: BOS, or the end of text.

    Raises:
        RequestError: there is no tokenizer, or it has neither.
    """
    found = None if tokenizer is None else tokenizer.bos_id
    if found is None and tokenizer is not None:
        found = tokenizer.eos_id
    if found is None:
        raise RequestError(
            "the model names no token to begin a text with: give continuations a context of at "
            "least one token; whole texts cannot be scored"
        )
    return found


def encode_pair(
    tokenizer: Tokenizer | None, context: Text, continuation: Text, name: str
) -> tuple[list[int], list[int]]:
    """Ids of a context, at least one, and of its continuation.

    Args:
        tokenizer: the model's.
        context, continuation: texts, or ids.
        name: of the request, for messages.
    """
    if isinstance(context, str) != isinstance(continuation, str):
        raise RequestError(
            f"{name}: got text and ids, expected context and continuation to be one kind"
        )
    if not isinstance(context, str) or not isinstance(continuation, str):
        before = as_token_ids(context)
        return before or [prefix_token(tokenizer)], as_token_ids(continuation)
    if not context:
        return [prefix_token(tokenizer)], _ids(tokenizer, continuation, name)
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    before = _ids(tokenizer, kept, name)
    whole = _ids(tokenizer, kept + continuation, name)
    bos = [prefix_token(tokenizer)] if not before or _adds_bos(tokenizer) else []
    return bos + before, whole[len(before) :]


class _Wanted(NamedTuple):
    continuation: Continuation
    n_cut: int  # tokens of the context that are left out


def _continuation(
    scorer: Scorer, tokenizer: Tokenizer | None, index: int, request: tuple[Text, Text]
) -> _Wanted:
    name = f"request {index}"
    if not isinstance(request, tuple | list) or len(request) != 2:
        raise RequestError(
            f"{name}: got {reprlib.repr(request)}, expected a pair of context and continuation"
        )
    context, continuation = request
    before, tokens = encode_pair(tokenizer, context, continuation, name)
    most = scorer.max_inputs
    if not 1 <= len(tokens) <= most:
        raise RequestError(
            f"{name}: got a continuation of {len(tokens)} tokens, expected at least one and no "
            f"more than the model's context of {most}"
        )
    n_cut = max(0, len(before) + len(tokens) - 1 - most)
    return _Wanted(Continuation(tuple(before[n_cut:]), tuple(tokens)), n_cut)


def _ids(tokenizer: Tokenizer | None, text: Text, name: str) -> list[int]:
    """Without special tokens."""
    if not isinstance(text, str):
        return as_token_ids(text)
    if tokenizer is None:
        raise RequestError(f"{name}: the model has no tokenizer: give token ids instead of text")
    return tokenizer.encode(text, add_special_tokens=False)


def _adds_bos(tokenizer: Tokenizer | None) -> bool:
    return tokenizer is not None and tokenizer.add_bos and tokenizer.bos_id is not None


def _score_each(
    scorer: Scorer,
    continuations: Sequence[Continuation],
    journal: Journal | None,
    on_progress: OnProgress | None,
) -> list[Likelihood]:
    """Every distinct continuation once; those in the journal not at all."""
    found: dict[Continuation, Likelihood] = {}
    missing: dict[Continuation, str] = {}
    for one in continuations:
        if one in found or one in missing:
            continue
        key = "" if journal is None else continuation_key(one.context, one.tokens)
        known = None if journal is None else journal.get(key)
        if known is None:
            missing[one] = key
        else:
            found[one] = Likelihood(*known)
    n_distinct, ordered = len(found) + len(missing), list(missing)
    if on_progress is not None:
        on_progress(len(found), n_distinct)

    def on_scored(index: int, score: ContinuationScore) -> None:
        one = ordered[index]
        found[one] = Likelihood(score.total, score.is_greedy)
        if journal is not None:
            journal.add(missing[one], list(found[one]))
        if on_progress is not None:
            on_progress(len(found), n_distinct)

    scorer.score(ordered, on_scored=on_scored)
    return [found[one] for one in continuations]
