"""llama.cpp's verdict on its own malformed files, and the time that large headers take."""

import csv
import time

import pytest

from rfjax.errors import ModelFormatError
from rfjax.io.gguf import read_gguf

HEADER_ONLY = ("TENSORS_SUCCESS", "TENSORS_CUSTOM_ALIGN", "meta_only")
"""Valid headers without tensor data: to be read, but not to be loaded."""


def loads(path) -> bool:
    """Whether the header is accepted and the data is whole."""
    try:
        read_gguf(path).check_data()
    except ModelFormatError as error:
        assert path.name in str(error)
        return False
    return True


def test_verdicts(conformance):
    folder = conformance / "malformed"
    with (folder / "INDEX.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) >= 40
    for row in rows:
        path = folder / row["file"]
        valid = row["actual_llama_cpp"] == "LOAD"
        if any(name in path.name for name in HEADER_ONLY):
            read_gguf(path)
            assert not loads(path), path.name
        else:
            assert loads(path) == valid, path.name


def test_only_the_last_padding_byte_is_missing(conformance):
    model = read_gguf(conformance / "malformed" / "DATA_NOT_ENOUGH_DATA.gguf")
    with pytest.raises(ModelFormatError, match="padding behind its last tensor is not whole"):
        model.check_data()


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2"])
def test_large_vocabularies_are_read_quickly(conformance, name):
    path = conformance / "vocab" / f"ggml-vocab-{name}.gguf"
    seconds = []
    for _ in range(5):
        start = time.process_time()
        model = read_gguf(path)
        seconds.append(time.process_time() - start)
    assert len(model.get_array("tokenizer.ggml.tokens", str)) > 100_000
    assert min(seconds) < 1


@pytest.mark.parametrize("folder", ["archs", "variants", "perplexity", "vocab"])
def test_all_models_are_read(conformance, folder):
    paths = sorted((conformance / folder).glob("*.gguf"))
    assert paths
    for path in paths:
        model = read_gguf(path)
        model.check_data()
        assert model.architecture
