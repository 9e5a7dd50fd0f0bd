"""What a file must be and begin with: kind of file, magic, version, counts, alignment."""

import os
import pathlib
import struct
import time

import pytest
from support.gguf_files import Typed, assemble, gguf_bytes, pair, refusal, tensor_entry, write_gguf

from rfjax.errors import ModelFormatError
from rfjax.io.gguf import read_gguf
from rfjax.io.gguf_values import ValueType


def test_missing_file(tmp_path):
    with pytest.raises(ModelFormatError, match="no such file") as caught:
        read_gguf(tmp_path / "absent.gguf")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_directory(tmp_path):
    with pytest.raises(ModelFormatError, match="it is a directory"):
        read_gguf(tmp_path)


def test_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFormatError, match="not a regular file"):
        read_gguf(tmp_path / "pipe")


def test_unreadable_file(tmp_path, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    path = write_gguf(tmp_path / "m.gguf")
    monkeypatch.setattr(pathlib.Path, "open", refuse)  # root may read every file
    with pytest.raises(ModelFormatError, match=r"cannot be read .*Permission denied") as caught:
        read_gguf(path)
    assert isinstance(caught.value.__cause__, PermissionError)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "file/child.gguf"])
def test_impossible_path(tmp_path, name):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ModelFormatError) as caught:
        read_gguf(tmp_path / name)
    assert isinstance(caught.value.__cause__, OSError | ValueError)


def test_empty_file(tmp_path):
    assert "the file is empty" in refusal(tmp_path, b"")


@pytest.mark.parametrize("size", range(1, 24))
def test_cut_start(tmp_path, size):
    assert "left in the file" in refusal(tmp_path, gguf_bytes()[:size])


@pytest.mark.parametrize(
    ("start", "hint"),
    [
        (b"FUGG", "not a GGUF file"),
        (b"lmgg", "before GGUF"),
        (b"version https://git-lfs", "git lfs pull"),
        (b"PK\x03\x04", "PyTorch"),
    ],
)
def test_other_formats(tmp_path, start, hint):
    message = refusal(tmp_path, start + bytes(60))
    assert "expected b'GGUF'" in message
    assert hint in message


@pytest.mark.parametrize("version", [0, 1, 4, 0xFFFF, 2**32 - 1])
def test_other_versions_are_named(tmp_path, version):
    message = refusal(tmp_path, assemble(version=version))
    assert f"GGUF version {version}, expected version 2 or 3, little-endian" in message


@pytest.mark.parametrize("version", [1, 2, 3])
def test_big_endian_is_named(tmp_path, version):
    data = b"GGUF" + struct.pack(">IQQ", version, 0, 0) + bytes(8)
    assert f"big-endian GGUF file (version {version})" in refusal(tmp_path, data)


@pytest.mark.parametrize("count", [10**4, 2**20, 2**31, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("field", ["n_pairs", "n_tensors"])
def test_false_counts_are_refused_at_once(tmp_path, field, count):
    parts = {"n_pairs": "metadata pairs", "n_tensors": "tensors"}
    start = time.process_time()
    message = refusal(tmp_path, assemble([pair("a", 1)], [], bytes(40), **{field: count}))
    assert time.process_time() - start < 2
    assert f"{count} {parts[field]}" in message


def test_no_pairs_and_no_tensors(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes()[:24])
    model = read_gguf(path)
    model.check_data()
    assert (dict(model.metadata), dict(model.tensors)) == ({}, {})


@pytest.mark.parametrize("alignment", [0, 3, 13, 31, 33, 2**31 + 1, 2**32 - 1])
def test_alignment_that_is_no_power_of_two(tmp_path, alignment):
    message = refusal(
        tmp_path, assemble([pair("general.alignment", Typed(ValueType.UINT32, alignment))])
    )
    assert f"'general.alignment' is {alignment}, expected a power of two" in message


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (Typed(ValueType.INT32, 32), "int32"),
        (Typed(ValueType.INT32, -32), "int32"),
        (Typed(ValueType.UINT64, 32), "uint64"),
        (Typed(ValueType.FLOAT32, 32.0), "float32"),
        (Typed(ValueType.FLOAT32, float("nan")), "float32"),
        (Typed(ValueType.FLOAT64, float("inf")), "float64"),
        (Typed(ValueType.UINT32, [32]), "array[uint32]"),
        (True, "bool"),
        ("32", "string"),
    ],
)
def test_alignment_of_another_type(tmp_path, value, found):
    message = refusal(tmp_path, assemble([pair("general.alignment", value)]))
    assert f"'general.alignment' is {found}, expected uint32" in message


def test_large_alignment_passes_the_end_of_the_file(tmp_path):
    pairs = [pair("general.alignment", 2**31)]
    message = refusal(tmp_path, assemble(pairs, [tensor_entry("t", [4], 0, 0)], bytes(64)))
    assert "should start at byte 2147483648" in message
