"""The compiled burst copies no weights and no pages, and unpacks one weight at a time."""

import functools
import re

import jax
import numpy as np
import pytest
from support.tiny_model import tiny_llama

import rfjax
from rfjax.engine import steps
from rfjax.engine.page_table import CacheGroup
from rfjax.engine.plan_runner import PlanRunner
from rfjax.engine.scheduler_config import SchedulerConfig
from rfjax.quant.qtensor import packed_leaves

_COPY = re.compile(r"= (\w+)\[([\d,]+)\]\S* (?:copy|copy-start)\(")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(")
_WHILE = re.compile(r"= (\(.*?\)) while\(")
_ARRAY = re.compile(r"\w+\[([\d,]+)\]")


def elements(shape):
    return int(np.prod([int(size) for size in shape.split(",")]))


def copies(text, held):
    """The copies of an optimised program that are as large as something held, or larger than all.

    What is named so inside a fusion is not one: it only says in which order the fusion counts.
    """
    found, computation = [], ""
    for line in text.splitlines():
        begin = _COMPUTATION.match(line)
        computation = begin[1] if begin else computation
        match = _COPY.search(line)
        if match and not computation.startswith("fused_computation"):
            count = elements(match[2])
            if count in held or count > max(held):
                found.append(match[0])
    return found


def carried(text):
    """Elements of every array that the program's loops carry."""
    return [elements(a) for loop in _WHILE.findall(text) for a in _ARRAY.findall(loop)]


SIZES = SchedulerConfig(
    groups=(CacheGroup("full", 65),),
    page_size=32,
    max_context=256,
    slots=8,
    token_budget=128,
    prefill_chunk=64,
    burst=8,
)


@pytest.fixture(scope="module", params=[("packed", "float32"), ("dequantized", "int8")])
def decoding(request, tmp_path_factory):
    """A model whose matrices and caches are far larger than its activations, a runner of it, and
    its compiled burst of three rows."""
    weights, kv_dtype = request.param
    path = tmp_path_factory.mktemp("copies") / "m.gguf"
    tiny_llama(path, width=512, n_heads=8, n_kv_heads=1, n_layers=2, quantized=True)
    model = rfjax.load(path, weights=weights)
    runner = PlanRunner(model.params, model.config, SIZES, kv_dtype=kv_dtype)
    return model, runner, lower_decode(model, runner, runner._compiled.decode).compile()


def lower_decode(model, runner, decode):
    rows = np.arange(3, dtype=np.int32)  # blocks of whose keys are of another size than all else
    state = runner._cache, runner._rows, runner._counts, runner._tables
    static = {"n_top": 20, "config": model.config}
    return decode.lower(model.params, *state, rows, rows + 8, np.int32(8), **static)


def held(model, runner):
    """Elements of all pages and matrices (as they lie on the device)."""
    leaves = [*jax.tree.leaves(model.params), *jax.tree.leaves(runner._cache)]
    return {leaf.size for leaf in leaves if leaf.size * leaf.dtype.itemsize > 8192}


def test_no_weight_and_no_page_is_copied(decoding):
    model, runner, compiled = decoding
    text = compiled.as_text()
    assert " while(" in text
    assert not copies(text, held(model, runner))
    memory = compiled.memory_analysis()
    state = jax.tree.leaves((runner._cache, runner._counts))
    assert memory.alias_size_in_bytes >= sum(leaf.nbytes for leaf in state)


def test_a_prompt_is_written_in_place(decoding):
    model, runner, _ = decoding
    pieces = np.zeros((3, 16), np.int32), np.full((3, 16), -1, np.int32), np.zeros(3, np.int32)
    state = runner._cache, runner._tables
    prefill = runner._compiled.prefill
    compiled = prefill.lower(model.params, *state, *pieces, config=model.config).compile()
    assert not copies(compiled.as_text(), held(model, runner))
    cache = sum(leaf.nbytes for leaf in jax.tree.leaves(runner._cache))
    assert compiled.memory_analysis().alias_size_in_bytes >= cache


def test_packed_weights_are_unpacked_one_at_a_time_inside_the_loop(decoding):
    model, runner, compiled = decoding
    packed = packed_leaves(model.params)
    if not packed:
        pytest.skip("about packed weights")
    sizes = {int(np.prod(leaf.shape)) for leaf in packed}
    plain = {leaf.size for leaf in jax.tree.leaves(model.params) if leaf.ndim == 2}
    cache = {leaf.size for leaf in jax.tree.leaves(runner._cache)}
    assert not (sizes - plain - cache) & set(carried(compiled.as_text()))
    unpacked = sum(4 * int(np.prod(leaf.shape)) for leaf in packed)
    assert compiled.memory_analysis().temp_size_in_bytes < unpacked / 2


def test_a_copied_cache_would_be_noticed(decoding):
    """Without donation the loop begins with copies of the pages."""
    model, runner, _ = decoding
    if not packed_leaves(model.params):
        pytest.skip("takes long to compile, and shows no more without packed weights")
    kept = jax.jit(
        functools.partial(steps.decode, burst=8, processors=()),
        static_argnames=("n_top", "config"),
    )
    text = lower_decode(model, runner, kept).compile().as_text()
    assert copies(text, held(model, runner))
