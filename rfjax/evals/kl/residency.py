"""How much of the models of a comparison is on the device at a time, decided before any loads."""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Literal

import jax

from rfjax.errors import CapacityError
from rfjax.io.gguf import read_gguf
from rfjax.io.load import plan_load, resolve_dtype
from rfjax.io.memory import memory_of, workspace_bytes
from rfjax.models.configure import configure
from rfjax.ops.likelihood import rows_at_a_time

Residency = Literal["all", "one", "layers"]
"""All models together, in one program; one model after the other; or a layer after the other.

Figures agree within rounding, which in bfloat16 is visible: the way belongs to what is reported.
"""

_LOGITS_COPIES = 6
"""Arrays as large as the logits held together that a comparison makes of them, from above."""


@dataclasses.dataclass(frozen=True)
class _Need:
    """Bytes of one model."""

    weights: int
    head: int
    step: int  # while it loads or computes, beside the weights


def choose_residency(
    paths: Sequence[str | os.PathLike[str]],
    *,
    n_ctx: int,
    batch_size: int,
    dtype: str | None = None,
    weights: str | None = None,
) -> Residency:
    """What fits: nothing is loaded, and only headers are read.

    Args:
        paths: of the base, then of the other models.
        n_ctx: tokens of a chunk.
        batch_size: chunks computed at a time.
        dtype, weights: as of `rfjax.load`.

    Raises:
        ModelFormatError, UnsupportedError, ConfigError: as of `rfjax.load`.
    """
    free = memory_of(jax.devices()[:1]).free
    needs = []
    for path in paths:
        gguf = read_gguf(path)
        config = configure(gguf, dtype=resolve_dtype(dtype))
        try:
            storages, plan = plan_load(gguf, config, weights=weights)
        except CapacityError:
            return "layers"
        packed = (math.prod(s.spec.shape[-2:]) for s in storages.values() if s.dtype is None)
        workspace = workspace_bytes(config, max(packed, default=0), batch_size, n_ctx, n_ctx)
        rows = rows_at_a_time(batch_size * n_ctx, config.vocab_size)
        # Both models' output projections as plain numbers, and what is made of logits.
        plain = 2 * 4 * config.vocab_size * config.d_model
        logits = 4 * _LOGITS_COPIES * rows * config.vocab_size
        names = ("output.weight", "token_embd.weight")
        head = storages[names[config.tied_output]].nbytes
        needs.append(_Need(plan.weights, head, max(plan.loading, workspace + plain + logits)))
    if free is None:
        return "one"
    step = max(need.step for need in needs)
    if sum(need.weights for need in needs) + step <= free:
        return "all"
    base, *others = needs
    if max(base.weights, *(base.head + need.weights for need in others)) + step <= free:
        return "one"
    return "layers"
