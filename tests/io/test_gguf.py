"""Reading whole files: data, mapping, truncation, and files of the gguf package."""

import gguf
import numpy as np
import pytest
from support.gguf_files import RawTensor, gguf_bytes, write_gguf

from rfjax.errors import ModelFormatError
from rfjax.io.gguf import read_gguf
from rfjax.quant.types import BLOCK_SIZES, GGMLType

METADATA = {"general.architecture": "llama", "llama.block_count": 2}


def tensors():
    rng = np.random.default_rng(0)
    return {
        "token_embd.weight": rng.standard_normal((5, 32)).astype(np.float32),
        "blk.0.attn_q.weight": RawTensor(GGMLType.Q8_0, (3, 64), rng.bytes(204)),
        "blk.0.attn_norm.weight": rng.standard_normal(7).astype(np.float16),
    }


@pytest.mark.parametrize("version", [2, 3])
def test_reads_metadata_and_tensors(tmp_path, version):
    path = write_gguf(tmp_path / "m.gguf", METADATA, tensors(), version=version)
    model = read_gguf(path)
    assert model.path == path
    assert model.paths == (path,)
    assert (model.version, model.alignment, model.architecture) == (version, 32, "llama")
    assert dict(model.metadata) == METADATA
    assert list(model.tensors) == list(tensors())
    info = model.tensors["blk.0.attn_q.weight"]
    assert (info.shape, info.type, info.shard) == ((3, 64), GGMLType.Q8_0, 0)
    assert (info.nbytes, info.n_elements) == (204, 192)
    model.check_data()


def test_accepts_a_string_path_and_shows_itself_briefly(tmp_path):
    model = read_gguf(str(write_gguf(tmp_path / "m.gguf", METADATA, tensors())))
    assert "m.gguf" in repr(model)
    assert len(repr(model)) < 500


def test_raw_gives_the_bytes_of_each_tensor(tmp_path):
    model = read_gguf(write_gguf(tmp_path / "m.gguf", METADATA, tensors()))
    for name, tensor in tensors().items():
        raw = model.raw(name)
        assert raw.dtype == np.uint8
        assert raw.ndim == 1
        assert raw.tobytes() == (tensor.data if isinstance(tensor, RawTensor) else tensor.tobytes())


def test_raw_is_read_only_and_outlives_the_file_object(tmp_path):
    model = read_gguf(write_gguf(tmp_path / "m.gguf", METADATA, tensors()))
    raw = model.raw("token_embd.weight")
    with pytest.raises(ValueError, match="read-only"):
        raw[0] = 1
    del model
    assert raw.tobytes() == tensors()["token_embd.weight"].tobytes()


def test_metadata_and_tensors_are_read_only(tmp_path):
    model = read_gguf(write_gguf(tmp_path / "m.gguf", METADATA | {"a": [1, 2]}, tensors()))
    with pytest.raises(TypeError):
        model.metadata["x"] = 1
    with pytest.raises(TypeError):
        model.tensors["x"] = model.tensors["token_embd.weight"]
    with pytest.raises(ValueError, match="read-only"):
        model.metadata["a"][0] = 3


def test_unknown_tensor_is_named(tmp_path):
    model = read_gguf(write_gguf(tmp_path / "m.gguf", METADATA, tensors()))
    with pytest.raises(ModelFormatError, match=r"no tensor 'output\.weight' among its 3"):
        model.raw("output.weight")


def test_empty_tensors_and_scalars(tmp_path):
    given = {"empty": np.zeros((0, 4), np.float32), "scalar": np.array(3, np.int32)}
    model = read_gguf(write_gguf(tmp_path / "m.gguf", tensors=given))
    model.check_data()
    assert model.tensors["empty"].shape == (0, 4)
    assert model.raw("empty").size == 0
    assert model.tensors["scalar"].shape == ()
    assert model.raw("scalar").view(np.int32).tolist() == [3]


@pytest.mark.parametrize("alignment", [1, 4, 32, 4096])
def test_alignment_of_the_metadata_holds(tmp_path, alignment):
    given = {"general.alignment": alignment}
    model = read_gguf(write_gguf(tmp_path / "m.gguf", given, tensors()))
    model.check_data()
    assert model.alignment == alignment
    assert all(info.offset % alignment == 0 for info in model.tensors.values())
    last = "blk.0.attn_norm.weight"
    assert model.raw(last).tobytes() == tensors()[last].tobytes()


@pytest.mark.parametrize("ggml_type", GGMLType)
def test_every_type_has_its_size(tmp_path, ggml_type):
    block_elements, block_bytes = BLOCK_SIZES[ggml_type]
    data = np.random.default_rng(ggml_type).bytes(6 * block_bytes)
    given = {"t": RawTensor(ggml_type, (2, 3 * block_elements), data), "u": np.zeros(1, np.int8)}
    model = read_gguf(write_gguf(tmp_path / "m.gguf", tensors=given))
    model.check_data()
    assert model.raw("t").tobytes() == data


def test_every_cut_of_the_data_is_noticed(tmp_path):
    whole = gguf_bytes(METADATA, tensors())
    path = tmp_path / "m.gguf"
    path.write_bytes(whole)
    infos = list(read_gguf(path).tensors.values())
    for size in range(infos[0].offset, len(whole)):
        path.write_bytes(whole[:size])
        model = read_gguf(path)
        cut = [info.name for info in infos if info.offset + info.nbytes > size]
        with pytest.raises(ModelFormatError, match=cut[0] if cut else "padding behind"):
            model.check_data()
        for info in infos:
            if info.name not in cut:
                assert model.raw(info.name).size == info.nbytes
                continue
            with pytest.raises(ModelFormatError, match=info.name):
                model.raw(info.name)


def test_file_shortened_after_reading_is_not_touched(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", METADATA, {"t": np.zeros(100_000, np.float32)})
    model = read_gguf(path)
    with path.open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(ModelFormatError, match="'t' is not whole"):
        model.raw("t")
    with pytest.raises(ModelFormatError, match="'t' is not whole"):
        model.check_data()


def test_data_behind_the_last_tensor_is_allowed(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(METADATA, tensors()) + b"signature")
    read_gguf(path).check_data()


def test_file_of_the_gguf_package(tmp_path):
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(7)
    writer.add_token_list(["a", "é", b"\xff\x00"])
    writer.add_token_scores([0.5, -1.0, 2.0])
    writer.add_token_types([1, 2, 3])
    writer.add_add_bos_token(False)
    weight = np.arange(96, dtype=np.float32).reshape(3, 32)
    writer.add_tensor("w", weight)
    quantized = gguf.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("q", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    model = read_gguf(path)
    model.check_data()
    assert model.get_int("llama.block_count") == 7
    assert model.get_array("tokenizer.ggml.tokens", str) == ("a", "é", "\udcff\x00")
    assert model.get_array("tokenizer.ggml.scores", float).tolist() == [0.5, -1.0, 2.0]
    assert model.get_bool("tokenizer.ggml.add_bos_token") is False
    assert model.tensors["w"].shape == (3, 32)
    assert (model.raw("w").view(np.float32).reshape(3, 32) == weight).all()
    assert model.tensors["q"].shape == (3, 32)
    assert model.raw("q").tobytes() == quantized.tobytes()
