"""Loading: every tensor checked in one error, placed once, equal however the file is laid out."""

import gc
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from support.gguf_files import RawTensor, write_gguf, write_split
from support.random_model import Shape, random_model, random_tokens, save
from support.tiny_model import q8_0, tiny_llama

import rfjax.io.load as module
from rfjax.errors import ConfigError, ModelFormatError, UnsupportedError
from rfjax.io.gguf import read_gguf
from rfjax.io.load import check_tensors, load, resolve_dtype
from rfjax.models.configure import configure
from rfjax.models.decoder import forward
from rfjax.models.params import named_leaves, param_spec
from rfjax.ops.dispatch import KernelPolicy
from rfjax.quant.types import GGMLType
from rfjax.sharding import make_mesh

run = jax.jit(forward, static_argnames="config")


@pytest.fixture
def path(tmp_path) -> pathlib.Path:
    return tmp_path / "model.gguf"


def assert_same_weights(found, expected):
    found, expected = named_leaves(found), named_leaves(expected)
    assert found.keys() == expected.keys()
    for name in expected:
        assert_array_equal(found[name], expected[name], err_msg=name)


def test_every_leaf_holds_the_tensor_of_its_name(path):
    metadata, tensors = random_model(Shape(rope_factors=True, biases=("attn_k",)))
    model = load(write_gguf(path, metadata, tensors))
    leaves = named_leaves(model.params)
    assert leaves.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert_array_equal(leaves[name], tensor)
    assert model.tokenizer is None and model.path == str(path)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves.values())


def test_a_tokenizer_is_read_where_there_is_one(tmp_path):
    model = load(tiny_llama(tmp_path / "tiny.gguf"))
    assert model.tokenizer is not None and model.tokenizer.encode("the")


@pytest.mark.parametrize("name", ["no_vocab", "none", "test", None])
def test_a_file_may_have_no_tokenizer(path, name):
    metadata, tensors = random_model(Shape())
    del metadata["tokenizer.ggml.model"]
    if name is not None:
        metadata["tokenizer.ggml.model"] = name
    assert load(write_gguf(path, metadata, tensors)).tokenizer is None


def test_all_that_does_not_fit_is_in_one_error(path):
    metadata, tensors = random_model(Shape())
    del tensors["blk.1.ffn_up.weight"], tensors["output_norm.weight"]
    tensors["blk.0.attn_q.weight"] = tensors["blk.0.attn_q.weight"][:-1]
    tensors["blk.0.ffn_down.weight"] = tensors["blk.0.ffn_down.weight"].T.copy()
    tensors["blk.0.attn_q_norm.weight"] = np.ones(8, np.float32)
    tensors["blk.7.attn_q.weight"] = np.ones((2, 2), np.float32)
    tensors["strange"] = np.ones(3, np.float32)
    before = len(jax.live_arrays())
    with pytest.raises(ModelFormatError) as caught:
        load(write_gguf(path, metadata, tensors))
    assert len(jax.live_arrays()) == before
    head, *lines = str(caught.value).split("\n  ")
    assert head == (f"{path}: 7 tensors do not fit architecture 'llama' with this metadata:")
    assert sorted(lines) == [
        "blk.0.attn_q.weight has shape (31, 32), expected (32, 32)",
        "blk.0.attn_q_norm.weight is not a tensor of this architecture",
        "blk.0.ffn_down.weight has shape (48, 32), expected (32, 48)",
        "blk.1.ffn_up.weight is missing (shape (48, 32))",
        "blk.7.attn_q.weight is not a tensor of this architecture",
        "output_norm.weight is missing (shape (32,))",
        "strange is not a tensor of this architecture",
    ]


def test_a_long_list_is_cut(path):
    metadata, tensors = random_model(Shape())
    tensors |= {f"extra.{i}": np.ones(1, np.float32) for i in range(50)}
    with pytest.raises(ModelFormatError, match=r"50 tensors do not fit[^$]*and 10 more$"):
        load(write_gguf(path, metadata, tensors))


@pytest.mark.parametrize(
    ("architecture", "stem"),
    [
        ("qwen3", "attn_q_norm"),
        ("qwen3", "attn_k_norm"),
        ("llama", "attn_norm"),
        ("llama", "ffn_norm"),
    ],
)
def test_no_norm_may_be_missing(path, architecture, stem):
    metadata, tensors = random_model(Shape(architecture))
    del tensors[f"blk.1.{stem}.weight"]
    with pytest.raises(ModelFormatError, match=rf"blk\.1\.{stem}\.weight is missing"):
        load(write_gguf(path, metadata, tensors))


def test_layers_behind_the_last_are_noticed(path):
    metadata, tensors = random_model(Shape())
    metadata["llama.block_count"] = 1
    with pytest.raises(ModelFormatError, match=r"9 tensors do not fit[^$]*blk\.1\.attn_norm"):
        load(write_gguf(path, metadata, tensors))


@pytest.mark.parametrize("name", ["blk.0.attn_rot_embd.weight", "blk.1.attn_rot_embd.weight"])
def test_computed_tables_of_old_converters_are_ignored(path, name):
    metadata, tensors = random_model(Shape("qwen3"))
    tensors[name] = np.ones(4, np.float32)
    model = load(write_gguf(path, metadata, tensors))
    assert name not in named_leaves(model.params)


def test_rope_freqs_of_another_length_are_refused(path):
    metadata, tensors = random_model(Shape(rope_factors=True))
    tensors["rope_freqs.weight"] = np.ones(7, np.float32)
    with pytest.raises(ModelFormatError, match=r"rope_freqs.weight has shape \(7,\), expected \(4"):
        load(write_gguf(path, metadata, tensors))


def test_a_type_that_cannot_be_decoded_is_named(path):
    metadata, tensors = random_model(Shape(ffn_width=256))
    blocks = RawTensor(GGMLType.Q8_K, (32, 256), bytes(32 * 292))
    with pytest.raises(UnsupportedError) as caught:
        load(write_gguf(path, metadata, {**tensors, "blk.0.ffn_down.weight": blocks}))
    message = str(caught.value)
    assert f"{path}: a type cannot be decoded: blk.0.ffn_down.weight has type Q8_K" in message
    assert "supported: F32, F16, " in message


def test_truncated_data_is_refused_before_anything_is_allocated(path):
    save(path, Shape())
    data = path.read_bytes()
    path.write_bytes(data[:-40])
    before = len(jax.live_arrays())
    with pytest.raises(ModelFormatError, match="is not whole"):
        load(path)
    assert len(jax.live_arrays()) == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
def test_live_bytes_are_the_planned_ones(path, tied, dtype):
    """Each weight is on the device once; a tied output projection has no copy of its own."""
    save(path, Shape(tied=tied, vocab_size=300))
    gc.collect()
    before = sum(array.nbytes for array in jax.live_arrays())
    model = load(path, dtype=dtype)
    gc.collect()
    held = sum(array.nbytes for array in jax.live_arrays()) - before
    assert held == model.plan.weights
    assert (model.params.output is None) is tied
    file_bytes = sum(info.nbytes for info in read_gguf(path).tensors.values())
    if dtype == "float32":
        assert held == file_bytes


def test_a_dtype_is_for_matrices_and_activations_only(path):
    save(path, Shape("qwen3moe", n_experts=4, n_used=2))
    model = load(path, dtype="bfloat16")
    assert model.config.dtype == "bfloat16"
    for name, leaf in named_leaves(model.params).items():
        wide = "norm" in name or "ffn_gate_inp" in name
        assert leaf.dtype == (jnp.float32 if wide else jnp.bfloat16), name


def test_logits_in_bfloat16_are_near_those_in_f32(path):
    save(path, Shape(biases=("attn_q",)))
    tokens = random_tokens(0, 20, 40)
    exact, narrow = load(path), load(path, dtype="bfloat16")
    found = run(narrow.params, tokens, config=narrow.config)
    assert found.dtype == jnp.float32
    expected = np.asarray(run(exact.params, tokens, config=exact.config))
    error = ((np.asarray(found) - expected) ** 2).sum() / (expected**2).sum()
    assert 1e-8 < error < 0.02


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_the_cpu_computes_in_f32(dtype):
    assert resolve_dtype(dtype) == "float32"


@pytest.mark.parametrize(
    ("dtype", "near"),
    [("bf16", "bfloat16"), ("fp16", "float16"), ("f32", "float32"), ("Float32", "float32")],
)
def test_an_unknown_dtype_names_the_nearest(dtype, near):
    with pytest.raises(ConfigError, match=f"did you mean {near}"):
        resolve_dtype(dtype)


@pytest.mark.parametrize("dtype", ["float64", "int8", "", "bf16"])
def test_an_unknown_dtype_is_refused(path, dtype):
    with pytest.raises(ConfigError, match=f"dtype: got '{dtype}', expected one of float32"):
        load(save(path, Shape()), dtype=dtype)


def test_quantized_tensors_are_decoded(path):
    metadata, tensors = random_model(Shape())
    name = "blk.0.attn_k.weight"
    model = load(write_gguf(path, metadata, {**tensors, name: q8_0(tensors[name])}))
    found = np.asarray(model.params.blk[0].attn_k.weight)
    step = np.abs(tensors[name]).max(axis=1, keepdims=True) / 127
    assert (np.abs(found - tensors[name]) <= 0.51 * step).all()
    assert not np.array_equal(found, tensors[name])


def test_experts_in_tensors_of_their_own_are_stacked(tmp_path):
    """As files of Mixtral from before April 2024 have them."""
    metadata, tensors = random_model(Shape(n_experts=4, n_used=2))
    apart = {}
    for name, tensor in tensors.items():
        if "_exps" in name:
            stem = name.removesuffix("_exps.weight")
            apart |= {f"{stem}.{e}.weight": tensor[e] for e in range(4)}
        else:
            apart[name] = tensor
    whole = load(write_gguf(tmp_path / "whole.gguf", metadata, tensors))
    split = load(write_gguf(tmp_path / "apart.gguf", metadata, apart))
    assert_same_weights(split.params, whole.params)
    assert split.config == whole.config

    spec = param_spec(split.config)
    sources = check_tensors(read_gguf(tmp_path / "apart.gguf"), spec)
    names = tuple(info.name for info in sources["blk.0.ffn_up_exps.weight"])
    assert names == tuple(f"blk.0.ffn_up.{e}.weight" for e in range(4))

    del apart["blk.1.ffn_up.2.weight"]
    apart["blk.0.ffn_down.3.weight"] = np.ones((3, 3), np.float32)
    with pytest.raises(ModelFormatError) as caught:
        load(write_gguf(tmp_path / "bad.gguf", metadata, apart))
    message = str(caught.value)
    assert "blk.1.ffn_up_exps.weight is missing" in message
    assert "blk.0.ffn_down.3.weight has shape (3, 3), expected (32, 24)" in message


@pytest.mark.parametrize("first", [0, 2])
def test_a_split_file_loads_as_a_whole_one(tmp_path, first):
    metadata, tensors = random_model(Shape())
    whole = load(write_gguf(tmp_path / "whole.gguf", metadata, tensors))
    names = list(tensors)
    shards = [{name: tensors[name] for name in names[i::3]} for i in range(3)]
    paths = write_split(tmp_path, "split", metadata, shards)
    split = load(paths[first])
    assert_same_weights(split.params, whole.params)
    assert split.config == whole.config


def test_two_models_live_side_by_side(tmp_path):
    """No state is shared: each keeps its own logits, in any order of calls."""
    shapes = Shape(), Shape("qwen3", width=24, vocab_size=33)
    models = [load(save(tmp_path / f"{i}.gguf", shape, seed=i)) for i, shape in enumerate(shapes)]
    tokens = random_tokens(0, 12, 33)
    logits = [np.asarray(run(m.params, tokens, config=m.config)) for m in models]
    assert logits[0].shape == (12, 40) and logits[1].shape == (12, 33)
    for model, expected in reversed(list(zip(models, logits, strict=True))):
        assert_array_equal(run(model.params, tokens, config=model.config), expected)


def test_the_configuration_is_checked_before_the_tensors(path):
    metadata, tensors = random_model(Shape())
    metadata["llama.attention.head_count_kv"] = 3
    tensors.pop("output_norm.weight")
    with pytest.raises(ModelFormatError, match="a divisor of the 4 query heads"):
        load(write_gguf(path, metadata, tensors))
    with pytest.raises(ModelFormatError, match="a divisor"):
        configure(read_gguf(path))


def test_over_a_mesh_only_kernels_that_run_by_shares_are_left(path):
    metadata, tensors = random_model(Shape())
    write_gguf(path, metadata, tensors)
    alone, spread = (load(path, mesh=make_mesh(model=n)).config.kernels for n in (1, 2))
    for kernel in ("plain_matvec:BF16", "prefill_attention", "decode_attention"):
        assert alone.why_disabled(kernel) is None
        assert "over a mesh" in (spread.why_disabled(kernel) or "")
    assert spread.why_disabled("quantized_matvec:Q4_K") is None


def test_the_kernels_that_may_run_become_part_of_the_configuration(path):
    tiny_llama(path)
    assert load(path).config.kernels == KernelPolicy()
    policy = KernelPolicy("xla")
    assert load(path, kernels=policy).config.kernels == policy


def test_kernels_are_tried_before_anything_is_loaded(path, monkeypatch):
    """And the model is planned for what is left of them."""
    tiny_llama(path, quantized=True)
    interpreted = KernelPolicy(interpret=True)
    failed = KernelPolicy(disabled=(("prefill_attention", "wrong"),), interpret=True)
    planned, tried = [], []

    def guarded(policy, cases):
        assert placed == []
        tried.extend(case.kernel for case in cases)
        return failed

    def plan_load(gguf, config, **options):
        planned.append(config.kernels)
        return original(gguf, config, **options)

    def place(storage, raws):
        placed.append(storage.name)
        return put(storage, raws)

    placed, original, put = [], module.plan_load, module.place
    monkeypatch.setattr(module, "guarded", guarded)
    monkeypatch.setattr(module, "plan_load", plan_load)
    monkeypatch.setattr(module, "place", place)
    model = load(path, weights="packed", kernels=interpreted, selfcheck=True)
    assert placed and model.config.kernels == failed
    assert planned == [interpreted, failed]
    assert "quantized_matvec:Q8_0" in tried and "decode_attention" in tried
    # Interpreted kernels are not tried unasked.
    tried.clear()
    assert load(path, kernels=interpreted).config.kernels == interpreted
    assert load(path, kernels=KernelPolicy("pallas"), selfcheck=False).plan
    assert not tried
