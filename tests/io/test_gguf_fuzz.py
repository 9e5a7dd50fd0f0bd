"""Damaged files: whatever the damage, a file is read correctly or refused with ModelFormatError."""

import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.gguf_files import RawTensor, Typed, gguf_bytes, write_split

from rfjax.errors import ModelFormatError
from rfjax.io.gguf import read_gguf
from rfjax.io.gguf_values import ValueType
from rfjax.quant.types import GGMLType

METADATA = {
    "general.architecture": "llama",
    "general.alignment": 32,
    "llama.block_count": 2,
    "llama.rope.freq_base": 1e4,
    "tokenizer.ggml.tokens": ["<s>", "a", "é", ""],
    "tokenizer.ggml.scores": [0.0, -1.0, -2.0],
    "tokenizer.ggml.add_bos_token": True,
    "wide": Typed(ValueType.UINT64, 2**40),
}
TENSORS = {
    "token_embd.weight": np.ones((4, 32), np.float32),
    "blk.0.attn_q.weight": RawTensor(GGMLType.Q8_0, (2, 32), bytes(68)),
    "empty": np.zeros((0, 3), np.float16),
    "output.weight": RawTensor(GGMLType.Q4_K, (1, 256), bytes(144)),
}
WHOLE = [
    gguf_bytes(METADATA, TENSORS),
    gguf_bytes(METADATA | {"general.alignment": 1}, TENSORS, version=2),
    gguf_bytes({"split.count": 2, "split.no": 0}, TENSORS),
    gguf_bytes(),
]
LENGTHS = [0, 1, 2, 9, 31, 33, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**60, 2**61]
LENGTHS += [2**63 - 1, 2**63, 2**64 - 16, 2**64 - 1]


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """`whole` with up to four byte flips, cuts, removals, repetitions or false lengths."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.sampled_from(["flip", "cut", "remove", "repeat", "length", "length"])):
            case "flip" if data:
                data[place] ^= draw(st.integers(1, 255))
            case "cut":
                del data[place:]
            case "remove":
                del data[place : place + draw(st.integers(1, 40))]
            case "repeat":
                data[place:place] = data[place : place + draw(st.integers(1, 40))]
            case "length":
                width = draw(st.sampled_from([4, 8]))
                value = draw(st.sampled_from(LENGTHS)) % 2 ** (8 * width)
                data[place : place + width] = value.to_bytes(width, "little")
    return bytes(data)


def read_everything(path) -> None:
    """Reads header and data, and checks that what is accepted lies in the files."""
    start = time.process_time()
    try:
        model = read_gguf(path)
        model.check_data()
    except ModelFormatError as error:
        assert str(error)
    else:
        for name, info in model.tensors.items():
            size = model.paths[info.shard].stat().st_size
            assert 0 <= info.offset <= info.offset + info.nbytes <= size
            raw = model.raw(name)
            assert raw.size == info.nbytes
            raw.tobytes()
    assert time.process_time() - start < 5


@settings(
    max_examples=2000,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.sampled_from(WHOLE).flatmap(damaged))
def test_damaged_files(tmp_path, data):
    path = tmp_path / "m-00001-of-00002.gguf"
    path.write_bytes(data)
    read_everything(path)


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(draw=st.data(), shard=st.integers(0, 1))
def test_damaged_shards(tmp_path, draw, shard):
    paths = write_split(tmp_path, "m", METADATA, [TENSORS, {"last": np.ones(7, np.float32)}])
    paths[shard].write_bytes(draw.draw(damaged(paths[shard].read_bytes())))
    read_everything(paths[0])


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.binary(max_size=300), start=st.sampled_from([b"", b"GGUF", b"GGUF\3\0\0\0"]))
def test_arbitrary_bytes(tmp_path, data, start):
    path = tmp_path / "m.gguf"
    path.write_bytes(start + data)
    read_everything(path)


@pytest.mark.parametrize("whole", WHOLE)
def test_every_cut_and_every_byte_set_to_255(tmp_path, whole):
    path = tmp_path / "m.gguf"
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place])
        read_everything(path)
        path.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
        read_everything(path)
