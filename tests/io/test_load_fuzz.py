"""Well-formed files whose content makes no sense: loaded, or refused with an error of ours.

Whatever a header claims, `load` and `inspect_file` raise nothing but `RfjaxError`.
"""

import dataclasses
import pathlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.gguf_files import RawTensor, Typed, write_gguf
from support.random_model import Shape, random_model
from support.tiny_model import tiny_llama

from rfjax.errors import ModelFormatError, RfjaxError
from rfjax.inspection import inspect_file
from rfjax.io import load as loading
from rfjax.io.gguf import read_gguf
from rfjax.io.gguf_values import ValueType
from rfjax.io.load import load
from rfjax.quant.types import BLOCK_SIZES, GGMLType

PROPERTY = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

SMALL = Shape(n_layers=1, width=32, n_heads=2, n_kv_heads=1, ffn_width=32, expert_width=32)
MODELS = {
    "llama": SMALL,
    "llama-biased": dataclasses.replace(SMALL, biases=("attn_q",), rope_factors=True, tied=True),
    "mixtral": dataclasses.replace(SMALL, n_experts=4, n_used=2),
    "qwen2": dataclasses.replace(SMALL, architecture="qwen2"),
    "qwen3": dataclasses.replace(SMALL, architecture="qwen3"),
    "qwen3moe": dataclasses.replace(SMALL, architecture="qwen3moe", n_experts=4, n_used=2),
    "mistral3": dataclasses.replace(SMALL, architecture="mistral3"),
}
# Keys that a valid model need not have, without the architecture's prefix.
OPTIONAL_KEYS = (
    *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"),
    *("rope.scaling.attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
    *("rope.scaling.yarn_log_multiplier", "rope.scale_linear", "attention.temperature_scale"),
    *("attention.scale", "attention.sliding_window", "expert_count", "expert_used_count"),
    *("expert_weights_scale", "expert_shared_count", "leading_dense_block_count"),
)
TOKENIZER_KEYS = ("model", "pre", "tokens", "scores", "token_type", "merges", "bos_token_id")
LARGE = (2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, -(2**31))

values = st.one_of(
    st.integers(-2, 9),
    st.sampled_from(LARGE),
    st.sampled_from([0.0, -1.0, 0.5, 1e-30, 3e38, float("nan"), float("inf"), float("-inf")]),
    st.sampled_from(["", "a", "yarn", "none", "linear", "llama", "gpt2", "bert", "t5", "{{ a"]),
    st.booleans(),
    st.lists(st.integers(0, 5), min_size=1, max_size=3),
    st.lists(st.sampled_from(["", "<s>", "a b", "é"]), min_size=1, max_size=3),
    st.lists(st.sampled_from([0.5, float("nan")]), min_size=1, max_size=2),
    st.sampled_from([Typed(t, []) for t in (ValueType.INT32, ValueType.STRING)]),
    st.sampled_from([Typed(ValueType.STRING, b"\xff\xfe"), Typed(ValueType.INT8, [-1, 127])]),
)


def tensor(draw: st.DrawFn, old: np.ndarray | RawTensor) -> np.ndarray | RawTensor:
    """A tensor like the old one but for its shape, its type or both."""
    shape = draw(
        st.one_of(
            st.just(old.shape),
            st.just(old.shape[::-1]),
            st.just((*old.shape, 1)),
            st.just(old.shape[:1]),
            st.lists(st.sampled_from([0, 1, 2, 32, 256]), max_size=3).map(tuple),
        )
    )
    kinds = [kind for kind, (n, _) in BLOCK_SIZES.items() if not (shape or (1,))[-1] % n]
    kind = draw(st.sampled_from(kinds))
    elements, nbytes = BLOCK_SIZES[kind]
    size = int(np.prod(shape, dtype=np.int64)) // elements * nbytes
    return RawTensor(kind, shape, draw(st.sampled_from([b"\0", b"\x11", b"\xff"])) * size)


@st.composite
def changed(draw: st.DrawFn, keys: dict, tensors: dict, optional: list[str]) -> tuple[dict, dict]:
    """Metadata and tensors with one to three changes."""
    keys, tensors = dict(keys), dict(tensors)
    for _ in range(draw(st.integers(1, 3))):
        what = draw(st.sampled_from(["set", "set", "set", "drop", "tensor", "name", "lose"]))
        key = draw(st.sampled_from([*keys, *optional]))
        name = draw(st.sampled_from(list(tensors)))
        match what:
            case "set":
                keys[key] = draw(values)
            case "drop":
                keys.pop(key, None)
            case "tensor":
                tensors[name] = tensor(draw, tensors[name])
            case "name":
                other = draw(st.sampled_from(["", "a", "blk.0.x", "blk.9.attn_q.weight", "é."]))
                tensors[other] = tensors.pop(name)
            case "lose" if len(tensors) > 1:
                del tensors[name]
    if not isinstance(keys.get("general.alignment", 32), int):
        keys["general.alignment"] = 32  # what the file is laid out by; test_gguf_fuzz spoils it
    return keys, tensors


def take(path: pathlib.Path) -> None:
    """Inspects and loads a file; anything but success and `RfjaxError` fails the test."""
    try:
        inspection = inspect_file(path)
    except RfjaxError as error:
        assert str(error)
        with pytest.raises(type(error)):
            load(path)
        return
    try:
        load(path)
    except RfjaxError as error:
        assert not inspection.supported, error
    else:
        assert inspection.supported


@pytest.fixture
def nothing_decoded(monkeypatch):
    """Loading without the last step, the same for every file: bytes to arrays."""
    monkeypatch.setattr(loading, "place", lambda *_: None)


@pytest.mark.usefixtures("nothing_decoded")
@pytest.mark.parametrize("name", MODELS)
@PROPERTY
@given(draw=st.data())
def test_models_that_make_no_sense(tmp_path, name, draw):
    shape = MODELS[name]
    metadata, tensors = random_model(shape)
    optional = [f"{shape.architecture}.{key}" for key in OPTIONAL_KEYS]
    path = tmp_path / "m.gguf"
    take(write_gguf(path, *draw.draw(changed(metadata, tensors, optional))))


@pytest.mark.usefixtures("nothing_decoded")
@PROPERTY
@given(draw=st.data())
def test_vocabularies_that_make_no_sense(tmp_path, draw):
    whole = tmp_path / "whole.gguf"
    if not whole.exists():
        tiny_llama(whole, n_layers=1, width=32, ffn_width=32, n_heads=2, n_kv_heads=1)
    gguf = read_gguf(whole)
    metadata = {key: listed(value) for key, value in gguf.metadata.items()}
    tensors = {
        name: RawTensor(info.type, info.shape, gguf.raw(name).tobytes())
        for name, info in gguf.tensors.items()
    }
    only = {key: metadata.pop(key) for key in list(metadata) if key.startswith("tokenizer.")}
    optional = [f"tokenizer.ggml.{key}" for key in TOKENIZER_KEYS]
    spoilt, tensors = draw.draw(changed(only, tensors, optional))
    take(write_gguf(tmp_path / "m.gguf", metadata | spoilt, tensors))


def listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", MODELS)
def test_unchanged_models_are_loaded(tmp_path, name):
    path = write_gguf(tmp_path / "m.gguf", *random_model(MODELS[name]))
    assert inspect_file(path).supported
    load(path)


def test_an_embedding_that_is_a_scalar(tmp_path):
    metadata, tensors = random_model(SMALL)
    scalar = RawTensor(GGMLType.F32, (), bytes(4))
    path = write_gguf(tmp_path / "m.gguf", metadata, {**tensors, "token_embd.weight": scalar})
    take(path)
    with pytest.raises(ModelFormatError, match=r"token_embd\.weight|vocabulary"):
        load(path)


@pytest.mark.usefixtures("nothing_decoded")
@pytest.mark.parametrize("count", [2**20, 2**31 - 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("key", ["expert_count", "block_count", "vocab_size", "context_length"])
@pytest.mark.parametrize("name", ["mixtral", "qwen3moe"])
def test_sizes_that_no_model_has(tmp_path, name, key, count):
    metadata, tensors = random_model(MODELS[name])
    metadata[f"{MODELS[name].architecture}.{key}"] = count
    take(write_gguf(tmp_path / "m.gguf", metadata, tensors))
