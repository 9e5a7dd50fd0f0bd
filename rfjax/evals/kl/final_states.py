"""A model's final hidden states over a corpus, kept on the host: all that a comparison needs of it.

With them two models can be compared of which only one is on the device at a time.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rfjax.engine.compiler_options import compiler_options
from rfjax.evals.kl.divergence import head, scored_states
from rfjax.evals.row_batches import in_batches
from rfjax.io.load import Model
from rfjax.models.config import ModelConfig
from rfjax.ops.divergence import Head
from rfjax.quant.qtensor import has_packed

OnProgress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


@dataclasses.dataclass(frozen=True, eq=False)
class FinalStates:
    """What a model makes of the scored positions of a corpus.

    Attributes:
        hidden: final hidden states, `[n_chunks, n_ctx - 1 - first, D]` in the model's dtype.
        head: the output projection, on the device.
        config: the model's.
        path: of its file, for messages.
    """

    hidden: np.ndarray
    head: Head
    config: ModelConfig
    path: str


def scored_bytes(config: ModelConfig, rows: np.ndarray) -> int:
    """What a model's `FinalStates` of these chunks take of the host's memory."""
    n_chunks, n_ctx = rows.shape
    scored = n_chunks * (n_ctx - 1 - n_ctx // 2)
    return scored * config.d_model * jnp.dtype(config.dtype).itemsize


@functools.cache
def _jitted(packed: bool):
    options = compiler_options(packed=packed)
    return jax.jit(scored_states, static_argnames=("first", "config"), compiler_options=options)


def final_states(
    model: Model, rows: np.ndarray, *, batch_size: int, on_progress: OnProgress | None = None
) -> FinalStates:
    """Of a model that is on the device; nothing but its output projection is held afterwards.

    Args:
        model: the model.
        rows: chunks, int32 `[n_chunks, n_ctx]`; the second half of each is scored.
        batch_size: chunks computed at a time.
        on_progress: called after each chunk.
    """
    n_chunks, n_ctx = rows.shape
    config, first = model.config, n_ctx // 2
    hidden = np.empty((n_chunks, n_ctx - 1 - first, config.d_model), config.dtype)
    compute = functools.partial(
        _jitted(has_packed(model.params)), model.params, first=first, config=config
    )
    for i, states in enumerate(in_batches(compute, rows, batch_size, mesh=model.mesh)):
        hidden[i] = states
        if on_progress is not None:
            on_progress(i + 1, n_chunks)
    return FinalStates(hidden, head(model.params, config), config, model.path)
