"""Measuring all layers' products: they are the model's own."""

import jax
import numpy as np
import pytest

from rfjax.bench.op_chain import _chain, bench_chain
from rfjax.bench.roof import Roof
from rfjax.bench.subject import from_shape
from rfjax.errors import ConfigError
from rfjax.ops.activation import gated
from rfjax.ops.linear import linear
from rfjax.ops.norm import rms_norm

pytestmark = pytest.mark.quick_compile


@pytest.fixture(scope="module")
def subject():
    return from_shape("tiny:q8_0-pure")


def test_the_chain_is_that_of_the_layers(subject):
    config = subject.config
    x = jax.random.normal(jax.random.key(0), (2, config.d_model))
    found, others = jax.jit(_chain, static_argnames="config")(subject.params.blk, x, config=config)
    for block in subject.params.blk:
        h = rms_norm(x, block.attn_norm.weight, config.norm_eps)
        x = x + linear(linear(h, block.attn_q.weight), block.attn_output.weight)
        h = rms_norm(x, block.ffn_norm.weight, config.norm_eps)
        h = gated(linear(h, block.ffn_gate.weight), linear(h, block.ffn_up.weight), "silu")
        x = x + linear(h, block.ffn_down.weight)
    np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-5)
    assert [other.shape for other in others] == [(2, 64)] * 6


def test_what_is_recorded(subject):
    first, second = bench_chain(subject, (1, 2), repeats=1, roof=Roof(1e9, 1e9, "float32"))
    assert (first.m, second.m) == (1, 2)
    assert first.packed_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(subject.params.blk))
    assert first.copy_share == pytest.approx(first.gb_per_s)
    assert first.record()["us_per_layer"] == pytest.approx(first.seconds * 1e6 / 3)


def test_other_layers_are_refused():
    with pytest.raises(ConfigError, match="dense layers"):
        bench_chain(from_shape("tiny-moe:f32"))
