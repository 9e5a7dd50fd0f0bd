"""The device's state of every sequence that has a slot, apart from its keys and values."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rfjax.engine.plan import Opened
from rfjax.engine.sampling_params import SamplingParams
from rfjax.ops.constraints import n_words
from rfjax.ops.sampling import SamplingState
from rfjax.typing import Array

_NO_TOKEN = -1


@struct.dataclass
class RowState:
    """Sequences, one in each slot.

    The cache holds keys and values of `lengths - 1` tokens of each: the last token known is the
    next step's input.
    """

    tokens: Array  # int32 [slots]: the last one known
    lengths: Array  # int32 [slots]: tokens known
    limits: Array  # int32 [slots]: lengths at which to stop
    finished: Array  # bool [slots]
    sampling: SamplingState


def rows_of(
    opened: Sequence[Opened], n: int, vocab_size: int, n_stop: int, n_bias: int
) -> RowState:
    """What opened sequences begin with: NumPy arrays of n rows, of which the last are padding.

    Args:
        opened: at most n.
        n: rows.
        vocab_size: of the model.
        n_stop, n_bias: room for stop ids and biases in each row, enough for all.
    """
    of_request = [o.request for o in opened]

    def column(get: Callable[[Opened], Any], fill: Any, dtype: type = np.int32) -> np.ndarray:
        return np.array([get(o) for o in opened] + [fill] * (n - len(opened)), dtype)

    def setting(get: Callable[[SamplingParams], Any], dtype: type) -> np.ndarray:
        return column(lambda o: get(o.request.params), get(SamplingParams(temperature=0)), dtype)

    def listed(lists: Sequence[Sequence[Any]], width: int, fill: Any, dtype: type) -> np.ndarray:
        table = np.full((n, width), fill, dtype)
        for row, values in enumerate(lists):
            table[row, : len(values)] = values
        return table

    biases = [request.params.logit_biases for request in of_request]
    allowed = np.full((n, n_words(vocab_size)), 0xFFFFFFFF, np.uint32)
    for row, request in enumerate(of_request):
        if request.params.allowed_token_ids is not None:
            allowed[row] = _bits(request.params.allowed_token_ids, vocab_size)
    sampling: dict[str, Any] = {
        "temperature": setting(lambda p: p.temperature, np.float32),
        "top_k": setting(lambda p: max(0, p.top_k), np.int32),
        "top_p": setting(lambda p: p.top_p, np.float32),
        "min_p": setting(lambda p: p.min_p, np.float32),
        "typical_p": setting(lambda p: p.typical_p, np.float32),
        "repetition_penalty": setting(lambda p: p.repetition_penalty, np.float32),
        "presence_penalty": setting(lambda p: p.presence_penalty, np.float32),
        "frequency_penalty": setting(lambda p: p.frequency_penalty, np.float32),
        "seed": column(lambda o: o.request.seed_of(o.index), 0, np.uint32),
        "bias_ids": listed([[i for i, _ in b] for b in biases], n_bias, _NO_TOKEN, np.int32),
        "bias_values": listed([[v for _, v in b] for b in biases], n_bias, 0.0, np.float32),
        "allowed": allowed,
        "stop_ids": listed([r.stop_ids for r in of_request], n_stop, _NO_TOKEN, np.int32),
        "min_length": column(lambda o: len(o.request.token_ids) + o.request.params.min_tokens, 0),
        "n_logprobs": setting(lambda p: -1 if p.logprobs is None else p.logprobs, np.int32),
    }
    rows: dict[str, Any] = {
        "tokens": column(lambda o: o.token_ids[-1], 0),
        "lengths": column(lambda o: len(o.token_ids), 1),
        "limits": column(lambda o: o.request.limit, 1),
        "finished": np.arange(n) >= len(opened),
        "sampling": SamplingState(**sampling),
    }
    return RowState(**rows)


def uses_counts(params: SamplingParams) -> bool:
    """Whether a request's penalties need to know which tokens it has had."""
    penalties = params.repetition_penalty != 1, params.presence_penalty, params.frequency_penalty
    return any(penalties)


def widened(rows: RowState, n_stop: int, n_bias: int) -> RowState:
    """The rows with room for more stop ids and biases."""

    def pad(x: Array, width: int, fill: float) -> Array:
        missing = ((0, 0), (0, width - x.shape[1]))
        return jnp.pad(x, missing, constant_values=jnp.asarray(fill, x.dtype))

    old = rows.sampling
    sampling = dataclasses.replace(
        old,
        stop_ids=pad(old.stop_ids, n_stop, _NO_TOKEN),
        bias_ids=pad(old.bias_ids, n_bias, _NO_TOKEN),
        bias_values=pad(old.bias_values, n_bias, 0),
    )
    return dataclasses.replace(rows, sampling=sampling)


def token_lists(opened: Sequence[Opened], n: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of prompt and of output, int32 [n, width] each, padded with -1."""
    prompt, output = (np.full((n, width), _NO_TOKEN, np.int32) for _ in range(2))
    for row, o in enumerate(opened):
        n_prompt = len(o.request.token_ids)
        prompt[row, :n_prompt] = o.token_ids[:n_prompt]
        output[row, : len(o.token_ids) - n_prompt] = o.token_ids[n_prompt:]
    return prompt, output


def _bits(ids: Sequence[int], vocab_size: int) -> np.ndarray:
    """uint32 words in which the bits of these ids are set."""
    allowed = np.zeros(n_words(vocab_size) * 32, np.uint8)
    allowed[list(ids)] = 1
    return np.packbits(allowed, bitorder="little").view("<u4").astype(np.uint32)


def row_bytes(slots: int, vocab_size: int) -> int:
    """Bytes of all rows on the device, with the counts of tokens; from above."""
    rows = jax.eval_shape(lambda: rows_of([], slots, vocab_size, 64, 64))
    return 4 * slots * vocab_size + sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(rows))
