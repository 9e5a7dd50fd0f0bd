"""What a journal keeps of a corpus's chunks, so that none is computed twice."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from rfjax.evals.records.journal import Journal, continuation_key


def with_journal(
    compute: Callable[[np.ndarray], Iterable[np.ndarray]],
    rows: np.ndarray,
    journal: Journal | None,
    *,
    kind: str,
    first: int,
) -> Iterator[np.ndarray]:
    """The values of each chunk, in order: from the journal where it has them, else computed.

    Args:
        compute: given some of the rows, it gives the values of each in order, f32 arrays of any
            shape, once they are known to be good.
        rows: the chunks, int `[n_chunks, n_ctx]`.
        journal: takes what is computed as it comes; None for none.
        kind: what the values are, to keep them apart from others in the journal.
        first: the last position of a chunk that is not scored.
    """
    if journal is None:
        yield from compute(rows)
        return
    # With the number, since chunks that are equal may differ in their last bits.
    keys = [
        f"{kind}:{number}:{continuation_key(row[: first + 1], row[first + 1 :])}"
        for number, row in enumerate(rows)
    ]
    missing = [number for number, key in enumerate(keys) if key not in journal]
    computed = iter(compute(rows[missing]))
    for key in keys:
        kept = journal.get(key)
        if kept is not None:
            yield np.asarray(kept, np.float32)
            continue
        values = next(computed)
        journal.add(key, values.tolist())
        yield values
