"""The runner's steps as jitted functions: what is donated, what is static, what stays where."""

import dataclasses
import functools
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from rfjax.cache.paged import copy_pages
from rfjax.engine import steps
from rfjax.engine.compiler_options import compiler_options
from rfjax.engine.on_mesh import OnMesh
from rfjax.ops.sampling import LogitsProcessor


@dataclasses.dataclass(frozen=True)
class JittedSteps:
    """The jitted steps."""

    open_rows: Callable
    count_tokens: Callable
    write_tables: Callable
    prefill: Callable
    prefill_reporting: Callable
    copy_pages: Callable
    decode: Callable


@functools.cache
def jitted_steps(
    packed: bool, mesh: Mesh | None, burst: int, processors: tuple[LogitsProcessor, ...]
) -> JittedSteps:
    """Steps as functions that runners of the same kind share, and so compile once."""

    on = OnMesh(mesh)
    pinned, everywhere, by_rows = on.pinned, on.everywhere, on.by_rows

    def open_rows(rows, tables, at, new):
        return everywhere(steps.open_rows(rows, tables, at, new))

    def count_tokens(counts, at, prompt, output):
        return everywhere(steps.count_tokens(counts, at, prompt, output))

    def write_tables(tables, writes):
        return everywhere(steps.write_tables(tables, writes))

    def prefill(params, cache, tables, tokens, positions, slots, config):
        pieces = by_rows(tokens, positions, slots)
        _, cache = steps.prefill(params, cache, tables, *pieces, config=config)
        return pinned(cache)

    def prefill_reporting(
        params, cache, tables, tokens, positions, slots, following, n_top, config
    ):
        pieces = by_rows(tokens, positions, slots)
        hidden, cache = steps.prefill(params, cache, tables, *pieces, config=config)
        values = steps.prompt_logprobs(params, hidden, following, n_top, config=config)
        return pinned(cache), everywhere(values)

    def copy(cache, copies):
        return pinned(copy_pages(cache, copies))

    def decode(params, cache, rows, counts, tables, slots, row_steps, n_steps, n_top, config):
        slots, row_steps = by_rows(slots, row_steps)
        cache, *others = steps.decode(
            params,
            cache,
            rows,
            counts,
            tables,
            slots,
            row_steps,
            n_steps,
            burst=burst,
            n_top=n_top,
            processors=processors,
            config=config,
        )
        return pinned(cache), *everywhere(tuple(others))

    options = compiler_options(packed=packed)
    jit = functools.partial(jax.jit, compiler_options=options)
    return JittedSteps(
        open_rows=jit(open_rows, donate_argnames=("rows", "tables")),
        count_tokens=jit(count_tokens, donate_argnames="counts"),
        write_tables=jit(write_tables, donate_argnames="tables"),
        prefill=jit(prefill, donate_argnames="cache", static_argnames="config"),
        prefill_reporting=jit(
            prefill_reporting, donate_argnames="cache", static_argnames=("n_top", "config")
        ),
        copy_pages=jit(copy, donate_argnames="cache"),
        decode=jit(
            decode,
            donate_argnames=("cache", "rows", "counts"),
            static_argnames=("n_top", "config"),
        ),
    )
