"""Files beside a base, with a bar: what `rfjax kld` and `rfjax compare` share."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

    from rfjax.evals.kl.against_file import KLResult
    from rfjax.evals.kl.residency import Residency
    from rfjax.io.load import Model
    from rfjax.io.parts import ModelParts
    from rfjax.ops.dispatch import KernelPolicy


@dataclasses.dataclass(frozen=True)
class Compared:
    """What came out.

    Attributes:
        residency: what was on the device at a time.
        dtype: in which the models computed.
        packed: whether a model had its quantized weights packed.
        results: of each file, in order.
        provenance: of the base and each file, by path, where settings were given.
    """

    residency: "Residency"
    dtype: str
    packed: bool
    results: "list[KLResult]"
    provenance: Mapping[Path, Mapping[str, Any]]


def comparing(
    base: Path,
    paths: Sequence[Path],
    text: str,
    *,
    bar: "Progress",
    ctx: int,
    chunks: int | None,
    batch_size: int,
    stream: bool,
    dtype: str | None,
    weights: str | None,
    kernels: "KernelPolicy",
    selfcheck: bool | None,
    one_at_a_time: bool = False,
    on_model: "Callable[[Path, Model], None] | None" = None,
    settings: Mapping[str, Any] | None = None,
) -> Compared:
    """Compare files with a base.

    Args:
        base: the base's file.
        paths: those compared with it.
        text: what they are compared on.
        bar: shows how far it is.
        ctx, chunks, stream: as the commands' flags.
        batch_size: tokens computed at a time.
        dtype, weights, kernels, selfcheck: as of `rfjax.load`.
        one_at_a_time: hold no two models where one fits.
        on_model: called with every model that is loaded whole.
        settings: what the figures depend on besides, to be kept with where the models come from.
    """
    from rfjax.cli.model import open_model
    from rfjax.evals.kl.kld_files import kld_files
    from rfjax.evals.kl.residency import choose_residency
    from rfjax.evals.perplexity import check_count
    from rfjax.evals.records.provenance import provenance
    from rfjax.io.load import resolve_dtype
    from rfjax.io.parts import open_parts
    from rfjax.quant.qtensor import has_packed

    computed_in = resolve_dtype(dtype)
    check_count("n_ctx", ctx, least=4)
    at_a_time = max(1, batch_size // ctx)
    residency: Residency = "layers"
    if not stream:
        residency = choose_residency(
            (base, *paths), n_ctx=ctx, batch_size=at_a_time, dtype=dtype, weights=weights
        )
    if one_at_a_time and residency == "all":
        residency = "one"
    task = bar.add_task("loading", total=None)
    open_file = functools.partial(
        open_parts, dtype=dtype, weights=weights, kernels=kernels, selfcheck=selfcheck
    )
    origins: dict[Path, Mapping[str, Any]] = {}
    packed: dict[Path, bool] = {}
    if settings is not None:
        settings = {**settings, "residency": residency}

    def opened(path: Path) -> "ModelParts":
        parts = open_file(path)
        packed[path] = _is_packed(parts)
        return parts

    def loaded(path: Path, model: "Model") -> None:
        packed[path] = has_packed(model.params)
        if settings is not None:
            origins[path] = provenance(model, settings)
        if on_model is not None:
            on_model(path, model)

    results = kld_files(
        base,
        paths,
        text,
        residency=residency,
        load=lambda path: (
            open_model(
                path,
                dtype,
                weights=weights,
                tensor_parallel=1,
                data_parallel=1,
                kernels=kernels,
                selfcheck=selfcheck,
            ).model
        ),
        open_parts=opened,
        n_ctx=ctx,
        chunks=chunks,
        batch_size=at_a_time,
        on_model=loaded,
        on_step=lambda what, done, total: bar.update(
            task, description=what, completed=done, total=total
        ),
    )
    if residency == "layers" and settings is not None:
        origins = {p: _of_parts(open_file(p), settings) for p in dict.fromkeys((base, *paths))}
    return Compared(residency, computed_in, any(packed.values()), results, origins)


def settings_of(text: str, ctx: int, chunks: int | None, batch_size: int) -> dict[str, Any]:
    """What the figures depend on besides the models."""
    from rfjax.evals.records.provenance import text_hash

    return {
        "text_hash": text_hash(text),
        "n_ctx": ctx,
        "chunks": chunks,
        "batch_size": max(1, batch_size // ctx),
    }


def _of_parts(parts: "ModelParts", settings: Mapping[str, Any]) -> dict[str, Any]:
    """Where a model comes from that is never loaded whole."""
    import jax

    from rfjax.evals.records.provenance import provenance
    from rfjax.io.load import Model
    from rfjax.io.memory import make_plan, memory_of

    plan = make_plan(parts.storages, parts.config, None, memory_of(jax.devices()[:1]))
    norm = parts.ends("output_norm")  # something that lies on the device
    model = Model(norm, parts.config, parts.tokenizer, parts.path, None, plan)
    found = provenance(model, settings)
    held = Counter(s.type.name if s.dtype is None else s.dtype for s in parts.storages.values())
    kind = "packed" if _is_packed(parts) else "plain"
    return found | {
        "weights": found["weights"] | {"kind": kind, "held": dict(sorted(held.items()))}
    }


def _is_packed(parts: "ModelParts") -> bool:
    return any(storage.dtype is None for storage in parts.storages.values())
