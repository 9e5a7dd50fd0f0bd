"""Logits of random models of every architecture equal llama.cpp's."""

import jax
import numpy as np
import pytest
from support.arch_goldens import GOLDENS, KEPT, stored
from support.mutations import nmse

from rfjax.io.load import load
from rfjax.models.decoder import forward

pytestmark = pytest.mark.quick_compile

run = jax.jit(forward, static_argnames="config")


@pytest.mark.parametrize("name", GOLDENS)
def test_logits_equal_llama_cpp(name, tmp_path):
    golden, expected = GOLDENS[name], stored(name)
    assert golden.checksum() == expected["checksum"], "the goldens belong to other weights"
    model = load(golden.write(tmp_path / "model.gguf"), context=golden.context)
    # Operation by operation where there are many layers, all of which share what XLA compiles.
    whole = forward if golden.sizes.n_layers > 8 else run
    found = np.asarray(whole(model.params, golden.tokens(), config=model.config))[KEPT]
    assert nmse(found, expected["logits"]) <= 1e-8
    best = np.sort(expected["logits"], axis=-1)
    clear = best[:, -1] - best[:, -2] > 1e-4
    assert (found.argmax(-1) == expected["logits"].argmax(-1))[clear].all()
