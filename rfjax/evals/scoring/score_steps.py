"""What scoring runs on the device: pieces of contexts, and pieces whose tokens are scored."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from rfjax.cache.paged import PagedCache, copy_pages
from rfjax.engine.compiler_options import compiler_options
from rfjax.engine.on_mesh import OnMesh
from rfjax.models.attention_inputs import AttentionInputs
from rfjax.models.config import ModelConfig
from rfjax.models.decoder import hidden_states, output_projection
from rfjax.models.params import Params
from rfjax.ops.likelihood import TokenScores, token_scores
from rfjax.typing import Array, Float, Int


@struct.dataclass
class Rows:
    """Pieces of sequences, one a row: arrays of JAX or numpy, or their shapes."""

    tokens: Any  # int32 [B, L]
    positions: Any  # int32 [B, L]; -1 marks padding
    tables: Any  # int32 [B, M]: each row's pages


@struct.dataclass
class Scored:
    """What rows are scored for, and the page that is copied before each."""

    targets: Any  # int32 [B, L]: the token after each
    sources: Any  # int32 [B]
    copies: Any  # int32 [B]: where the source goes; beyond the pages for nowhere


def fill(params: Params, cache: PagedCache, rows: Rows, *, config: ModelConfig) -> PagedCache:
    """The cache with keys and values of rows whose tokens are not scored."""
    return _hidden(params, cache, rows, config)[1]


def score_rows(
    params: Params, cache: PagedCache, rows: Rows, scored: Scored, *, config: ModelConfig
) -> tuple[TokenScores, PagedCache]:
    """Scores `[B, L]` of the targets (anything at padding), and the cache with these rows."""
    cache = copy_pages(cache, ((scored.sources, scored.copies),))
    hidden, cache = _hidden(params, cache, rows, config)
    output = output_projection(params)
    scores = token_scores(
        hidden,
        output.weight,
        output.bias,
        scored.targets.reshape(-1),
        scale=config.logit_scale,
        softcap=config.final_softcap,
    )
    shape = rows.tokens.shape
    return TokenScores(*(values.reshape(shape) for values in scores)), cache


def _hidden(
    params: Params, cache: PagedCache, rows: Rows, config: ModelConfig
) -> tuple[Float[Array, "T D"], PagedCache]:
    """Rows may be pieces of one sequence: all keys are written before any are read."""
    key_lengths: Int[Array, " B"] = jnp.max(rows.positions, axis=1) + 1
    inputs = AttentionInputs(rows.positions, key_lengths, (rows.tables,))
    hidden, written = hidden_states(params, rows.tokens.reshape(-1), inputs, cache, config=config)
    assert isinstance(written, PagedCache)
    return hidden, written


@dataclasses.dataclass(frozen=True)
class ScoreSteps:
    """The jitted steps; each takes the cache's memory for the one it returns."""

    fill: Callable
    score: Callable


@functools.cache
def score_steps(packed: bool, mesh: Mesh | None) -> ScoreSteps:
    """Steps that models of the same kind share."""
    on = OnMesh(mesh)

    def filled(params, cache, rows, config):
        (rows,) = on.by_rows(rows)
        return on.pinned(fill(params, cache, rows, config=config))

    def scores_of(params, cache, rows, scored, config):
        rows, scored = on.by_rows(rows, scored)
        scores, cache = score_rows(params, cache, rows, scored, config=config)
        return on.everywhere(scores), on.pinned(cache)

    options = compiler_options(packed=packed)
    jit = functools.partial(
        jax.jit, donate_argnames="cache", static_argnames="config", compiler_options=options
    )
    return ScoreSteps(jit(filled), jit(scores_of))
