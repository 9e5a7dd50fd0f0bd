"""All conformance models: llama.cpp's logits, and mechanisms that show in them.

Logits are computed operation by operation: all models have the same sizes and so share what XLA
compiles, where a program for each model and each change to it would take minutes.
"""

import functools

import jax
import numpy as np
import pytest
from support.arch_files import ARCH_FILES
from support.mechanisms import mechanisms
from support.mutations import nmse

from rfjax.io.load import load
from rfjax.models import feed_forward
from rfjax.models.decoder import forward
from rfjax.ops.moe import expert_ffn

pytestmark = pytest.mark.quick_compile

SEEN = 64
"""Tokens that a changed model runs over: enough to cross its window, where it is causal."""

INVISIBLE = {
    # Without rotation the same for every key, which no softmax shows.
    "bloom-dense": {"no attn_k.bias"},
    "gpt2-dense": {"no attn_k.bias"},
    # Embeddings are sixteen times what attention adds to them: the NMSE is 7e-5 to 8.5e-5.
    "gemma-dense": {"parallel"},
    "gemma3-dense": {"parallel"},
    # The same; and scores of order one hardly reach a cap of 50: `tests/models` has a model whose
    # cap is 2.
    "gemma2-dense": {"parallel", "no softcap"},
    # A softmax over the chosen is normalized already.
    "gpt-oss-moe": {"normalized experts"},
}
"""Mechanisms that a file cannot show."""


@pytest.fixture(scope="module")
def loaded(conformance):
    """Model, tokens and llama.cpp's logits of a file, by name."""

    @functools.cache
    def get(name):
        with np.load(conformance / "archs" / f"{name}.npz") as golden:
            return (
                load(conformance / "archs" / f"{name}.gguf"),
                golden["tokens"],
                golden["logits"],
            )

    return get


def test_every_file_is_among_them(conformance):
    assert sorted(path.stem for path in (conformance / "archs").glob("*.gguf")) == list(ARCH_FILES)


@pytest.mark.usefixtures("experts_compiled_once")
@pytest.mark.parametrize("name", ARCH_FILES)
def test_logits_equal_llama_cpp(loaded, name):
    model, tokens, expected = loaded(name)
    found = np.asarray(forward(model.params, tokens, config=model.config))
    assert nmse(found, expected) <= 1e-8
    best = np.sort(expected, axis=-1)
    clear = best[:, -1] - best[:, -2] > 1e-4
    assert clear.sum() > 150
    assert (found.argmax(-1) == expected.argmax(-1))[clear].all()


@pytest.fixture
def experts_compiled_once(monkeypatch):
    """Operation by operation, JAX would compile the loop over experts anew at every call."""
    compiled = jax.jit(expert_ffn, static_argnums=6, static_argnames="policy")
    monkeypatch.setattr(feed_forward, "expert_ffn", compiled)


@pytest.mark.usefixtures("experts_compiled_once")
@pytest.mark.parametrize("name", ARCH_FILES)
def test_every_mechanism_shows(loaded, name):
    model, tokens, expected = loaded(name)
    seen = SEEN if all(a.mask.kind != "bidirectional" for a in model.config.layers) else len(tokens)
    unseen = set()
    for what, mutate in mechanisms(model.params, model.config).items():
        params, config = mutate(model.params, model.config)
        mutated = forward(params, tokens[:seen], config=config)
        if not nmse(mutated, expected[:seen]) > 1e-4:
            unseen.add(what)
    assert unseen == INVISIBLE.get(name, set())
