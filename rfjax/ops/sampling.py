"""Choosing the next token on the device: one compiled program for every mixture of parameters."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from rfjax.ops.constraints import add_bias, allow, n_words, withhold
from rfjax.ops.filters import keep_min_p, keep_top_k, keep_top_p, keep_typical, uses_top_k
from rfjax.ops.gumbel import gumbel
from rfjax.ops.logprobs import Normalizer, most_likely, normalizer, of_tokens
from rfjax.ops.penalties import in_output, penalize, seen
from rfjax.typing import Array, Bool, Float, Int

_COLDEST = 1e-5
"""Temperatures below are greedy, as in vLLM."""

_ALL = 0xFFFFFFFF


@struct.dataclass
class SamplingState:
    """What each row of a step asks for: parameters named and meant as in vLLM.

    Attributes:
        temperature: f32 [B]; below 1e-5 is greedy.
        top_k: int32 [B]; 0 or less keeps all.
        top_p: f32 [B]; 1 keeps all.
        min_p: f32 [B]; 0 keeps all.
        typical_p: f32 [B]; 1 keeps all.
        repetition_penalty: f32 [B]; 1 is none.
        presence_penalty: f32 [B]; 0 is none.
        frequency_penalty: f32 [B]; 0 is none.
        seed: uint32 [B].
        bias_ids: int32 [B, n]: tokens whose logits get a bias, each once a row, padded with -1.
        bias_values: f32 [B, n].
        allowed: uint32 [B, ceil(V / 32)]: bit `token % 32` of word `token // 32` says whether a
            token may be chosen.
        stop_ids: int32 [B, n]: tokens that wait for `min_length`, padded with -1.
        min_length: int32 [B]: prompt's tokens and `min_tokens`. A stop id cannot stand at a
            position before: it comes after `min_tokens` others at the earliest.
        n_logprobs: int32 [B]: how many of the most likely tokens to report with their
            log-probabilities; 0 or less reports none. The chosen token's is always reported.
    """

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array
    typical_p: Array
    repetition_penalty: Array
    presence_penalty: Array
    frequency_penalty: Array
    seed: Array
    bias_ids: Array
    bias_values: Array
    allowed: Array
    stop_ids: Array
    min_length: Array
    n_logprobs: Array


@struct.dataclass
class SamplingContext:
    """What a logits processor can look at besides the logits of the step's rows.

    Attributes:
        state: the rows' parameters.
        counts: int32 [slots, V]: tokens of all slots (`rfjax.ops.penalties`).
        rows: int32 [B]: the slot of each row.
        positions: int32 [B]: where the token to be chosen will stand.
    """

    state: SamplingState
    counts: Array
    rows: Array
    positions: Array

    def row_counts(self) -> Int[Array, "B V"]:
        """Each row's counts, for `in_output` and `seen`."""
        return self.counts.at[self.rows].get(mode="clip")

    def output_counts(self) -> Int[Array, "B V"]:
        """How often each token is in each row's output, int32."""
        return in_output(self.row_counts())

    def seen(self) -> Bool[Array, "B V"]:
        """Whether each token is in each row's prompt or output."""
        return seen(self.row_counts())


LogitsProcessor = Callable[[Array, SamplingContext], Array]
"""A pure traced function of f32 [B, V] and a context, which returns f32 [B, V]. A row of its result
must follow from that row alone; -inf forbids a token."""


@struct.dataclass
class Sampled:
    """One step's choices.

    Attributes:
        token_ids: int32 [B]; 0 where `failed`.
        logprobs: f32 [B]: of the chosen token under the model's own distribution, which is that
            of the logits as they came; NaN where `failed`.
        top_ids: int32 [B, n]: the most likely tokens under it, the first `n_logprobs` of each
            row, and -1.
        top_logprobs: f32 [B, n]: theirs, and -inf.
        failed: bool [B]: nothing can be chosen. The row's logits have NaN or +inf, or nothing
            is left that may be chosen.
    """

    token_ids: Array
    logprobs: Array
    top_ids: Array
    top_logprobs: Array
    failed: Array


def greedy(n_rows: int, vocab: int, *, n_bias: int = 0, n_stop: int = 0) -> SamplingState:
    """A state in which every row takes the most likely token, and everything else is off."""

    def column(value, dtype):
        return jnp.full(n_rows, value, dtype)

    return SamplingState(
        temperature=column(0, jnp.float32),
        top_k=column(0, jnp.int32),
        top_p=column(1, jnp.float32),
        min_p=column(0, jnp.float32),
        typical_p=column(1, jnp.float32),
        repetition_penalty=column(1, jnp.float32),
        presence_penalty=column(0, jnp.float32),
        frequency_penalty=column(0, jnp.float32),
        seed=column(0, jnp.uint32),
        bias_ids=jnp.full((n_rows, n_bias), -1, jnp.int32),
        bias_values=jnp.zeros((n_rows, n_bias), jnp.float32),
        allowed=jnp.full((n_rows, n_words(vocab)), _ALL, jnp.uint32),
        stop_ids=jnp.full((n_rows, n_stop), -1, jnp.int32),
        min_length=column(0, jnp.int32),
        n_logprobs=column(-1, jnp.int32),
    )


def sample(
    logits: Float[Array, "B V"],
    state: SamplingState,
    counts: Int[Array, "slots V"],
    rows: Int[Array, " B"],
    positions: Int[Array, " B"],
    *,
    processors: tuple[LogitsProcessor, ...] = (),
    n_top: int,
) -> Sampled:
    """The next token of every row.

    In this order, which is vLLM's (V1, `Sampler`) where both have a step:

    1. log-probabilities, of the logits as they came;
    2. allowed tokens; biases; logits processors; stop tokens before their time: vLLM's own
       processors add up to the same in any order, and a user's cannot bring back a stop token;
    3. repetition, frequency, presence penalties;
    4. greedy rows take the first of the best tokens;
    5. the others divide by the temperature, keep what min-p, top-k, typical-p and top-p leave
       (vLLM has no typical-p; llama.cpp has it there), and draw from that by the Gumbel-max
       trick with noise of their own.

    A row's result does not depend on the rows beside it: bit for bit in f32 on the CPU. What no
    row asks for is not computed, but the processors.

    Args:
        logits: any float; computed in f32.
        counts: int32, see `rfjax.ops.penalties`; read only where a row has a penalty.
        rows: int32: the slot of each row.
        positions: int32: absolute position at which each chosen token will stand.
        processors: static.
        n_top: static; most of the most likely tokens that a row can ask for.
    """
    raw = logits.astype(jnp.float32)
    norm = normalizer(raw)
    context = SamplingContext(state, counts, rows, positions)
    allowed = _edited(raw, context, processors)
    best = jnp.max(allowed, axis=-1, keepdims=True)
    failed = (jnp.isnan(norm.log_total) | ~jnp.isfinite(best))[:, 0]
    if processors:  # a maximum does not show NaN on every backend
        failed |= jnp.any(jnp.isnan(allowed), axis=-1)
    most_likely_allowed = _first_at(allowed, best)
    warm = state.temperature >= _COLDEST

    def drawn(allowed):
        return jnp.where(warm, _draw(allowed, best, context), most_likely_allowed)

    chosen = jax.lax.cond(jnp.any(warm), drawn, lambda _: most_likely_allowed, allowed)
    chosen = jnp.where(failed, 0, chosen)
    top_ids, top_logprobs = _top(raw, norm, state.n_logprobs, n_top)
    return Sampled(
        token_ids=chosen,
        logprobs=jnp.where(failed, jnp.nan, of_tokens(raw, chosen, norm)),
        top_ids=top_ids,
        top_logprobs=top_logprobs,
        failed=failed,
    )


def _when(wanted: Bool[Array, ""], change: Callable, x: Array) -> Array:
    return jax.lax.cond(wanted, change, lambda x: x, x)


def _edited(logits: Array, context: SamplingContext, processors: tuple) -> Array:
    """Logits after all that greedy rows see too."""
    state = context.state
    restricted = jnp.any(state.allowed != jnp.uint32(_ALL))
    biased = jnp.any(state.bias_ids >= 0)
    held = context.positions < state.min_length
    withheld = jnp.any(held[:, None] & (state.stop_ids >= 0))
    penalized = jnp.any(
        (state.repetition_penalty != 1)
        | (state.frequency_penalty != 0)
        | (state.presence_penalty != 0)
    )

    def before(x):
        x = _when(restricted, lambda x: allow(x, state.allowed), x)
        return _when(biased, lambda x: add_bias(x, state.bias_ids, state.bias_values), x)

    def after(x):
        def penalties(x):
            penalties = state.repetition_penalty, state.frequency_penalty, state.presence_penalty
            return penalize(x, context.row_counts(), *penalties)

        x = _when(withheld, lambda x: withhold(x, state.stop_ids, held), x)
        return _when(penalized, penalties, x)

    # One condition outside of the others: on a GPU the host waits for each.
    if not processors:
        wanted = restricted | biased | withheld | penalized
        return _when(wanted, lambda x: after(before(x)), logits)
    logits = _when(restricted | biased, before, logits)
    for process in processors:
        logits = process(logits, context)
    return _when(withheld | penalized, after, logits)


def _draw(logits: Array, best: Array, context: SamplingContext) -> Array:
    """A token of every row, drawn from what its filters leave."""
    state = context.state
    temperature = jnp.where(state.temperature >= _COLDEST, state.temperature, 1.0)
    # From the best one down: low temperatures must not overflow upwards.
    scaled = (logits - best) * (1.0 / temperature)[:, None]
    by_min_p = jnp.any(state.min_p > 0)
    by_top_k = jnp.any(uses_top_k(state.top_k, logits.shape[-1]))
    typical = jnp.any(state.typical_p < 1)
    by_top_p = jnp.any(state.top_p < 1)

    def filtered(scaled):
        kept = scaled > -jnp.inf
        kept = _when(by_min_p, lambda kept: keep_min_p(scaled, kept, state.min_p), kept)
        kept = _when(by_top_k, lambda kept: keep_top_k(logits, kept, state.top_k), kept)
        kept = _when(typical, lambda kept: keep_typical(scaled, kept, state.typical_p), kept)
        kept = _when(by_top_p, lambda kept: keep_top_p(logits, scaled, kept, state.top_p), kept)
        return jnp.where(kept, scaled, -jnp.inf)

    scaled = _when(by_min_p | by_top_k | typical | by_top_p, filtered, scaled)
    noisy = scaled + gumbel(state.seed, context.positions, logits.shape[-1])
    return _first_at(noisy, jnp.max(noisy, axis=-1, keepdims=True))


def _first_at(x: Float[Array, "B V"], best: Float[Array, "B 1"]) -> Int[Array, " B"]:
    """The first token with its row's greatest number; V if that is NaN.

    `argmax` in two passes, which XLA's CPU backend computes twenty times as fast; the minimum of
    numbers that f32 holds exactly as well.
    """
    vocab = x.shape[-1]
    assert vocab < 1 << 24
    token = jnp.arange(vocab, dtype=jnp.float32)[None, :]
    return jnp.min(jnp.where(x == best, token, float(vocab)), axis=-1).astype(jnp.int32)


def _top(
    raw: Float[Array, "B V"], norm: Normalizer, n_logprobs: Int[Array, " B"], n_top: int
) -> tuple[Array, Array]:
    """The most likely tokens that each row asks for, and their log-probabilities."""
    n_top = min(n_top, raw.shape[-1])
    shape = raw.shape[0], n_top
    asked = jnp.arange(n_top, dtype=jnp.int32)[None, :] < n_logprobs[:, None]

    def search(raw):
        tokens, values = most_likely(raw, n_top)
        return jnp.where(asked, tokens, -1), jnp.where(asked, norm.logprobs(values), -jnp.inf)

    def nothing(raw):
        return jnp.full(shape, -1, jnp.int32), jnp.full(shape, -jnp.inf, jnp.float32)

    if n_top == 0:
        return nothing(raw)
    return jax.lax.cond(jnp.any(n_logprobs > 0), search, nothing, raw)
