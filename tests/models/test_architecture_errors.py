"""Files of every architecture that are wrong in one place: one clear error, nothing allocated."""

import dataclasses

import numpy as np
import pytest
from support.arch_goldens import GOLDENS
from support.gguf_files import write_gguf
from support.random_gguf import random_gguf

from rfjax.errors import ModelFormatError
from rfjax.io.gguf import read_gguf
from rfjax.io.load import plan_load
from rfjax.models.architectures import ARCHITECTURES
from rfjax.models.configure import configure

FIRST = {golden.family.name: golden for golden in reversed(GOLDENS.values())}
"""One description of every architecture."""
NAMES = [name for name in FIRST if name in ARCHITECTURES]

OPTIONAL = ("bias", "output.weight", "rope_f", "attn_norm_2")
"""Words in the names of tensors that some files have and others lack."""


SERVES_AS = {
    "post_attention_norm": "ffn_norm",
    "attn_qkv": "attn_q.weight is missing",
    "ffn_up": "ffn_gate.weight is missing",
    "ffn_gate_up_exps": "ffn_gate_exps.weight is missing",
    "attn_q_norm": "attn_k_norm.weight is not a tensor",
    "attn_k_norm": "attn_q_norm.weight is not a tensor",
}
"""What is said of a missing tensor that serves as another, or has one beside it."""

UNREAD = {
    "rope.dimension_count": {"bloom", "gpt2", "mpt"},
    "rope.freq_base": {"bloom", "gpt2", "mpt"},
    "attention.key_length": {"deepseek2"},
    "feed_forward_length": {"gpt-oss", "qwen2moe", "qwen3moe"},
}
"""Keys that do not count in some architectures, although their files have them."""


MEANT = {("glm4moe", "expert_feed_forward_length", 0)}
"""Zeros that say to take another key's value."""


@pytest.fixture
def planned(tmp_path):
    """Plans to load a small model after `spoil` changed its metadata and tensors."""

    def run(name, spoil):
        golden = FIRST[name]
        sizes = dataclasses.replace(golden.sizes, n_layers=min(golden.sizes.n_layers, 3))
        keys, tensors = random_gguf(golden.family, sizes, seed=1, metadata=golden.metadata)
        spoil(keys, tensors)
        gguf = read_gguf(write_gguf(tmp_path / "m.gguf", keys, tensors))
        return plan_load(gguf, configure(gguf))

    return run


def last_block(tensors):
    """Names of the tensors of the last block that files never lack."""
    last = max(int(name.split(".")[1]) for name in tensors if name.startswith("blk."))
    names = [name for name in tensors if name.startswith(f"blk.{last}.")]
    return [name for name in names if not any(word in name for word in OPTIONAL)]


def in_last_block(name):
    _, tensors = random_gguf(FIRST[name].family, FIRST[name].sizes, seed=1)
    return len(last_block(tensors))


@pytest.mark.parametrize("name", NAMES)
def test_a_good_file_is_planned(planned, name):
    planned(name, lambda keys, tensors: None)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_tensor(planned, name):
    for i in range(in_last_block(name)):
        missing = []

        def drop(_, tensors, i=i, missing=missing):
            missing.append(last_block(tensors)[i])
            del tensors[missing[0]]

        with pytest.raises(ModelFormatError) as caught:
            planned(name, drop)
        message = str(caught.value)
        owner = missing[0].removesuffix("weight")
        assert owner in message or SERVES_AS[owner.split(".")[-2]] in message


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_of_another_shape(planned, name):
    for i in range(in_last_block(name)):
        wrong = []

        def widen(_, tensors, i=i, wrong=wrong):
            wrong.append(last_block(tensors)[i])
            old = tensors[wrong[0]]
            tensors[wrong[0]] = np.zeros((*old.shape[:-1], old.shape[-1] + 2), np.float32)

        with pytest.raises(ModelFormatError) as caught:
            planned(name, widen)
        assert wrong[0] in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_too_many(planned, name):
    def add(_, tensors):
        tensors["blk.0.attn_strange.weight"] = np.zeros(4, np.float32)

    with pytest.raises(ModelFormatError, match=r"blk\.0\.attn_strange\.weight"):
        planned(name, add)


SIZES = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "rope.dimension_count",
    "rope.freq_base",
    "expert_count",
    "expert_used_count",
    "expert_feed_forward_length",
    "attention.kv_lora_rank",
    "attention.key_length_mla",
    "attention.value_length_mla",
    "expert_group_used_count",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_size_of_zero_or_less(planned, name):
    keys, _ = random_gguf(FIRST[name].family, FIRST[name].sizes, seed=1)
    for size in SIZES:
        if f"{name}.{size}" not in keys or name in UNREAD.get(size, ()):
            continue
        for factor in (0, -1):

            def shrink(keys, _, key=f"{name}.{size}", factor=factor):
                keys[key] *= factor

            if (name, size, factor) in MEANT:
                planned(name, shrink)
                continue
            with pytest.raises(ModelFormatError) as caught:
                planned(name, shrink)
            # No experts are a dense network's tensors; no width of theirs is another key's.
            words = (size.split(".")[-1], "_exps.weight")
            assert any(word in str(caught.value) for word in words), (size, factor)


@pytest.mark.parametrize("name", NAMES)
def test_another_number_of_heads(planned, name):
    def double(keys, _):
        keys[f"{name}.attention.head_count"] *= 2

    with pytest.raises(ModelFormatError):
        planned(name, double)


@pytest.mark.parametrize("name", [name for name in NAMES if "exps" in FIRST[name].family.block])
def test_another_number_of_experts(planned, name):
    def more(keys, _):
        keys[f"{name}.expert_count"] += 1

    def too_many_used(keys, _):
        keys[f"{name}.expert_used_count"] = keys[f"{name}.expert_count"] + 1

    with pytest.raises(ModelFormatError, match="ffn_"):
        planned(name, more)
    with pytest.raises(ModelFormatError, match="expert_used_count"):
        planned(name, too_many_used)
