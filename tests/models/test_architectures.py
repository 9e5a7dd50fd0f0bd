"""Logits of random models of every architecture equal llama.cpp's, and the engine's tokens those.

That such logits would notice every mechanism, `tests/conformance` shows for the architectures that
it has a file of, and a test here for the others.
"""

import dataclasses

import jax
import numpy as np
import pytest
from support.arch_goldens import GOLDENS, KEPT, stored
from support.arch_record import SHARED, as_recorded, recorded_errors
from support.gguf_files import write_gguf
from support.mechanisms import mechanisms
from support.mutations import nmse
from support.random_gguf import Sizes, random_gguf
from support.random_model import random_tokens
from support.tiny_model import q8_0

import rfjax
from rfjax.io.load import load
from rfjax.models.decoder import forward

pytestmark = pytest.mark.quick_compile

run = jax.jit(forward, static_argnames="config")


@pytest.mark.parametrize("name", GOLDENS)
def test_logits_equal_llama_cpp(name, tmp_path):
    golden, expected = GOLDENS[name], stored(name)
    assert golden.checksum() == expected["checksum"], "the goldens belong to other weights"
    model = load(golden.write(tmp_path / "model.gguf"), context=golden.context)
    # Operation by operation: models share what XLA compiles for these.
    found = np.asarray(forward(model.params, golden.tokens(), config=model.config))[KEPT]
    error = nmse(found, expected["logits"])
    assert error <= 1e-8
    assert as_recorded(golden.family.name, name, error), "make archs"
    best = np.sort(expected["logits"], axis=-1)
    clear = best[:, -1] - best[:, -2] > 1e-4
    assert (found.argmax(-1) == expected["logits"].argmax(-1))[clear].all()


OWN_MECHANISMS = {
    "deepseek2": "no expert scale",
    "deepseek2-groups": "no groups",
    "deepseek2-old": "no scaling of rope",
    "deepseek2-yarn": "attention scale",
    "gemma2": "no softcap",
    "gemma3": "no scaling of rope",
    "gpt-oss": "no scaling of rope",
    "mpt": "slope of alibi",
    "olmo": "no clamp",
    "phi2": "share of rope",
    "phi3-long": "no rope_factors",
    "phi3-short": "no rope_factors",
    "stablelm-parallel": "no qk norm",
}
"""What the files of `tests/conformance`, where every mechanism is tried, do not have."""


@pytest.mark.parametrize(("name", "what"), OWN_MECHANISMS.items())
def test_a_mechanism_of_its_own_shows(name, what, tmp_path):
    golden = GOLDENS[name]
    model = load(golden.write(tmp_path / "model.gguf"), context=golden.context)
    mutate = mechanisms(model.params, model.config)[what]
    params, config = mutate(model.params, model.config)
    mutated = np.asarray(forward(params, golden.tokens(), config=config))[KEPT]
    assert nmse(mutated, stored(name)["logits"]) > 1e-4


IN_CONFORMANCE = {
    architecture
    for architecture, errors in recorded_errors().items()
    if any(name.startswith(SHARED) for name in errors)
}
ALONE = [name for name, golden in GOLDENS.items() if golden.family.name not in IN_CONFORMANCE]
"""Models of architectures that only tests here are about."""


GENERATED = {GOLDENS[name].family.name: name for name in reversed(ALONE)}.values()
"""The first of each."""


@pytest.mark.parametrize("name", [*GENERATED, "baichuan-40"])
def test_every_mechanism_shows_where_no_conformance_file_does_it(name, tmp_path):
    golden = GOLDENS[name]
    model = load(golden.write(tmp_path / "model.gguf"), context=golden.context)
    unseen = set()
    for what, mutate in mechanisms(model.params, model.config).items():
        params, config = mutate(model.params, model.config)
        mutated = np.asarray(forward(params, golden.tokens(), config=config))[KEPT]
        if not nmse(mutated, stored(name)["logits"]) > 1e-4:
            unseen.add(what)
    assert not unseen


NEVER_QUANTIZED = {"ffn_gate_inp", "position_embd", "attn_q_norm", "attn_k_norm"}
"""Tensors of several dimensions that files keep as plain numbers."""

Q8_SIZES = Sizes(ffn=64, expert_ffn=32, shared_ffn=32, q_rank=32, kv_rank=32, nope_dim=32)
"""Rows of whole blocks."""


def quantized(name, values):
    """A tensor as Q8_0, where files have it so."""
    matrix = values.ndim > 1 and values.shape[-1] % 32 == 0
    return q8_0(values) if matrix and name.split(".")[-2] not in NEVER_QUANTIZED else values


@pytest.mark.parametrize("name", ["bloom", "deepseek2", "gemma2", "gpt-oss", *GENERATED])
def test_the_engine_generates_what_forward_does(name, tmp_path):
    """32 tokens from packed Q8_0 weights."""
    golden, sizes = GOLDENS[name], Q8_SIZES
    if golden.sizes.n_kv_heads == golden.sizes.n_heads:
        sizes = dataclasses.replace(sizes, n_kv_heads=sizes.n_heads)
    keys, tensors = random_gguf(golden.family, sizes, seed=1, metadata=golden.metadata)
    typed = {tensor: quantized(tensor, values) for tensor, values in tensors.items()}
    path = write_gguf(tmp_path / "model.gguf", keys, typed)
    llm = rfjax.LLM(path, weights="packed", compilation_cache=False)
    prompt = random_tokens(2, 20, sizes.vocab).tolist()
    params = rfjax.SamplingParams(max_tokens=32, temperature=0.0, ignore_eos=True)
    (output,) = llm.generate([prompt], params)
    assert len(output.token_ids) == 32
    tokens = np.asarray([*prompt, *output.token_ids], np.int32)
    asked = np.asarray(run(llm.model.params, tokens, config=llm.config))[len(prompt) - 1 : -1]
    best = np.sort(asked, axis=-1)
    clear = best[:, -1] - best[:, -2] > 1e-4
    assert clear.sum() >= 24
    assert (asked.argmax(-1) == tokens[len(prompt) :])[clear].all()
