"""Layer by layer comes out what the whole model gives, for every mechanism outside of layers."""

import gc
import weakref

import jax.numpy as jnp
import numpy as np
import pytest
from support.arch_goldens import GOLDENS

import rfjax
from rfjax.errors import CapacityError
from rfjax.evals.kl import layer_stream
from rfjax.evals.kl.final_states import final_states
from rfjax.evals.kl.layer_stream import stream_states
from rfjax.io.parts import open_parts

pytestmark = pytest.mark.quick_compile

NAMES = ("command-r", "deepseek2", "gemma2", "gpt-oss", "minicpm", "mpt-positions", "phi3-long")
"""Parallel and latent layers, two kinds of layers in turn, experts, scales of embeddings and
logits, learned positions, stored factors, tied and untied heads."""


@pytest.mark.parametrize("name", NAMES)
def test_states_are_those_of_the_whole_model(name, tmp_path):
    """Within rounding: the layers are compiled one by one here, and hardly optimized."""
    path = GOLDENS[name].write(tmp_path / "model.gguf")
    model, parts = rfjax.load(path), open_parts(path)
    assert parts.config == model.config
    rows = np.stack([GOLDENS[name].tokens()[:32], GOLDENS[name].tokens()[16:]])
    expected = final_states(model, rows, batch_size=2)
    streamed = stream_states(parts, rows, batch_size=1)
    assert streamed.hidden.shape == (2, 15, model.config.d_model)
    np.testing.assert_allclose(streamed.hidden, expected.hidden, rtol=2e-5, atol=2e-5)
    hidden = jnp.asarray(expected.hidden[0])
    np.testing.assert_array_equal(streamed.head.logits(hidden), expected.head.logits(hidden))


def test_no_more_than_two_layers_are_held(tmp_path, monkeypatch):
    """The one that computes, and the one that is loaded meanwhile."""
    parts = open_parts(GOLDENS["llama-fused"].write(tmp_path / "model.gguf"))
    load, norms, most = type(parts).block, [], []

    def loading(self, number):
        gc.collect()
        most.append(sum(norm() is not None for norm in norms))
        block = load(self, number)
        norms.append(weakref.ref(block.attn_norm.weight))
        return block

    monkeypatch.setattr(type(parts), "block", loading)
    told = []
    rows = np.zeros((3, 8), np.int32)
    stream_states(parts, rows, batch_size=2, on_progress=lambda *now: told.append(now))
    n_layers = len(parts.config.layers)
    assert len(most) == n_layers > 1 and max(most) == 1
    assert told == [(i + 1, 3 * n_layers) for i in range(3 * n_layers)]


def test_what_does_not_fit_even_so_is_refused(tiny_llama_path, monkeypatch):
    parts = open_parts(tiny_llama_path)
    monkeypatch.setattr("rfjax.io.memory.free_bytes", lambda device: 1000)
    monkeypatch.setattr(layer_stream, "free_bytes", lambda device: 1000)
    with pytest.raises(CapacityError, match=r"layer by layer it takes .* Take fewer chunks"):
        stream_states(parts, np.zeros((2, 8), np.int32), batch_size=1)
