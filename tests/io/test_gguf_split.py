"""Split models: read as one, and every way in which the shards may not belong together."""

import gguf
import numpy as np
import pytest
from support.gguf_files import Typed, gguf_bytes, write_gguf, write_split

from rfjax.errors import ModelFormatError
from rfjax.io.gguf import read_gguf
from rfjax.io.gguf_values import ValueType

METADATA = {"general.architecture": "llama", "general.alignment": 64}


def shards(count=3, each=2):
    rng = np.random.default_rng(0)
    return [
        {f"t.{shard}.{i}": rng.standard_normal((i + 1, 5)).astype(np.float32) for i in range(each)}
        for shard in range(count)
    ]


def numbered(index, count, total):
    """The metadata of a shard that is not the first."""
    return {
        "split.no": Typed(ValueType.UINT16, index),
        "split.count": Typed(ValueType.UINT16, count),
        "split.tensors.count": Typed(ValueType.INT32, total),
    }


@pytest.mark.parametrize("given", [0, 1, 2])
def test_reads_all_shards_as_one_from_any(tmp_path, given):
    paths = write_split(tmp_path, "model-Q4_0", METADATA, shards())
    model = read_gguf(paths[given])
    model.check_data()
    assert model.path == paths[0]
    assert model.paths == tuple(paths)
    assert model.architecture == "llama"
    assert model.alignment == 64
    tensors = {name: tensor for shard in shards() for name, tensor in shard.items()}
    assert list(model.tensors) == list(tensors)
    for name, tensor in tensors.items():
        assert model.tensors[name].shard == int(name.split(".")[1])
        assert model.raw(name).tobytes() == tensor.tobytes()


def test_first_shard_may_hold_metadata_only(tmp_path):
    paths = write_split(tmp_path, "m", METADATA, [{}, *shards(2)])
    model = read_gguf(paths[0])
    model.check_data()
    assert {info.shard for info in model.tensors.values()} == {1, 2}


@pytest.mark.parametrize("count", [0, 1])
def test_merged_model_is_no_split_one(tmp_path, count):
    given = METADATA | numbered(0, count, 99)
    assert read_gguf(write_gguf(tmp_path / "any.gguf", given, shards()[0])).paths == (
        tmp_path / "any.gguf",
    )


def test_shards_of_the_gguf_package(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    tensors = {f"t{i}": np.full((2, 32), i, np.float32) for i in range(5)}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = read_gguf(tmp_path / "m-00001-of-00003.gguf")
    model.check_data()
    assert model.architecture == "llama"
    for name, tensor in tensors.items():
        assert model.raw(name).tobytes() == tensor.tobytes()


def test_missing_shards_are_named(tmp_path):
    paths = write_split(tmp_path, "m", METADATA, shards(6))
    paths[3].unlink()
    with pytest.raises(ModelFormatError, match=r"1 of the model's 6 shards.*m-00004-of-00006"):
        read_gguf(paths[0])
    for path in paths[1:]:
        path.unlink(missing_ok=True)
    with pytest.raises(
        ModelFormatError, match=r"5 of the model's 6 shards.*00004-of-00006.*\.\.\."
    ):
        read_gguf(paths[0])


def test_renamed_shard_is_explained(tmp_path):
    first = write_split(tmp_path, "m", METADATA, shards())[0]
    for name in ("model.gguf", "m-1-of-3.gguf", "-00001-of-00003.gguf", "m-00002-of-00003.gguf"):
        renamed = first.rename(tmp_path / name)
        with pytest.raises(ModelFormatError, match=r"shard 1 of 3.*'-00001-of-00003\.gguf'"):
            read_gguf(renamed)
        renamed.rename(first)


def test_same_tensor_in_two_shards(tmp_path):
    parts = shards()
    parts[2]["t.0.1"] = np.zeros(3, np.float32)
    first = write_split(tmp_path, "m", METADATA, parts)[0]
    with pytest.raises(
        ModelFormatError, match=r"00003-of-00003.*'t\.0\.1'.*m-00001-of-00003\.gguf"
    ):
        read_gguf(first)


@pytest.mark.parametrize("total", [-1, 0, 5, 7])
def test_false_number_of_tensors(tmp_path, total):
    first = write_split(tmp_path, "m", METADATA, shards())[0]
    write_gguf(first, METADATA | numbered(0, 3, total), shards()[0])
    with pytest.raises(ModelFormatError, match=f"hold 6 tensors, expected {total} "):
        read_gguf(first)


@pytest.mark.parametrize("key", ["split.no", "split.count"])
@pytest.mark.parametrize("value", [None, 0, 7, "x"])
def test_shard_that_numbers_itself_otherwise(tmp_path, key, value):
    first, second, _ = write_split(tmp_path, "m", METADATA, shards())
    metadata = numbered(1, 3, 6)
    del metadata[key]
    if value is not None:
        metadata[key] = value
    write_gguf(second, metadata, shards()[1])
    with pytest.raises(ModelFormatError, match=rf"m-00002-of-00003.*'{key}' is .*expected"):
        read_gguf(first)


@pytest.mark.parametrize("index", [-1, 3, 70_000])
def test_index_out_of_range(tmp_path, index):
    metadata = METADATA | numbered(0, 3, 6) | {"split.no": index}
    path = write_gguf(tmp_path / "m-00001-of-00003.gguf", metadata)
    with pytest.raises(ModelFormatError, match=f"'split.no' is {index}, expected 0 to 2"):
        read_gguf(path)


@pytest.mark.parametrize("count", [2**16, 2**31, 2**63])
def test_huge_number_of_shards_is_refused_at_once(tmp_path, count):
    metadata = METADATA | numbered(0, 3, 6) | {"split.count": count}
    path = write_gguf(tmp_path / f"m-00001-of-{count:05d}.gguf", metadata)
    with pytest.raises(ModelFormatError, match=f"'split.count' is {count}, expected at most 65535"):
        read_gguf(path)


def test_malformed_and_cut_shards_are_named(tmp_path):
    first, _, third = write_split(tmp_path, "m", METADATA, shards())
    whole = third.read_bytes()
    third.write_bytes(whole[:-1])
    model = read_gguf(first)
    with pytest.raises(ModelFormatError, match=r"m-00003-of-00003.*padding"):
        model.check_data()
    third.write_bytes(whole[:-30])
    model = read_gguf(first)
    with pytest.raises(ModelFormatError, match=r"m-00003-of-00003.*'t\.2\.1' is not whole"):
        model.raw("t.2.1")
    third.write_bytes(gguf_bytes()[:20])
    with pytest.raises(ModelFormatError, match=r"m-00003-of-00003.*left in the file"):
        read_gguf(first)
