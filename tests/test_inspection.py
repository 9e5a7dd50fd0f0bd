import numpy as np
import pytest
from support.gguf_files import RawTensor, write_gguf, write_split
from support.tiny_model import tiny_llama, vocabulary

from rfjax.errors import ModelFormatError
from rfjax.inspection import inspect_file
from rfjax.quant.types import GGMLType


def checks(found):
    return {check.aspect: check for check in found.checks}


def test_a_model_that_runs(tiny_llama_path):
    found = inspect_file(tiny_llama_path)
    assert found.supported
    assert (found.architecture, found.name) == ("llama", "tiny random llama")
    assert found.file_bytes == tiny_llama_path.stat().st_size == found.parts[0].nbytes
    assert found.n_parameters == sum(int(np.prod(row.shape)) for row in found.tensors)
    assert found.bits_per_weight == 32
    n_tokens = len(vocabulary()[0])
    embedding = next(row for row in found.tensors if row.name == "token_embd.weight")
    assert (embedding.shape, embedding.type) == ((n_tokens, 64), "F32")
    assert f"spm, {n_tokens} tokens; chat templates: default" in checks(found)["tokenizer"].reason
    assert "1 layers, width 64" in checks(found)["configuration and tensors"].reason


def test_types_are_summed_largest_first(tmp_path):
    found = inspect_file(tiny_llama(tmp_path / "model.gguf", quantized=True))
    assert [row.type for row in found.types] == ["F32", "Q8_0"]
    q8_0 = [row for row in found.tensors if row.type == "Q8_0"]
    assert found.types[1].n_tensors == len(q8_0) == 8
    assert found.types[1].nbytes == sum(row.nbytes for row in q8_0)
    assert {row.bits_per_weight for row in q8_0} == {8.5}
    assert sum(row.nbytes for row in found.types) == found.tensor_bytes


def test_long_values_are_shortened_unless_asked(tmp_path):
    path = write_gguf(
        tmp_path / "model.gguf",
        {"a": list(range(20)), "b": ["x"] * 9, "c": "y" * 500, "d": [1.5], "e": True, "f": "z"},
    )
    entries = inspect_file(path).metadata
    assert (entries["a"].value, entries["a"].length) == (list(range(8)), 20)
    assert (entries["b"].type, entries["b"].value) == ("array[string]", ["x"] * 8)
    assert (len(entries["c"].value), entries["c"].length) == (200, 500)
    assert [entries[key].shortened for key in "abcdef"] == [True] * 3 + [False] * 3
    assert (entries["d"].value, entries["e"].value, entries["e"].length) == ([1.5], True, None)
    whole = inspect_file(path, shorten=False).metadata
    assert whole["a"].value == list(range(20))
    assert not whole["a"].shortened


def test_a_header_without_tensors(tmp_path):
    found = inspect_file(write_gguf(tmp_path / "model.gguf", {"general.architecture": "llama"}))
    assert not found.supported
    assert (found.n_parameters, found.bits_per_weight, found.types) == (0, None, ())
    assert checks(found)["data"].supported
    assert "'llama.block_count' is missing" in checks(found)["configuration and tensors"].reason


def test_a_vocabulary_without_a_model(tiny_llama_path, tmp_path):
    source = inspect_file(tiny_llama_path, shorten=False).metadata
    metadata = {key: entry.value for key, entry in source.items()}
    found = inspect_file(write_gguf(tmp_path / "vocab.gguf", metadata))
    assert "no tensors" in checks(found)["configuration and tensors"].reason
    assert checks(found)["tokenizer"].supported


def test_what_is_not_supported_is_said_aspect_by_aspect(tmp_path):
    metadata = {
        "general.architecture": "quern",
        "general.name": 7,
        "tokenizer.ggml.model": "odd",
    }
    tensors = {"a": RawTensor(GGMLType.Q8_1, (1, 32), bytes(36)), "b": np.ones(4, np.float32)}
    found = inspect_file(write_gguf(tmp_path / "model.gguf", metadata, tensors))
    assert found.name is None
    assert not found.supported
    reasons = {aspect: check.reason for aspect, check in checks(found).items()}
    assert "'quern' is not supported" in reasons["architecture"]
    assert "'odd'" in reasons["tokenizer"]
    assert str(tmp_path) not in "".join(reasons.values())


def test_a_file_without_architecture(tmp_path):
    found = inspect_file(write_gguf(tmp_path / "model.gguf", {}))
    assert found.architecture is None
    assert "'general.architecture' is missing" in checks(found)["architecture"].reason


def test_truncated_data_is_told_from_a_broken_header(tiny_llama_path, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_llama_path.read_bytes()[:-100])
    found = inspect_file(path)
    assert "not whole" in checks(found)["data"].reason
    assert [check.aspect for check in found.checks if not check.supported] == ["data"]
    path.write_bytes(b"GGUF")
    with pytest.raises(ModelFormatError):
        inspect_file(path)


def test_the_parts_of_a_split_model(tmp_path):
    shards = [{"a": np.ones(4, np.float32)}, {"b": np.ones(8, np.float32)}]
    paths = write_split(tmp_path, "model", {"general.architecture": "llama"}, shards)
    found = inspect_file(paths[1])
    assert [part.path for part in found.parts] == [str(path) for path in paths]
    assert found.file_bytes == sum(path.stat().st_size for path in paths)
    assert [(row.name, row.part) for row in found.tensors] == [("a", 0), ("b", 1)]
