"""Files beside a base's, loaded as the memory allows: together, in turn, or layer by layer."""

import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from rfjax.evals.kl.against_file import KLResult
from rfjax.evals.kl.final_states import FinalStates, final_states, scored_bytes
from rfjax.evals.kl.kld import chunks_at_a_time, compare_states, comparison_rows, kld
from rfjax.evals.kl.layer_stream import check_room, stream_states
from rfjax.evals.kl.residency import Residency
from rfjax.io.load import Model
from rfjax.io.parts import ModelParts

OnStep = Callable[[str, int, int], None]
"""Called with (what is done, steps done, steps in all)."""


def kld_files(
    base: pathlib.Path,
    paths: Sequence[pathlib.Path],
    text: str | Sequence[int],
    *,
    residency: Residency,
    load: Callable[[pathlib.Path], Model],
    open_parts: Callable[[pathlib.Path], ModelParts],
    n_ctx: int = 512,
    chunks: int | None = None,
    batch_size: int | None = None,
    on_model: Callable[[pathlib.Path, Model], None] | None = None,
    on_step: OnStep | None = None,
) -> list[KLResult]:
    """Compare files with a base, as `rfjax.evals.kl.kld.kld` compares models.

    Args:
        base: the base's file.
        paths: the others'; the base may be among them, and is then beside itself.
        text, n_ctx, chunks, batch_size: as of `kld`.
        residency: of `rfjax.evals.kl.residency.choose_residency`. "all" holds all models and runs
            one program; "one" and "layers" keep the base's final hidden states on the host, and
            hold one model after the other with the base's output projection, or two layers of one.
        load: opens a file for "all" and "one".
        open_parts: reads what a file says of itself, and opens it for "layers".
        on_model: called with each model that is loaded whole, the base first.
        on_step: called as the work goes on.

    Returns:
        The figures of each of `paths`, in order.

    Raises:
        RequestError: as of `kld`; vocabularies are compared before any weights are loaded.
        ModelFormatError: a model computes NaN.
        CapacityError: not even layers fit, or the hidden states in the host's memory; of any file,
            before anything is computed.
    """
    tell = on_step or (lambda what, done, total: None)
    seen = on_model or (lambda path, model: None)
    parts = open_parts(base)
    others = [parts if path == base else open_parts(path) for path in paths]
    rows = comparison_rows(parts, others, text, n_ctx=n_ctx, chunks=chunks)
    size = chunks_at_a_time(rows, batch_size)

    def loaded(path: pathlib.Path) -> Model:
        model = load(path)
        seen(path, model)
        return model

    if residency == "all":
        first = loaded(base)
        models = [first if path == base else loaded(path) for path in paths]
        return kld(
            first,
            models,
            text,
            n_ctx=n_ctx,
            chunks=chunks,
            batch_size=size,
            on_chunk=lambda done, total, _: tell("comparing", done, total),
        )

    def states(path: pathlib.Path, file: ModelParts) -> FinalStates:
        return _states(path, file, rows, size, loaded if residency == "one" else None, tell)

    if residency == "layers":  # before hours of work on the base
        of_base_bytes = scored_bytes(parts.config, rows)
        check_room(parts, rows, size)
        for path, file in zip(paths, others, strict=True):
            if path != base:
                check_room(file, rows, size, beside=of_base_bytes)
    of_base = states(base, parts)
    results = []
    for path, file in zip(paths, others, strict=True):
        own = of_base if path == base else states(path, file)
        name = f"comparing {path.name}"
        results.append(
            compare_states(
                of_base,
                own,
                rows,
                batch_size=size,
                on_chunk=lambda done, total, _, name=name: tell(name, done, total),
            )
        )
        del own  # or its states and output projection would be there while the next one loads
    return results


def _states(
    path: pathlib.Path,
    parts: ModelParts,
    rows: np.ndarray,
    batch_size: int,
    load: Callable[[pathlib.Path], Model] | None,
    tell: OnStep,
) -> FinalStates:
    """Of a model that is loaded here and given up at the end, or streamed."""

    def step(done: int, total: int) -> None:
        tell(f"computing {path.name}", done, total)

    if load is None:
        return stream_states(parts, rows, batch_size=batch_size, on_progress=step)
    return final_states(load(path), rows, batch_size=batch_size, on_progress=step)
