"""Metadata pairs: every type, and every way in which a pair can be wrong."""

import struct
import time
import tracemalloc

import numpy as np
import pytest
from support.gguf_files import Typed, array, assemble, gguf_bytes, pair, refusal, string, write_gguf

from rfjax.io.gguf import read_gguf, text_bytes
from rfjax.io.gguf_values import MAX_KEY_BYTES, MAX_PAIRS, ValueType

EXTREMES = {
    ValueType.UINT8: [0, 255],
    ValueType.INT8: [-128, 127],
    ValueType.UINT16: [0, 2**16 - 1],
    ValueType.INT16: [-(2**15), 2**15 - 1],
    ValueType.UINT32: [0, 2**32 - 1],
    ValueType.INT32: [-(2**31), 2**31 - 1],
    ValueType.UINT64: [0, 2**64 - 1],
    ValueType.INT64: [-(2**63), 2**63 - 1],
    ValueType.FLOAT32: [-0.5, float("inf"), 1e-45],
    ValueType.FLOAT64: [1 / 3, float("-inf"), 5e-324],
    ValueType.BOOL: [True, False],
    ValueType.STRING: ["", "tokens é 猫 \n \0"],
}


@pytest.mark.parametrize("value_type", EXTREMES, ids=lambda value_type: value_type.name)
def test_scalars_and_arrays(tmp_path, value_type):
    values = EXTREMES[value_type]
    given = {f"s{i}": Typed(value_type, value) for i, value in enumerate(values)}
    given |= {"array": Typed(value_type, values), "none": Typed(value_type, [])}
    model = read_gguf(write_gguf(tmp_path / "m.gguf", given))
    name = value_type.name.lower()
    for i, value in enumerate(values):
        found = model.metadata[f"s{i}"]
        assert type(found) is type(value)
        expected = np.float32(value).item() if value_type == ValueType.FLOAT32 else value
        assert found == expected
        assert model.value_types[f"s{i}"] == name
    assert model.value_types["array"] == model.value_types["none"] == f"array[{name}]"
    if value_type == ValueType.STRING:
        assert model.metadata["array"] == tuple(values)
        assert model.metadata["none"] == ()
        return
    numbers = model.metadata["array"]
    assert numbers.dtype.name == name
    assert not numbers.flags.writeable
    assert (numbers == np.array(values, numbers.dtype)).all()
    assert model.metadata["none"].shape == (0,)


def test_any_byte_but_zero_is_true(tmp_path):
    raw = [string("a") + struct.pack("<iB", ValueType.BOOL, 7)]
    raw.append(string("b") + struct.pack("<iiQ3B", ValueType.ARRAY, ValueType.BOOL, 3, 0, 1, 200))
    path = tmp_path / "m.gguf"
    path.write_bytes(assemble(raw))
    model = read_gguf(path)
    assert model.metadata["a"] is True
    assert model.metadata["b"].tolist() == [False, True, True]


def test_bytes_that_are_not_utf8_come_back_exactly(tmp_path):
    texts = [b"\xff", b"\xc3", b"\xed\xa0\x80", b"ok\x80", "猫".encode()]
    given = {"tokens": Typed(ValueType.STRING, texts), "one": Typed(ValueType.STRING, b"\xfe\0")}
    model = read_gguf(write_gguf(tmp_path / "m.gguf", given))
    assert [text_bytes(text) for text in model.metadata["tokens"]] == texts
    assert text_bytes(model.metadata["one"]) == b"\xfe\0"


def test_keys_keep_the_order_of_the_file(tmp_path):
    keys = [f"k{(i * 7) % 50}" for i in range(50)]
    model = read_gguf(write_gguf(tmp_path / "m.gguf", dict.fromkeys(keys, 1)))
    assert list(model.metadata) == keys


def test_longest_key(tmp_path):
    key = "k" * MAX_KEY_BYTES
    assert list(read_gguf(write_gguf(tmp_path / "m.gguf", {key: 1})).metadata) == [key]
    message = refusal(tmp_path, gguf_bytes({key + "k": 1}))
    assert f"claims {MAX_KEY_BYTES + 1} bytes, expected at most {MAX_KEY_BYTES}" in message


def test_too_many_pairs(tmp_path):
    message = refusal(tmp_path, assemble([], n_pairs=MAX_PAIRS + 1, data=bytes(2**21)))
    assert f"expected at most {MAX_PAIRS}" in message


def test_empty_key(tmp_path):
    assert "pair 1 is empty" in refusal(tmp_path, assemble([pair("a", 1), pair("", 2)]))


def test_duplicate_key(tmp_path):
    message = refusal(tmp_path, assemble([pair("a", 1), pair("b", 2), pair("a", "x")]))
    assert "key 'a' occurs twice" in message


@pytest.mark.parametrize("length", [100, 2**16, 2**31, 2**60, 2**63, 2**64 - 1])
def test_false_key_length(tmp_path, length):
    message = refusal(tmp_path, assemble([struct.pack("<Q", length) + b"key" + bytes(12)]))
    assert "key of metadata pair 0" in message


@pytest.mark.parametrize("number", [-1, 13, 2**31 - 1, -(2**31)])
def test_value_type_that_does_not_exist(tmp_path, number):
    message = refusal(tmp_path, assemble([string("a.b") + struct.pack("<iQ", number, 0)]))
    assert f"'a.b' has value type {number}, expected 0 to 12" in message
    in_array = struct.pack("<iiQ", ValueType.ARRAY, number, 0)
    message = refusal(tmp_path, assemble([string("a.b") + in_array]))
    assert f"'a.b' has value type {number}, expected 0 to 12" in message


def test_array_of_arrays(tmp_path):
    nested = struct.pack("<iiQ", ValueType.ARRAY, ValueType.ARRAY, 0)
    assert "'a' is an array of arrays" in refusal(tmp_path, assemble([string("a") + nested]))


@pytest.mark.parametrize("length", [200, 2**31, 2**40, 2**60, 2**61, 2**63, 2**64 - 1])
@pytest.mark.parametrize("element_type", [t for t in ValueType if t != ValueType.ARRAY])
def test_false_array_length_costs_nothing(tmp_path, element_type, length):
    lie = string("k") + struct.pack("<i", ValueType.ARRAY) + array(element_type, [], length)
    data = assemble([lie], data=bytes(64))
    tracemalloc.start()
    start = time.process_time()
    message = refusal(tmp_path, data)
    seconds = time.process_time() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "metadata key 'k'" in message
    assert seconds < 2
    assert peak < 200_000


@pytest.mark.parametrize("length", [50, 2**20, 2**40, 2**63, 2**64 - 1])
def test_false_string_length(tmp_path, length):
    lie = string("k") + struct.pack("<iQ", ValueType.STRING, length) + b"text"
    assert "value of metadata key 'k'" in refusal(tmp_path, assemble([lie]))
    inside = string("k") + struct.pack("<iiQ", ValueType.ARRAY, ValueType.STRING, 2)
    inside += string("first") + struct.pack("<Q", length) + b"second"
    assert "string 1 of metadata key 'k'" in refusal(tmp_path, assemble([inside]))


def test_every_cut_of_the_metadata_is_noticed(tmp_path):
    given = {"a": 1, "s": "text", "l": ["x", "yy", ""], "f": [1.0, 2.0], "b": True, "e": [1]}
    whole = assemble([pair(key, value) for key, value in given.items()], alignment=1)
    for size in range(24, len(whole)):
        assert "left in the file" in refusal(tmp_path, whole[:size])


def test_header_past_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("rfjax.io.gguf_cursor.MAX_HEADER_BYTES", 1000)
    read_gguf(write_gguf(tmp_path / "m.gguf", {"k": "x" * 900}))
    for value in ("x" * 2000, ["x"] * 200, [1] * 400):
        message = refusal(tmp_path, gguf_bytes({"k": value}))
        assert "passes the limit of 1000 bytes" in message
