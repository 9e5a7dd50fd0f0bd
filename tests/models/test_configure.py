"""Metadata to configuration: every variant, and every way in which it can be wrong."""

import math

import numpy as np
import pytest
from support.gguf_files import write_gguf
from support.random_model import Shape, random_model

from rfjax.errors import ModelFormatError, UnsupportedError
from rfjax.io.gguf import read_gguf
from rfjax.models.architectures import ARCHITECTURES
from rfjax.models.config import AttentionTemperature, Experts, QKNorm
from rfjax.models.configure import configure
from rfjax.ops.mask import Mask
from rfjax.ops.rope import Rope

YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}


@pytest.fixture
def configured(tmp_path):
    """Configures a random model after `changes` to its metadata; None drops a key."""

    def run(shape=None, *, drop_tensors=(), raw=None, **changes):
        shape = shape or Shape()
        metadata, tensors = random_model(shape)
        for key, value in {f"{shape.architecture}.{k}": v for k, v in changes.items()}.items():
            metadata.pop(key, None)
            if value is not None:
                metadata[key] = value
        metadata |= raw or {}
        kept = {name: t for name, t in tensors.items() if name not in drop_tensors}
        return configure(read_gguf(write_gguf(tmp_path / "m.gguf", metadata, kept)))

    return lambda shape=None, changes=None, **rest: run(shape, **(changes or {}), **rest)


def layer_of(config):
    assert len(set(config.layers)) == 1
    return config.layers[0]


def test_a_plain_llama(configured):
    config = configured()
    assert config.architecture == "llama" and config.dtype == "float32"
    assert (config.vocab_size, config.d_model, config.context_length) == (40, 32, 128)
    assert config.norm_eps == pytest.approx(1e-5)
    assert not (config.tied_output or config.biases or config.rope_factors)
    assert config.kv_shapes == ((2, 8, 8), (2, 8, 8))
    layer = layer_of(config)
    assert (layer.n_heads, layer.n_kv_heads, layer.head_dim, layer.ffn_dim) == (4, 2, 8, 48)
    assert layer.attention_scale == pytest.approx(8**-0.5)
    assert layer.mask == Mask("causal") and layer.activation == "silu"
    assert layer.rope == Rope("interleaved", 8, 10000.0)
    assert layer.experts is None and layer.temperature is None
    assert not layer.qk_norm and not layer.biases
    hash(config)  # static under jit


@pytest.mark.parametrize(
    ("architecture", "pairing", "qk_norm"),
    [
        ("llama", "interleaved", None),
        ("mistral3", "interleaved", None),
        ("qwen2", "half", None),
        ("qwen3", "half", QKNorm()),
    ],
)
def test_what_the_architecture_decides(configured, architecture, pairing, qk_norm):
    layer = layer_of(configured(Shape(architecture)))
    assert layer.rope.pairing == pairing and layer.qk_norm == qk_norm


def test_what_the_tensors_decide(configured):
    shape = Shape(tied=True, rope_factors=True, biases=("attn_q", "ffn_down"))
    config = configured(shape)
    assert config.tied_output and config.rope_factors
    assert layer_of(config).biases == {"attn_q", "ffn_down"}
    assert layer_of(configured(Shape("qwen2"))).biases == {"attn_q", "attn_k", "attn_v"}


def test_lengths_follow_from_the_embedding_where_they_are_not_stated(configured):
    missing = {
        "attention.key_length": None,
        "attention.value_length": None,
        "rope.dimension_count": None,
        "attention.head_count_kv": None,
    }
    config = configured(Shape(n_kv_heads=4), missing)
    layer = layer_of(config)
    assert (layer.head_dim, layer.n_kv_heads, layer.rope.dimension) == (8, 4, 8)


def test_values_may_differ_by_layer(configured):
    config = configured(
        None,
        {
            "feed_forward_length": [16, 24],
            "attention.head_count": [4, 2],
            "attention.head_count_kv": [2, 1],
        },
    )
    assert [layer.ffn_dim for layer in config.layers] == [16, 24]
    assert [layer.n_heads for layer in config.layers] == [4, 2]
    assert config.kv_shapes == ((2, 8, 8), (1, 8, 8))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rope.freq_base": None}, Rope("interleaved", 8, 10000.0)),
        ({"rope.freq_base": 5e5}, Rope("interleaved", 8, 5e5)),
        ({"rope.freq_base": 500000}, Rope("interleaved", 8, 5e5)),
        ({"rope.dimension_count": 4}, Rope("interleaved", 4, 1e4)),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, Rope("interleaved", 8, 1e4)),
        ({"rope.scaling.factor": 4.0}, Rope("interleaved", 8, 1e4, "linear", 4.0)),
        ({"rope.scale_linear": 2.0}, Rope("interleaved", 8, 1e4, "linear", 2.0)),
        (
            {"rope.scale_linear": 2.0, "rope.scaling.factor": 8.0},
            Rope("interleaved", 8, 1e4, "linear", 8.0),
        ),
        ({"rope.scaling.factor": 0.0}, Rope("interleaved", 8, 1e4)),
        ({"rope.scaling.attn_factor": 0.5}, Rope("interleaved", 8, 1e4, attention_factor=0.5)),
        (YARN, Rope("interleaved", 8, 1e4, "yarn", 4.0, original_context=128)),
        (
            YARN
            | {
                "rope.scaling.original_context_length": 32,
                "rope.scaling.attn_factor": 2.0,
            },
            Rope("interleaved", 8, 1e4, "yarn", 4.0, 32, 2.0),
        ),
    ],
)
def test_rope(configured, changes, expected):
    assert layer_of(configured(None, changes)).rope == expected


def test_all_of_yarns_settings(configured):
    changes = YARN | {
        "rope.scaling.original_context_length": 32,
        "rope.scaling.attn_factor": 2.0,
        "rope.scaling.yarn_beta_fast": 16.0,
        "rope.scaling.yarn_beta_slow": 2.0,
        "rope.scaling.yarn_log_multiplier": 1.0,
    }
    expected = Rope("interleaved", 8, 1e4, "yarn", 4.0, 32, 2.0, 16.0, 2.0, 1.0)
    assert layer_of(configured(Shape("mistral3"), changes)).rope == expected


def test_keys_of_other_architectures_are_not_read(configured):
    """As in llama.cpp: a llama file's YaRN betas are its converter's habit, not its model's."""
    others = {
        "attention.scale": 0.25,
        "attention.temperature_scale": 0.5,
        "rope.scaling.yarn_beta_fast": 4.0,
        "rope.scaling.yarn_beta_slow": 2.0,
        "rope.scaling.yarn_log_multiplier": 0.5,
    }
    assert configured(None, YARN | others) == configured(None, YARN)
    assert configured(Shape("mistral3"), YARN | others) != configured(Shape("mistral3"), YARN)


@pytest.mark.parametrize(
    ("architecture", "changes", "expected"),
    [
        ("llama", {}, Experts(4, 2, 24, normalize=True)),
        ("llama", {"expert_feed_forward_length": 24}, Experts(4, 2, 24, normalize=True)),
        ("llama", {"expert_feed_forward_length": [24, 24]}, Experts(4, 2, 24, normalize=True)),
        ("qwen3moe", {}, Experts(4, 2, 24, normalize=True)),
        ("qwen3moe", {"expert_feed_forward_length": None}, Experts(4, 2, 24, normalize=True)),
    ],
)
def test_experts(configured, architecture, changes, expected):
    layer = layer_of(configured(Shape(architecture, n_experts=4, n_used=2), changes))
    assert layer.experts == expected and layer.ffn_dim == 0


def test_no_experts_of_a_llama_that_says_so(configured):
    assert layer_of(configured(None, {"expert_count": 0})).experts is None


def test_query_temperature_of_mistral3_only(configured):
    scaled = {"attention.temperature_scale": 0.25, "rope.scaling.original_context_length": 16}
    mistral = Shape("mistral3")
    assert layer_of(configured(mistral, scaled)).temperature == AttentionTemperature(0.25, 16)
    by_context = {"attention.temperature_scale": 0.25}
    assert layer_of(configured(mistral, by_context)).temperature.length == 128
    assert layer_of(configured(mistral, {"attention.temperature_scale": 0.0})).temperature is None
    assert layer_of(configured(Shape("llama"), scaled)).temperature is None


MISSING = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
]


@pytest.mark.parametrize("key", MISSING)
def test_a_missing_key_is_named(configured, key):
    with pytest.raises(ModelFormatError, match=f"'llama.{key}' is missing"):
        configured(None, {key: None})


@pytest.mark.parametrize("key", ["expert_used_count"])
def test_a_missing_key_of_experts_is_named(configured, key):
    with pytest.raises(ModelFormatError, match=f"'llama.{key}' is missing"):
        configured(Shape(n_experts=4, n_used=2), {key: None})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", "two"),
        ("block_count", 2.0),
        ("block_count", True),
        ("embedding_length", [32]),
        ("attention.head_count", [4, 4, 4]),
        ("attention.head_count", "4"),
        ("attention.layer_norm_rms_epsilon", "small"),
        ("attention.key_length", 8.0),
        ("rope.freq_base", "10000"),
        ("rope.scaling.type", 1),
        ("expert_count", 1.5),
    ],
)
def test_a_key_of_another_type_is_refused(configured, key, value):
    with pytest.raises(ModelFormatError, match=f"'llama.{key}' is "):
        configured(None, {key: value})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block_count": 0}, "got 0, expected 1 to 4096"),
        ({"block_count": -1}, "got -1, expected 1 to 4096"),
        ({"block_count": 5000}, "got 5000, expected 1 to 4096"),
        ({"embedding_length": 0}, "got 0, expected 1 to"),
        ({"embedding_length": 2**40}, "expected 1 to"),
        ({"context_length": 0}, "got 0, expected 1 to"),
        ({"feed_forward_length": 0}, "got 0, expected 1 to"),
        ({"feed_forward_length": np.array([48, -1], np.int32)}, "got -1, expected 1 to"),
        ({"attention.head_count": 0}, "got 0, expected 1 to"),
        ({"attention.head_count_kv": 0}, "got 0, expected 1 to"),
        ({"attention.head_count_kv": 3}, "got 3 in layer 0, expected a divisor of the 4"),
        ({"attention.head_count_kv": [2, 8]}, "got 8 in layer 1, expected a divisor of the 4"),
        (
            {"attention.head_count": 5, "attention.head_count_kv": 5, "attention.key_length": None},
            "5 heads over an embedding of 32, and no attention.key_length",
        ),
        ({"attention.key_length": 0}, "got 0, expected 1 to"),
        ({"attention.layer_norm_rms_epsilon": -1e-5}, "expected a finite number of at least 0"),
        ({"attention.layer_norm_rms_epsilon": math.nan}, "got nan, expected a finite number"),
        ({"attention.layer_norm_rms_epsilon": math.inf}, "got inf, expected a finite number"),
        ({"rope.dimension_count": 7}, "got 7, expected an even number up to 8"),
        ({"rope.dimension_count": 10}, "got 10, expected an even number up to 8"),
        ({"rope.dimension_count": 0}, "got 0, expected 1 to"),
        ({"rope.freq_base": 0.0}, "got 0.0, expected a positive number"),
        ({"rope.freq_base": -1.0}, "got -1.0, expected a positive number"),
        ({"rope.freq_base": math.nan}, "got nan, expected a finite number"),
        ({"rope.scaling.factor": -2.0}, "got -2.0, expected a positive number"),
        ({"rope.scaling.factor": math.inf}, "got inf, expected a finite number"),
        (YARN | {"rope.scaling.original_context_length": 0}, "got 0, expected 1 to"),
    ],
)
def test_a_value_out_of_range_is_refused(configured, changes, words):
    with pytest.raises(ModelFormatError) as caught:
        configured(None, changes)
    assert words in str(caught.value)
    assert "metadata key 'llama." in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"expert_count": -4}, "got -4, expected 0 to"),
        ({"expert_used_count": 0}, "got 0, expected 1 to"),
        ({"expert_used_count": 5}, "got 5, expected at most the 4 experts"),
        ({"expert_feed_forward_length": -24}, "got -24, expected 1 to"),
        ({"expert_count": 2**31 - 1}, "expected 1 to 4096"),
    ],
)
def test_experts_out_of_range_are_refused(configured, changes, words):
    with pytest.raises(ModelFormatError) as caught:
        configured(Shape(n_experts=4, n_used=2), changes)
    assert words in str(caught.value)


def test_an_architecture_of_experts_needs_them(configured):
    with pytest.raises(ModelFormatError, match=r"'qwen3moe\.expert_count': got 0"):
        configured(Shape("qwen3moe"))


@pytest.mark.parametrize("base", [1.0, 0.5])
def test_yarn_needs_a_base_above_one(configured, base):
    """Its ramp divides by the base's logarithm."""
    with pytest.raises(ModelFormatError, match=r"'llama.rope.freq_base': got .*above 1"):
        configured(None, YARN | {"rope.freq_base": base})


@pytest.mark.parametrize("beta", ["yarn_beta_fast", "yarn_beta_slow"])
def test_yarn_needs_positive_betas(configured, beta):
    with pytest.raises(ModelFormatError, match=rf"'mistral3.rope.scaling.{beta}': got 0.0"):
        configured(Shape("mistral3"), YARN | {f"rope.scaling.{beta}": 0.0})


@pytest.mark.parametrize("kind", ["dynamic", ""])
def test_an_unknown_rope_scaling_is_named(configured, kind):
    with pytest.raises(UnsupportedError, match=f"RoPE scaling '{kind}' .* none, linear, yarn"):
        configured(None, {"rope.scaling.type": kind})


def test_values_of_another_length_than_keys_are_unsupported(configured):
    with pytest.raises(UnsupportedError, match="keys of 8 and values of 16 elements a head"):
        configured(None, {"attention.value_length": 16})


@pytest.mark.parametrize(
    ("name", "near"), [("qwen3mo", "qwen3moe"), ("lama", "llama"), ("mistral", "mistral3")]
)
def test_an_unknown_architecture_gets_the_nearest_name(tmp_path, name, near):
    file = read_gguf(write_gguf(tmp_path / "m.gguf", {"general.architecture": name}))
    with pytest.raises(UnsupportedError) as caught:
        configure(file)
    message = str(caught.value)
    assert f"architecture {name!r} is not supported (the nearest name is {near!r})" in message
    assert f"supported: {', '.join(ARCHITECTURES)}" in message


def test_an_unknown_architecture_far_from_all(tmp_path):
    file = read_gguf(write_gguf(tmp_path / "m.gguf", {"general.architecture": "xyzzy"}))
    with pytest.raises(UnsupportedError, match="'xyzzy' is not supported; supported: "):
        configure(file)


def test_the_vocabulary_size_comes_from_whatever_states_it(configured):
    tokens = {"tokenizer.ggml.tokens": [f"t{i}" for i in range(40)]}
    assert configured().vocab_size == 40
    assert configured(None, {"vocab_size": None}).vocab_size == 40
    # The tokenizer's table wins over the key, which converters do not keep in step.
    assert configured(None, {"vocab_size": 32000}, raw=tokens).vocab_size == 40


@pytest.mark.parametrize(
    ("changes", "raw", "words"),
    [
        ({"vocab_size": 41}, {}, "llama.vocab_size is 41, token_embd.weight has 40"),
        (
            {},
            {"tokenizer.ggml.tokens": ["a", "b", "c"]},
            "tokenizer.ggml.tokens has 3, token_embd.weight has 40",
        ),
    ],
)
def test_vocabulary_sizes_that_contradict_each_other_are_refused(configured, changes, raw, words):
    with pytest.raises(ModelFormatError) as caught:
        configured(None, changes, raw=raw)
    assert f"the vocabulary size is not clear: {words}" in str(caught.value)


def test_a_vocabulary_that_nothing_states_is_refused(configured):
    with pytest.raises(ModelFormatError, match="not clear: no source"):
        configured(None, {"vocab_size": None}, drop_tensors=("token_embd.weight",))


def test_an_empty_vocabulary_is_refused(configured):
    with pytest.raises(ModelFormatError, match=r"'llama\.vocab_size': got 0, expected 1 to"):
        configured(None, {"vocab_size": 0}, drop_tensors=("token_embd.weight",))


def test_an_embedding_without_two_axes_is_refused(tmp_path):
    metadata, tensors = random_model(Shape())
    tensors = {**tensors, "token_embd.weight": np.zeros((), np.float32)}
    with pytest.raises(ModelFormatError, match=r"token_embd.weight has shape \(.*\), expected"):
        configure(read_gguf(write_gguf(tmp_path / "m.gguf", metadata, tensors)))
