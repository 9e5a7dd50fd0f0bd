"""Final hidden states of a model that does not fit: one layer's weights on the device at a time.

Each layer is loaded once, while the one before it computes, and goes over the whole corpus, whose
hidden states wait on the host. So a pass costs one reading of the file, however long the corpus.
"""

import concurrent.futures
import functools
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from rfjax.engine.compiler_options import compiler_options
from rfjax.errors import CapacityError
from rfjax.evals.kl.divergence import head
from rfjax.evals.kl.final_states import FinalStates, OnProgress, scored_bytes
from rfjax.evals.row_batches import in_batches
from rfjax.io.memory import free_bytes, gib, memory_of, workspace_bytes
from rfjax.io.parts import ModelParts
from rfjax.models.attention_inputs import AttentionInputs, whole_rows
from rfjax.models.config import LayerConfig, ModelConfig
from rfjax.models.decoder import embedded, rotation, run_layer
from rfjax.models.normalize import normalized
from rfjax.models.params import Block, Params
from rfjax.quant.qtensor import has_packed
from rfjax.typing import Array, Float, Int

_EMBEDDING = ("token_embd", "position_embd", "token_embd_norm")
_ROTATION = ("rope_freqs", "rope_factors_long", "rope_factors_short")


def stream_states(
    parts: ModelParts,
    rows: np.ndarray,
    *,
    batch_size: int,
    on_progress: OnProgress | None = None,
) -> FinalStates:
    """What `rfjax.evals.kl.final_states.final_states` gives, of any architecture.

    Args:
        parts: the model's file.
        rows: chunks, int32 `[n_chunks, n_ctx]`; the second half of each is scored.
        batch_size: chunks computed at a time.
        on_progress: called after each chunk of each layer.

    Raises:
        CapacityError: two layers, the embeddings or the output projection do not fit on the
            device, or the corpus' hidden states in the host's memory.
    """
    config = parts.config
    check_room(parts, rows, batch_size)
    n_chunks, n_ctx = rows.shape
    first, n_layers = n_ctx // 2, len(config.layers)
    states = np.empty((*rows.shape, config.d_model), config.dtype)

    def through(compute, inputs: np.ndarray, outputs: np.ndarray, layer: int | None) -> None:
        # A row is read when its batch is sent and written when that has come back, so that both
        # may be the same array.
        for i, row in enumerate(in_batches(compute, inputs, batch_size)):
            outputs[i] = row
            if on_progress is not None and layer is not None:
                on_progress(layer * n_chunks + i + 1, n_layers * n_chunks)

    embedding = parts.ends(*_EMBEDDING)
    embed = functools.partial(_jitted(_embed, embedding), embedding, config=config)
    through(embed, rows, states, None)
    del embedding, embed
    factors = parts.ends(*_ROTATION)
    device = jnp.zeros(()).devices().pop()  # a default set for this thread holds for the loader's

    def load(number: int) -> Block:
        with jax.default_device(device):
            return parts.block(number)

    with concurrent.futures.ThreadPoolExecutor(1) as loader:
        coming = loader.submit(load, 0)
        for i, layer in enumerate(config.layers):
            block = coming.result()
            if i + 1 < n_layers:
                coming = loader.submit(load, i + 1)
            run = functools.partial(_jitted(_run, block), block, factors)
            through(functools.partial(run, layer=layer, config=config), states, states, i)
            del block, run
    ending = parts.ends("output_norm")
    hidden = np.empty((n_chunks, n_ctx - 1 - first, config.d_model), config.dtype)
    finish = functools.partial(_jitted(_finish, ending), ending, config=config)
    through(finish, states[:, first:-1], hidden, None)
    return FinalStates(hidden, head(parts.ends(*_head_fields(config)), config), config, parts.path)


def check_room(parts: ModelParts, rows: np.ndarray, batch_size: int, *, beside: int = 0) -> None:
    """Refuse what would not fit, before anything is loaded.

    Args:
        parts, rows, batch_size: as of `stream_states`.
        beside: bytes that other models' states will take of the host's memory before this one's.

    Raises:
        CapacityError: says what takes how much.
    """
    config = parts.config
    whole = rows.size * config.d_model * jnp.dtype(config.dtype).itemsize
    on_host = beside + whole + scored_bytes(config, rows)
    packed = (math.prod(s.spec.shape[-2:]) for s in parts.storages.values() if s.dtype is None)
    workspace = workspace_bytes(
        config, max(packed, default=0), batch_size, rows.shape[1], rows.shape[1]
    )
    weights = max(
        2 * parts.block_bytes(), parts.bytes_of(_EMBEDDING), parts.bytes_of(_head_fields(config))
    )
    memory, host = memory_of(jax.devices()[:1]), _free_on_host()
    needed = weights + workspace
    if jax.default_backend() == "cpu":
        needed, on_host = needed + on_host, 0
    if memory.free is not None and needed > memory.free:
        raise CapacityError(
            f"{parts.path}: layer by layer it takes {gib(needed)} on {memory.where}, which has "
            f"{gib(memory.free)} free: two layers {gib(2 * parts.block_bytes())}, workspace "
            f"{gib(workspace)}. Take fewer chunks, a smaller batch, or packed weights"
        )
    if host is not None and on_host > host:
        raise CapacityError(
            f"{parts.path}: the hidden states of {rows.size} tokens take {gib(on_host)} of the "
            f"host's memory, of which {gib(host)} are free. Take fewer chunks"
        )


def _free_on_host() -> int | None:
    """Bytes; None where JAX was told to leave the host alone."""
    try:
        return free_bytes(jax.devices("cpu")[0])
    except RuntimeError:
        return None


def _head_fields(config: ModelConfig) -> Iterable[str]:
    return ("output", "token_embd") if config.tied_output else ("output",)


@functools.cache
def _compiled(function, packed: bool):
    static = ("layer", "config") if function is _run else ("config",)
    options = compiler_options(packed=packed)
    return jax.jit(function, static_argnames=static, compiler_options=options)


def _jitted(function, weights: Params | Block):
    return _compiled(function, has_packed(weights))


def _whole(batch: int, length: int) -> AttentionInputs:
    return whole_rows(jnp.full((batch,), length, jnp.int32), length)


def _embed(
    embedding: Params, tokens: Int[Array, "B L"], *, config: ModelConfig
) -> Float[Array, "B L D"]:
    x = embedded(embedding, tokens.reshape(-1), _whole(*tokens.shape), config=config)
    return x.reshape(*tokens.shape, -1)


def _run(
    block: Block,
    factors: Params,
    x: Float[Array, "B L D"],
    *,
    layer: LayerConfig,
    config: ModelConfig,
) -> Float[Array, "B L D"]:
    batch, length, width = x.shape
    inputs = _whole(batch, length)
    tables = rotation(factors, layer.rope, inputs, config=config)
    y, _ = run_layer(block, x.reshape(-1, width), inputs, None, tables, layer, config)
    return y.reshape(x.shape)


def _finish(
    ending: Params, x: Float[Array, "B n D"], *, config: ModelConfig
) -> Float[Array, "B n D"]:
    return normalized(x.reshape(-1, x.shape[-1]), ending.output_norm, config).reshape(x.shape)
