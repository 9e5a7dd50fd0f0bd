"""The tree of weights: its names are GGUF's, its shapes and axes what the configuration says."""

import dataclasses

import pytest
from support.gguf_files import write_gguf
from support.random_model import Shape, random_model

from rfjax.io.gguf import read_gguf
from rfjax.models.configure import configure
from rfjax.models.params import ParamSpec, named_leaves, param_spec, parameter_count
from rfjax.sharding import MESH_AXES

BIASES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")

SHAPES = {
    "llama": Shape(),
    "llama-tied": Shape(tied=True, rope_factors=True),
    "llama-biased": Shape(biases=BIASES),
    "mixtral": Shape(n_experts=4, n_used=2),
    "mistral3": Shape("mistral3", head_dim=6),
    "qwen2": Shape("qwen2"),
    "qwen3": Shape("qwen3", head_dim=12),
    "qwen3moe": Shape("qwen3moe", n_experts=4, n_used=2),
}


@pytest.mark.parametrize("name", SHAPES)
def test_leaves_are_the_tensors_of_the_file(tmp_path, name):
    metadata, tensors = random_model(SHAPES[name])
    file = read_gguf(write_gguf(tmp_path / "m.gguf", metadata, tensors))
    leaves = named_leaves(param_spec(configure(file)))
    assert {path: leaf.shape for path, leaf in leaves.items()} == {
        path: tensor.shape for path, tensor in tensors.items()
    }
    for path, leaf in leaves.items():
        assert len(leaf.axes) == len(leaf.shape)
        assert set(leaf.axes) <= {*MESH_AXES, "embed", None}
        narrow = path.endswith(".weight") and len(leaf.shape) > 1 and "ffn_gate_inp" not in path
        assert leaf.wide is not narrow


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_count_once(tmp_path, tied):
    metadata, tensors = random_model(Shape(tied=tied))
    file = read_gguf(write_gguf(tmp_path / "m.gguf", metadata, tensors))
    count = parameter_count(param_spec(configure(file)))
    assert count == sum(tensor.size for tensor in tensors.values())


def test_the_output_bias_of_qwen2(tmp_path):
    metadata, tensors = random_model(Shape("qwen2"))
    tensors["output.bias"] = tensors["token_embd.weight"][:, 0].copy()
    file = read_gguf(write_gguf(tmp_path / "m.gguf", metadata, tensors))
    leaves = named_leaves(param_spec(configure(file)))
    assert leaves["output.bias"] == ParamSpec((40,), ("vocab",), wide=True)


def test_projections_of_one_kind_split_along_the_same_axis(tmp_path):
    """The product of a column-split with a row-split matrix needs no exchange between them."""
    metadata, tensors = random_model(Shape())
    file = read_gguf(write_gguf(tmp_path / "m.gguf", metadata, tensors))
    leaves = named_leaves(param_spec(configure(file)))
    axes = {path: leaf.axes for path, leaf in leaves.items() if path.startswith("blk.0.")}
    assert axes["blk.0.attn_q.weight"] == ("heads", "embed")
    assert axes["blk.0.attn_k.weight"] == axes["blk.0.attn_v.weight"] == ("kv_heads", "embed")
    assert axes["blk.0.attn_output.weight"] == ("embed", "heads")
    assert axes["blk.0.ffn_up.weight"] == axes["blk.0.ffn_gate.weight"] == ("mlp", "embed")
    assert axes["blk.0.ffn_down.weight"] == ("embed", "mlp")


def test_a_spec_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ParamSpec((1,), (None,)).shape = (2,)
