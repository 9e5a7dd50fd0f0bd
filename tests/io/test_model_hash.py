"""Digests of models: what changes them, and what does not."""

import hashlib
import itertools

import numpy as np
import pytest
from support.gguf_files import RawTensor, Typed, write_gguf, write_split
from support.tiny_model import tiny_llama

from rfjax.errors import UnsupportedError
from rfjax.io import model_hash
from rfjax.io.gguf import read_gguf
from rfjax.io.gguf_values import ValueType
from rfjax.io.model_hash import template_hash, tokenizer_hash, weights_hash
from rfjax.quant.types import GGMLType

METADATA = {
    "general.architecture": "llama",
    "general.name": "some model",
    "llama.block_count": 2,
    "llama.rope.freq_base": 1e4,
    "llama.rope.dimension_sections": np.array([1, 2], np.int32),
}
TENSORS = {
    "token_embd.weight": np.arange(64, dtype=np.float32).reshape(2, 32),
    "blk.0.attn_q.weight": RawTensor(GGMLType.Q8_0, (2, 32), bytes(range(68))),
    "output_norm.weight": np.ones(8, np.float32),
}


@pytest.fixture
def hash_of(tmp_path):
    def of(metadata=METADATA, tensors=TENSORS):
        return weights_hash(read_gguf(write_gguf(tmp_path / "model.gguf", metadata, tensors)))

    return of


def reversed_order(values: dict) -> dict:
    return dict(reversed(list(values.items())))


@pytest.mark.parametrize(
    "metadata",
    [
        reversed_order(METADATA),
        METADATA | {"general.name": "another", "general.file_type": 7},
        METADATA | {"general.alignment": 256},
        METADATA | {"llama.block_count": Typed(ValueType.UINT64, 2)},
        METADATA | {"llama.rope.dimension_sections": np.array([1, 2], np.uint64)},
        METADATA | {"tokenizer.ggml.model": "llama"},
    ],
)
def test_what_changes_nothing(hash_of, metadata):
    assert hash_of(metadata, reversed_order(TENSORS)) == hash_of()


@pytest.mark.parametrize(
    "metadata",
    [
        METADATA | {"general.architecture": "qwen2"},
        METADATA | {"llama.block_count": 3},
        METADATA | {"llama.block_count": 2.0},
        METADATA | {"llama.block_count": "2"},
        METADATA | {"llama.rope.freq_base": float(np.nextafter(np.float32(1e4), np.float32(2e4)))},
        METADATA | {"llama.rope.dimension_sections": np.array([1, 3], np.int32)},
        METADATA | {"llama.use_parallel_residual": True},
    ],
)
def test_metadata_that_counts(hash_of, metadata):
    assert hash_of(metadata) != hash_of()


def test_every_bit_of_every_tensor_counts(hash_of):
    changed = [
        TENSORS | {"token_embd.weight": TENSORS["token_embd.weight"].reshape(4, 16)},
        TENSORS | {"token_embd.weight": TENSORS["token_embd.weight"].view(np.int32)},
        TENSORS | {"output_norm.weight": -TENSORS["output_norm.weight"]},
        {("output.weight" if n == "output_norm.weight" else n): t for n, t in TENSORS.items()},
        {name: t for name, t in TENSORS.items() if name != "output_norm.weight"},
    ]
    for i in range(68):
        data = bytes(b ^ (i == j) for j, b in enumerate(range(68)))
        changed.append(TENSORS | {"blk.0.attn_q.weight": RawTensor(GGMLType.Q8_0, (2, 32), data)})
    found = [hash_of(tensors=tensors) for tensors in changed]
    assert len({*found, hash_of()}) == len(changed) + 1


def test_a_split_model_is_the_whole_one(tmp_path, hash_of):
    first, *others = TENSORS.items()
    paths = write_split(tmp_path, "model", METADATA, [dict([first]), dict(others)])
    assert weights_hash(read_gguf(paths[1])) == hash_of()


def test_large_tensors_are_hashed_in_pieces(hash_of, monkeypatch):
    whole = hash_of()
    monkeypatch.setattr(model_hash, "_PIECE", 24)
    assert hash_of() == whole


def test_digests_stay_what_they_are(hash_of):
    """They stand in results that are compared years later."""
    assert hash_of() == "sha256:3f3dc78fe3dae037d6ed843b937cf2ebda7b2ec435010f1fc7c71d16200fa272"
    assert hash_of({}, {}) == f"sha256:{hashlib.sha256(b'S0:').hexdigest()}"


def test_the_tokenizer_is_its_vocabulary(tmp_path):
    numbers = itertools.count()  # a file that is mapped is not written again

    def gguf_with(**changes):
        return read_gguf(tiny_llama(tmp_path / f"{next(numbers)}.gguf", n_layers=1, **changes))

    plain = gguf_with()
    assert tokenizer_hash(plain) == tokenizer_hash(gguf_with(seed=1, chat_template=None))
    assert weights_hash(plain) != weights_hash(gguf_with(seed=1))
    assert template_hash(plain) != template_hash(gguf_with(chat_template="{{ messages }}"))
    assert template_hash(gguf_with(chat_template=None)) is None
    for change in (
        {"tokenizer.ggml.add_bos_token": False},
        {"tokenizer.ggml.tokens": (*plain.metadata["tokenizer.ggml.tokens"][:-1], "~~")},
        {"general.name": "Phi-3"},  # whose special tokens swallow the blanks behind them
    ):
        path = write_gguf(tmp_path / f"{next(numbers)}.gguf", dict(plain.metadata) | change)
        assert tokenizer_hash(read_gguf(path)) != tokenizer_hash(plain)


def test_without_a_vocabulary_there_is_no_digest_of_it(tmp_path):
    with pytest.raises(UnsupportedError):
        tokenizer_hash(read_gguf(write_gguf(tmp_path / "model.gguf", METADATA, TENSORS)))
