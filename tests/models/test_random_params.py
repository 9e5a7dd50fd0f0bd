"""Random weights: right types and sizes, values of the right magnitude, a model that works."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.errors import ConfigError
from rfjax.models.decoder import forward
from rfjax.models.random_params import random_params, random_weight, stored_bytes, tensor_types
from rfjax.models.shape import load_shape
from rfjax.quant.qtensor import QTensor, dequantize_packed
from rfjax.quant.types import GGMLType

pytestmark = pytest.mark.quick_compile


@pytest.mark.parametrize(("name", "mix"), [("tiny", "q4_k_m"), ("tiny-moe", "mxfp4_moe")])
def test_logits_of_a_random_model_are_of_order_one(name, mix):
    shape = load_shape(name)
    config = shape.model_config("float32")
    types = tensor_types(config, mix, shape.mix_model())
    params = random_params(config, types)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert held == pytest.approx(stored_bytes(config, types), rel=0.01)
    assert isinstance(params.output.weight, QTensor)
    tokens = jnp.arange(12, dtype=jnp.int32) * 7
    logits = np.asarray(jax.jit(forward, static_argnames="config")(params, tokens, config=config))
    assert np.isfinite(logits).all()
    assert 0.3 < logits.std() < 3


def test_the_seed_decides():
    config = load_shape("tiny").model_config("float32")
    types = tensor_types(config, "q8_0", load_shape("tiny").mix_model())
    first, again, other = (random_params(config, types, seed=seed) for seed in (1, 1, 2))
    get = lambda p, i: np.asarray(p.blk[i].ffn_up.weight.planes["q8"])  # noqa: E731
    np.testing.assert_array_equal(get(first, 0), get(again, 0))
    assert not np.array_equal(get(first, 0), get(other, 0))
    assert not np.array_equal(get(first, 0), get(first, 1))


@pytest.mark.parametrize("type", [GGMLType.F32, GGMLType.BF16, GGMLType.Q6_K, GGMLType.IQ3_S])
def test_a_stack_has_the_deviation_of_its_columns(type):
    weight = random_weight(jax.random.key(0), (2, 16, 1024), type)
    values = dequantize_packed(weight) if isinstance(weight, QTensor) else weight
    values = np.asarray(values, np.float64)
    assert values.shape == weight.shape == (2, 16, 1024)
    assert np.std(values) == pytest.approx(1024**-0.5, rel=0.05)


def test_rows_must_be_whole_blocks():
    with pytest.raises(ConfigError, match="rows of 96 elements are not whole blocks of Q4_K"):
        random_weight(jax.random.key(0), (4, 96), GGMLType.Q4_K)
