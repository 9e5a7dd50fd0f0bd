"""The compiled decode loop copies no weights and no cache, and unpacks one weight at a time."""

import re

import jax
import numpy as np
import pytest
from support.tiny_model import tiny_llama

import rfjax
from rfjax.engine import state as steps
from rfjax.engine.config import EngineConfig
from rfjax.engine.runner import Runner
from rfjax.quant.qtensor import packed_leaves

_COPY = re.compile(r"= (\w+)\[([\d,]+)\]\S* (?:copy|copy-start)\(")
_WHILE = re.compile(r"= (\(.*?\)) while\(")
_ARRAY = re.compile(r"\w+\[([\d,]+)\]")


def elements(shape):
    return int(np.prod([int(size) for size in shape.split(",")]))


def copies(text, least):
    """The copies of an optimised program that have so many elements or more."""
    found = [(elements(match[2]), match[0]) for match in _COPY.finditer(text)]
    return [line for count, line in found if count >= least]


def carried(text):
    """Elements of every array that the program's loops carry."""
    return [elements(a) for loop in _WHILE.findall(text) for a in _ARRAY.findall(loop)]


@pytest.fixture(scope="module", params=["packed", "dequantized"])
def decoding(request, tmp_path_factory):
    """An `LLM` whose matrices and caches are far larger than its activations, and a state."""
    path = tmp_path_factory.mktemp("copies") / "m.gguf"
    tiny_llama(path, width=256, ffn_width=512, n_layers=2, quantized=True)
    llm = rfjax.LLM(path, weights=request.param, compilation_cache=False)
    asked = llm.engine.make_request([3, 4, 5], rfjax.SamplingParams(max_tokens=250))
    return llm, runner_of(llm)._start([asked, asked])


def runner_of(llm):
    return Runner(llm.model.params, llm.config, EngineConfig())


def smallest_held(llm, state):
    """Elements of the smallest cache or matrix (as it lies on the device)."""
    matrices = [
        leaf.size
        for leaf in jax.tree.leaves(llm.model.params)
        if leaf.ndim > 1 and leaf.size * leaf.dtype.itemsize > 8192
    ]
    return min(*matrices, *(leaf.size for leaf in jax.tree.leaves(state.cache)))


def test_no_weight_and_no_cache_is_copied(decoding):
    llm, state = decoding
    lowered = runner_of(llm)._decode.lower(llm.model.params, state, np.int32(8), config=llm.config)
    compiled = lowered.compile()
    text = compiled.as_text()
    assert " while(" in text
    assert not copies(text, smallest_held(llm, state))
    memory = compiled.memory_analysis()
    cache = sum(leaf.nbytes for leaf in jax.tree.leaves(state.cache))
    assert memory.alias_size_in_bytes >= cache


def test_packed_weights_are_unpacked_one_at_a_time_inside_the_loop(decoding):
    llm, state = decoding
    packed = packed_leaves(llm.model.params)
    if not packed:
        pytest.skip("about packed weights")
    lowered = runner_of(llm)._decode.lower(llm.model.params, state, np.int32(8), config=llm.config)
    compiled = lowered.compile()
    sizes = {int(np.prod(leaf.shape)) for leaf in packed}
    plain = {leaf.size for leaf in jax.tree.leaves(llm.model.params) if leaf.ndim == 2}
    cache = {leaf.size for leaf in jax.tree.leaves(state.cache)}
    assert not (sizes - plain - cache) & set(carried(compiled.as_text()))
    largest = 4 * max(sizes)
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * largest
    assert sum(4 * int(np.prod(leaf.shape)) for leaf in packed) > 4 * largest


def test_a_copied_cache_would_be_noticed(decoding):
    """Without donation the loop begins with copies of the caches."""
    llm, state = decoding
    kept = jax.jit(steps.decode, static_argnames="config")
    text = kept.lower(llm.model.params, state, np.int32(8), config=llm.config).compile().as_text()
    assert copies(text, smallest_held(llm, state))
