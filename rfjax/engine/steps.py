"""What runs on the device, as pure functions: tables, prompts, copies of pages, bursts of decoding.

Sizes are static and few (see `rfjax.engine.plan_runner`): where there is less to do, rows are
padding, which names a slot beyond the last one and is dropped.
"""

import jax
import jax.numpy as jnp
from flax import struct

from rfjax.cache.paged import PagedCache
from rfjax.engine.rows import RowState
from rfjax.models.attention_inputs import AttentionInputs
from rfjax.models.config import ModelConfig
from rfjax.models.decoder import hidden_states, project
from rfjax.models.params import Params
from rfjax.ops.logprobs import token_logprobs
from rfjax.ops.penalties import counted, counts_of_tokens
from rfjax.ops.sampling import LogitsProcessor, SamplingState, greedy, sample
from rfjax.typing import Array, Bool, Float, Int

Tables = tuple[Int[Array, "slots M"], ...]
"""Page tables of every cache group."""


@struct.dataclass
class Made:
    """What a burst of b rows made."""

    token_ids: Array  # int32 [b, burst]
    logprobs: Array  # f32 [b, burst]
    top_ids: Array  # int32 [b, burst, n]
    top_logprobs: Array  # f32 [b, burst, n]
    n_made: Array  # int32 [b]: of each row
    failed: Array  # bool [b]: NaN among its logits


def open_rows(
    rows: RowState, tables: Tables, at: Int[Array, " n"], new: RowState
) -> tuple[RowState, Tables]:
    """Slots with new sequences, whose pages are all null."""
    put = lambda old, new: old.at[at].set(new, mode="drop")  # noqa: E731
    rows = jax.tree.map(put, rows, new)
    return rows, tuple(table.at[at].set(0, mode="drop") for table in tables)


def count_tokens(
    counts: Int[Array, "slots V"],
    at: Int[Array, " n"],
    prompt: Int[Array, "n T"],
    output: Int[Array, "n T"],
) -> Int[Array, "slots V"]:
    """The counts of opened slots, whose penalties need them."""
    return counts_of_tokens(counts, at, prompt, output)


def write_tables(
    tables: Tables, writes: tuple[tuple[Int[Array, " n"], Int[Array, " n"], Int[Array, " n"]], ...]
) -> Tables:
    """Tables with new entries: slots, indices and pages of each group."""
    return tuple(
        table.at[slots, indices].set(pages, mode="drop")
        for table, (slots, indices, pages) in zip(tables, writes, strict=True)
    )


def prefill(
    params: Params,
    cache: PagedCache,
    tables: Tables,
    tokens: Int[Array, "B L"],
    positions: Int[Array, "B L"],
    slots: Int[Array, " B"],
    *,
    config: ModelConfig,
) -> tuple[Float[Array, "T D"], PagedCache]:
    """Write keys and values of pieces of prompts; also the hidden states, for who wants them.

    Args:
        tokens: of each piece; anything at padding.
        positions: absolute; -1 marks padding.
        slots: of each piece. A slot may have several, which attend to each other.
    """
    inputs = AttentionInputs(
        positions=positions,
        key_lengths=jnp.max(positions, axis=1) + 1,
        tables=tuple(jnp.take(table, slots, axis=0, mode="clip") for table in tables),
    )
    hidden, written = hidden_states(params, tokens.reshape(-1), inputs, cache, config=config)
    assert isinstance(written, PagedCache)
    return hidden, written


def prompt_logprobs(
    params: Params,
    hidden: Float[Array, "T D"],
    following: Int[Array, "B L"],
    n_top: int,
    *,
    config: ModelConfig,
) -> tuple[Float[Array, "B L"], Int[Array, "B L n"], Float[Array, "B L n"]]:
    """Log-probabilities of the tokens that follow, and the most likely ones, piece by piece.

    Logits of one piece exist at a time.

    Args:
        hidden: of `prefill`.
        following: the token after each.
        n_top: how many of the most likely.
    """

    def of_piece(piece):
        hidden, following = piece
        return token_logprobs(project(params, hidden, config=config), following, n_top)

    pieces = hidden.reshape(*following.shape, hidden.shape[-1])
    return jax.lax.map(of_piece, (pieces, following))


def decode(
    params: Params,
    cache: PagedCache,
    rows: RowState,
    counts: Int[Array, "slots V"],
    tables: Tables,
    slots: Int[Array, " b"],
    steps: Int[Array, " b"],
    n_steps: Int[Array, ""],
    *,
    burst: int,
    n_top: int,
    processors: tuple[LogitsProcessor, ...],
    config: ModelConfig,
) -> tuple[PagedCache, RowState, Int[Array, "slots V"], Made]:
    """Up to `n_steps` steps of the rows of these slots, without the host.

    Args:
        slots: each once; beyond the last slot for padding.
        steps: most tokens that each row makes.
        n_steps: the most of these, at most `burst`.
        burst: room for results.
        n_top: most log-probabilities to report beside a token's own.
        processors: applied to the logits, see `rfjax.ops.sampling.sample`.
    """
    n_slots = rows.tokens.shape[0]
    real = slots < n_slots
    own: RowState = jax.tree.map(lambda x: jnp.take(x, slots, axis=0, mode="clip"), rows)
    sampling = _of_real_rows(own.sampling, real, counts.shape[1])
    own_tables = tuple(jnp.take(table, slots, axis=0, mode="clip") for table in tables)
    n_rows = slots.shape[0]
    made = Made(
        token_ids=jnp.zeros((n_rows, burst), jnp.int32),
        logprobs=jnp.zeros((n_rows, burst), jnp.float32),
        top_ids=jnp.zeros((n_rows, burst, n_top), jnp.int32),
        top_logprobs=jnp.zeros((n_rows, burst, n_top), jnp.float32),
        n_made=jnp.zeros(n_rows, jnp.int32),
        failed=jnp.zeros(n_rows, bool),
    )

    def is_active(step, finished) -> Bool[Array, " b"]:
        return ~finished & (step < steps)

    def unfinished(carry):
        step, _, _, _, _, finished, _ = carry
        return (step < n_steps) & jnp.any(is_active(step, finished))

    def advance(carry):
        step, cache, counts, tokens, lengths, finished, made = carry
        active = is_active(step, finished)
        inputs = AttentionInputs(
            positions=jnp.where(active, lengths - 1, -1)[:, None],
            key_lengths=jnp.where(active, lengths, 0),
            tables=own_tables,
        )
        hidden, written = hidden_states(params, tokens, inputs, cache, config=config)
        assert isinstance(written, PagedCache)
        logits = project(params, hidden, config=config)
        chosen = sample(
            logits, sampling, counts, slots, lengths, processors=processors, n_top=n_top
        )
        counts = counted(counts, slots, chosen.token_ids, active & ~chosen.failed)
        failed = active & chosen.failed
        goes_on = active & ~failed
        tokens = jnp.where(goes_on, chosen.token_ids, tokens)
        lengths = lengths + goes_on.astype(jnp.int32)
        stopped = jnp.any(tokens[:, None] == own.sampling.stop_ids, axis=1)
        stopped &= lengths > own.sampling.min_length
        finished |= failed | (goes_on & (stopped | (lengths >= own.limits)))

        def noted(all_steps, value):
            at = (0, step) + (0,) * (all_steps.ndim - 2)
            return jax.lax.dynamic_update_slice(all_steps, value[:, None], at)

        made = Made(
            token_ids=noted(made.token_ids, tokens),
            logprobs=noted(made.logprobs, chosen.logprobs),
            top_ids=noted(made.top_ids, chosen.top_ids),
            top_logprobs=noted(made.top_logprobs, chosen.top_logprobs),
            n_made=made.n_made + goes_on.astype(jnp.int32),
            failed=made.failed | failed,
        )
        return step + 1, written, counts, tokens, lengths, finished, made

    first = (jnp.int32(0), cache, counts, own.tokens, own.lengths, own.finished | ~real, made)
    _, cache, counts, tokens, lengths, finished, made = jax.lax.while_loop(
        unfinished, advance, first
    )
    put = lambda old, new: old.at[slots].set(new, mode="drop")  # noqa: E731
    rows = RowState(
        tokens=put(rows.tokens, tokens),
        lengths=put(rows.lengths, lengths),
        limits=rows.limits,
        finished=put(rows.finished, finished),
        sampling=rows.sampling,
    )
    return cache, rows, counts, made


def _of_real_rows(
    sampling: SamplingState, real: Bool[Array, " b"], vocab_size: int
) -> SamplingState:
    """What rows ask for, and of padding nothing: what no row asks for is not computed."""
    n_stop, n_bias = sampling.stop_ids.shape[1], sampling.bias_ids.shape[1]
    nothing = greedy(real.shape[0], vocab_size, n_bias=n_bias, n_stop=n_stop)

    def chosen(own: Array, other: Array) -> Array:
        return jnp.where(real if own.ndim == 1 else real[:, None], own, other)

    return jax.tree.map(chosen, sampling, nothing)
