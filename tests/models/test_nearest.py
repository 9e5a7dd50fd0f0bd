"""What a file of an unknown architecture is told: the nearest known one, and what does not fit."""

import dataclasses
import time
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.arch_goldens import GOLDENS
from support.gguf_files import write_gguf
from support.random_gguf import random_gguf

from rfjax.errors import RfjaxError, UnsupportedError
from rfjax.io.gguf import read_gguf
from rfjax.models.architectures import ARCHITECTURES
from rfjax.models.configure import configure, configure_as
from rfjax.models.nearest import find_nearest

FIRST = {golden.family.name: golden for golden in reversed(GOLDENS.values())}


def unknown(name, *, called="novel"):
    """Metadata and tensors of a model of a known architecture under another name."""
    golden = FIRST[name]
    keys, tensors = random_gguf(golden.family, golden.sizes, seed=1, metadata=golden.metadata)
    keys = {f"{called}.{k.removeprefix(f'{name}.')}" if k.startswith(f"{name}.") else k: v
            for k, v in keys.items()}  # fmt: skip
    return keys | {"general.architecture": called}, tensors


@pytest.fixture
def nearest(tmp_path):
    def run(keys, tensors):
        gguf = read_gguf(write_gguf(tmp_path / "m.gguf", keys, tensors))
        return find_nearest(gguf, ARCHITECTURES.values(), configure_as)

    return run


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_renamed_architecture_fits_whole(nearest, name):
    found = nearest(*unknown(name))
    assert found.refusal is None and found.n_misfits == 0
    assert nearest(*unknown(name, called=f"{name}x")).name == name


@pytest.mark.parametrize(
    "name", ["deepseek2", "gpt-oss", "gemma3", "bloom", "falcon", "olmo", "phimoe", "qwen2moe"]
)
def test_one_more_tensor_a_layer_does_not_hide_the_nearest(nearest, name):
    keys, tensors = unknown(name)
    layers = sorted({tensor.split(".")[1] for tensor in tensors if tensor.startswith("blk.")})
    tensors |= {f"blk.{i}.ssm_a": np.zeros(3, np.float32) for i in layers}
    found = nearest(keys, tensors)
    assert found.name == name
    assert (found.n_misfits, found.n_tensors) == (len(layers), len(tensors))
    assert "blk.0.ssm_a is not a tensor of this architecture" in str(found)


def test_the_error_lists_what_does_not_fit(tmp_path):
    keys, tensors = unknown("qwen3", called="qwen3next")
    tensors["blk.0.ssm_conv1d.weight"] = np.zeros((4, 2), np.float32)
    tensors["blk.1.ssm_conv1d.weight"] = np.zeros((4, 2), np.float32)
    del tensors["blk.1.ffn_up.weight"]
    path = write_gguf(tmp_path / "m.gguf", keys, tensors)
    with pytest.raises(UnsupportedError) as caught:
        configure(read_gguf(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: architecture 'qwen3next' is not supported")
    assert f"'qwen3' fits its {len(tensors)} tensors best, but 3 do not fit it" in message
    assert "\n  blk.1.ffn_up.weight is missing (shape (" in message
    assert (
        "blk.0.ssm_conv1d.weight is not a tensor of this architecture (and so in 1 more layers)"
        in message
    )


def test_many_kinds_of_misfits_are_cut_short(nearest):
    keys, tensors = unknown("llama")
    tensors |= {f"odd_{i}": np.zeros(1, np.float32) for i in range(20)}
    assert "and 8 more such" in str(nearest(keys, tensors))


def test_metadata_that_no_architecture_reads(nearest):
    keys = {
        "general.architecture": "mamba3",
        "mamba3.block_count": 1,
        "mamba3.embedding_length": 8,
        "mamba3.context_length": 64,
    }
    found = nearest(keys, {"blk.0.ssm_a": np.zeros(3, np.float32)})
    assert found.refusal is not None
    assert "make sense to none of them" in str(found) and "mamba3." in str(found)


@pytest.mark.parametrize(
    ("change", "tensors"),
    [
        ({}, {}),
        ({"novel.block_count": 0}, None),
        ({"novel.block_count": -1}, None),
        ({"novel.block_count": "two"}, None),
        ({"novel.block_count": 4096}, None),
    ],
)
def test_nothing_is_said_where_there_is_nothing_to_go_by(nearest, change, tensors):
    keys, known = unknown("llama")
    assert nearest(keys | change, known if tensors is None else tensors) is None


def test_more_heads_than_elements(nearest):
    """Of 46 layers gemma2's scale is by a head's share of the width."""
    keys, tensors = unknown("gemma2")
    sizes = {"block_count": 46, "attention.head_count": 512, "attention.head_count_kv": 512}
    keys |= {f"novel.{key}": value for key, value in sizes.items()}
    found = nearest(keys, tensors)
    assert found.refusal is None and found.n_misfits > 46


NUMBERS = st.one_of(
    st.integers(-3, 70),
    st.sampled_from([0, 1, 46, 62, 64, 2**31 - 1, 2**40]),
    st.floats(width=32),
    st.booleans(),
    st.sampled_from(["yarn", "longrope", "none", "?"]),
    st.lists(st.integers(-1, 9), max_size=3),
)
KEYS = sorted(
    {
        *(
            f"novel.{key}"
            for spec in ARCHITECTURES.values()
            for key in spec.keys | (spec.mixture.keys if spec.mixture else set())
        ),
        *(
            f"novel.{key}"
            for key in (
                "block_count",
                "embedding_length",
                "attention.head_count",
                "attention.head_count_kv",
                "attention.key_length",
                "attention.sliding_window",
                "attention.sliding_window_pattern",
                "expert_count",
                "expert_used_count",
                "feed_forward_length",
                "rope.dimension_count",
                "rope.freq_base",
                "rope.scaling.type",
                "rope.scaling.factor",
                "nextn_predict_layers",
            )
        ),
    }
)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        name: read_gguf(write_gguf(folder / f"{name}.gguf", *unknown(name)))
        for name in ("llama", "deepseek2", "gemma2", "hunyuan-dense", "minicpm")
    }.get


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    name=st.sampled_from(["llama", "deepseek2", "gemma2", "hunyuan-dense", "minicpm"]),
    changes=st.dictionaries(st.sampled_from(KEYS), NUMBERS, max_size=4),
    dropped=st.sets(st.integers(0, 60), max_size=4),
    misshapen=st.integers(0, 60),
    shape=st.lists(st.integers(0, 5), max_size=4),
)
def test_whatever_the_header_says_it_is_an_error_of_ours(
    bases, name, changes, dropped, misshapen, shape
):
    base = bases(name)
    tensors = {n: t for i, (n, t) in enumerate(base.tensors.items()) if i not in dropped}
    for i, (tensor, info) in enumerate(tuple(tensors.items())):
        if i == misshapen:
            tensors[tensor] = dataclasses.replace(info, shape=tuple(shape))
    gguf = dataclasses.replace(
        base,
        metadata=MappingProxyType(dict(base.metadata) | _as_read(changes)),
        value_types=dict(base.value_types) | dict.fromkeys(changes, "changed"),
        tensors=MappingProxyType(tensors),
    )
    with pytest.raises(UnsupportedError, match="'novel' is not supported"):
        configure(gguf)
    for spec in ARCHITECTURES.values():
        try:
            configure_as(gguf, spec)
        except RfjaxError as error:
            assert str(error)


def _as_read(changes):
    """Values as the reader gives them: arrays are numpy's."""
    return {k: np.asarray(v, np.int32) if isinstance(v, list) else v for k, v in changes.items()}


def test_a_file_of_80_layers_takes_well_under_a_second(bases):
    base = bases("deepseek2")
    tensors = {n: t for n, t in base.tensors.items() if not n.startswith("blk.")}
    for name, info in base.tensors.items():
        if name.startswith("blk.1."):
            for i in range(80):
                own = name.replace("blk.1.", f"blk.{i}.")
                tensors[own] = dataclasses.replace(info, name=own)
    metadata = dict(base.metadata) | {"novel.block_count": 80}
    gguf = dataclasses.replace(
        base, tensors=MappingProxyType(tensors), metadata=MappingProxyType(metadata)
    )
    start = time.process_time()
    found = find_nearest(gguf, ARCHITECTURES.values(), configure_as)
    assert time.process_time() - start < 1.0
    assert found is not None and found.name == "deepseek2"
