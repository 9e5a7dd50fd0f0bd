"""A plan under way on the device, and how its results become the host's."""

import dataclasses
from collections.abc import Sequence
from itertools import chain

import jax
import numpy as np

from rfjax.engine.burst_result import BurstResult, PromptResult, RowResult
from rfjax.engine.exhaustion import device_memory
from rfjax.engine.plan import Plan, PrefillChunk
from rfjax.engine.steps import Made
from rfjax.typing import Array

_NOTHING_TO_CHOOSE = (
    "the model computes NaN or infinity for this sequence (or a logits processor forbids every "
    "token), expected logits: load it with dtype='float32'; if that gives the same, its weights "
    "are damaged"
)


@dataclasses.dataclass(frozen=True)
class Reporting:
    """Log-probabilities of prompts under way.

    Attributes:
        chunks: each with its first piece and the number of its pieces.
        values: log-probabilities, most likely tokens and theirs, of all pieces.
    """

    chunks: tuple[tuple[PrefillChunk, int, int], ...]
    values: tuple[Array, Array, Array]  # [B, L], [B, L, n], [B, L, n]

    def results(self, logprobs: np.ndarray, ids: np.ndarray, top: np.ndarray) -> list[PromptResult]:
        """One for each chunk, from the values on the host."""
        found = []
        for chunk, first, n_pieces in self.chunks:
            size, n = len(chunk.token_ids), chunk.prompt_logprobs or 0
            whole = slice(first, first + n_pieces)
            of_chunk = (x[whole].reshape(-1, *x.shape[2:])[:size] for x in (logprobs, ids, top))
            own, ids_, top_ = of_chunk
            found.append(
                PromptResult(
                    sequence=chunk.sequence,
                    start=chunk.start,
                    logprobs=own.tolist(),
                    top_logprobs=_as_dicts(ids_[:, :n], top_[:, :n]),
                )
            )
        return found


class Burst:
    """A plan under way."""

    def __init__(
        self,
        plan: Plan,
        made: Made | None,
        n_logprobs: Sequence[int | None],
        reporting: Sequence[Reporting],
    ):
        """A plan that was dispatched; its results begin their way to the host.

        Args:
            plan: the plan.
            made: what its rows make, if it decodes any.
            n_logprobs: how many of the most likely tokens each row reports; None for none.
            reporting: what it says of prompts, if any of them asks.
        """
        self.plan = plan
        self._n_logprobs = n_logprobs
        self._reporting = reporting
        wanted: list[Array] = []
        if made is not None:
            wanted = [made.token_ids, made.logprobs, made.n_made, made.failed]
            if any(n_logprobs):
                wanted += [made.top_ids, made.top_logprobs]
        self._made = wanted
        self._prompts = [one.values for one in reporting]
        for array in (*self._made, *chain.from_iterable(self._prompts)):
            array.copy_to_host_async()

    def read(self) -> BurstResult:
        """Wait for the device, and take what it made.

        Raises:
            CapacityError: a device ran out of memory. The runner is to be reset.
        """
        with device_memory():
            made, prompts = jax.device_get((self._made, self._prompts))
        rows = self._rows(*made) if made else ()
        reported = (
            result
            for one, values in zip(self._reporting, prompts, strict=True)
            for result in one.results(*values)
        )
        return BurstResult(rows, tuple(reported))

    def _rows(self, token_ids, logprobs, n_made, failed, top_ids=None, top=None):
        rows = []
        counts, failures = n_made.tolist(), failed.tolist()
        for row, n_top in enumerate(self._n_logprobs):
            n = counts[row]
            most_likely = None
            if n_top is not None:
                most_likely = [{} for _ in range(n)]
                if n_top and top_ids is not None and top is not None:
                    most_likely = _as_dicts(top_ids[row, :n, :n_top], top[row, :n, :n_top])
            rows.append(
                RowResult(
                    token_ids=token_ids[row, :n].tolist(),
                    logprobs=logprobs[row, :n].tolist(),
                    top_logprobs=most_likely,
                    failed=_NOTHING_TO_CHOOSE if failures[row] else None,
                )
            )
        return tuple(rows)


def _as_dicts(ids: np.ndarray, logprobs: np.ndarray) -> list[dict[int, float]]:
    """A mapping for each token, the most likely first."""
    pairs = zip(ids.tolist(), logprobs.tolist(), strict=True)
    return [dict(zip(tokens, values, strict=True)) for tokens, values in pairs]
