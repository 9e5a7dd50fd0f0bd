"""Shapes of models: those of the package, files of one's own, and what is refused."""

import pytest

from rfjax.errors import ConfigError, UnsupportedError
from rfjax.models.params import param_spec, parameter_count
from rfjax.models.random_params import stored_bytes, tensor_types
from rfjax.models.shape import load_shape, shape_names

# Billions of weights as the models' publishers state them.
SIZES = {
    "llama-1b": 1.24,
    "llama-3b": 3.21,
    "llama-8b": 8.03,
    "mixtral-8x7b": 46.7,
    "qwen3-30b-a3b": 30.5,
}


@pytest.mark.parametrize("name", shape_names())
def test_shapes_of_the_package_are_whole(name):
    shape = load_shape(name)
    config = shape.model_config("bfloat16")
    n = parameter_count(param_spec(config)) / 1e9
    assert n == pytest.approx(SIZES.get(name, n), rel=0.005)
    types = tensor_types(config, "q4_k_m", shape.mix_model())
    assert 4.5 < stored_bytes(config, types) * 8 / (n * 1e9) < 6.6


def test_sizes_of_files_are_those_of_real_ones():
    # GiB of Llama 3 8B files, from llama-quantize's own help text.
    sizes = {"q2_k": 2.96, "q3_k_m": 3.74, "q4_0": 4.34, "q4_k_m": 4.58, "q5_k_m": 5.33}
    sizes |= {"q6_k": 6.14, "q8_0": 7.96}
    shape = load_shape("llama-8b")
    config = shape.model_config("bfloat16")
    for mix, size in sizes.items():
        types = tensor_types(config, mix, shape.mix_model())
        assert stored_bytes(config, types) / 2**30 == pytest.approx(size, rel=0.005)


def test_a_file_of_ones_own(tmp_path):
    text = (
        'architecture = "llama"\nlabel = "x"\nvocab_size = 10\nd_model = 8\nn_layers = 1\n'
        "n_heads = 2\nn_kv_heads = 1\nhead_dim = 4\nffn_dim = 16\ncontext_length = 32\n"
        "norm_eps = 1e-5\nrope_base = 1e4\ntied_output = true\n"
    )
    path = tmp_path / "mine.toml"
    path.write_text(text)
    assert load_shape(str(path)).model_config("float32").layers[0].ffn_dim == 16
    for old, new, message in (
        ("n_heads = 2", "n_heads = 3\nn_kv = 1", "unknown key 'n_kv'"),
        ("n_kv_heads = 1", "n_kv_heads = 3", "divisor of the 2 heads"),
        ("vocab_size = 10", "vocab_size = 0", "vocab_size: got 0"),
        ("head_dim = 4", "head_dim = 5", "even number"),
        ("ffn_dim = 16", "ffn_dim = 0", "ffn_dim: got 0"),
        ("rope_base = 1e4", "rope_base = 0.0", "positive number"),
        ("n_layers = 1", "n_layers = 2\nfirst_layer = 3\nwhole_layers = 4", "first_layer: got 3"),
        ("ffn_dim = 16", "[experts]\nn_experts = 2\nn_used = 3\nffn_dim = 4", "at most the 2"),
    ):
        body = text.replace(old, "") + new if "[experts]" in new else text.replace(old, new)
        path.write_text(body)
        with pytest.raises(ConfigError, match=message):
            load_shape(str(path))


def test_what_is_unknown_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'llama-8b'"):
        load_shape("lama-8b")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_shape(str(tmp_path / "none.toml"))
    moe = load_shape("tiny-moe")
    with pytest.raises(ConfigError, match="has no experts"):
        type(moe)(**{**vars(moe), "architecture": "qwen2"}).model_config("float32")
    with pytest.raises(UnsupportedError, match="'quern' is not supported"):
        type(moe)(**{**vars(moe), "architecture": "quern"})
