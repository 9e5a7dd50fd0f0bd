"""The tensor table: every way in which an entry can be wrong."""

import pytest
from support.gguf_files import assemble, pair, refusal, tensor_entry

from rfjax.errors import ModelFormatError
from rfjax.io.gguf import read_gguf
from rfjax.io.gguf_tensors import MAX_NAME_BYTES, MAX_TENSORS
from rfjax.quant.types import BLOCK_SIZES, GGMLType

F32, Q8_0, I8, I64 = GGMLType.F32, GGMLType.Q8_0, GGMLType.I8, GGMLType.I64


def with_tensor(dims, type_number=F32, offset=0, name="blk.0.w", n_dims=None) -> bytes:
    """A file with one good tensor of 4 floats before the one given; `offset` counts from it."""
    entries = [tensor_entry("good", [4], F32, 0)]
    entries.append(tensor_entry(name, dims, type_number, (32 + offset) % 2**64, n_dims))
    return assemble([pair("k", 1)], entries, bytes(4096))


def test_the_good_one(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(with_tensor([4, 3, 2]))
    assert read_gguf(path).tensors["blk.0.w"].shape == (2, 3, 4)


def test_name_too_long(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(with_tensor([4], name="n" * MAX_NAME_BYTES))
    assert "n" * MAX_NAME_BYTES in read_gguf(path).tensors
    message = refusal(tmp_path, with_tensor([4], name="n" * (MAX_NAME_BYTES + 1)))
    assert (
        f"tensor 1 claims {MAX_NAME_BYTES + 1} bytes, expected at most {MAX_NAME_BYTES}" in message
    )


def test_duplicate_name(tmp_path):
    assert "tensor 'good' occurs twice" in refusal(tmp_path, with_tensor([4], name="good"))


@pytest.mark.parametrize("n_dims", [5, 255, 2**31, 2**32 - 1])
def test_too_many_dimensions(tmp_path, n_dims):
    message = refusal(tmp_path, with_tensor([1] * 5, n_dims=n_dims))
    assert f"'blk.0.w' has {n_dims} dimensions, expected at most 4" in message


@pytest.mark.parametrize(
    "dims",
    [[-1], [4, -1], [-1, -1, -1, -1], [2**63], [2**62, 2], [2**32, 2**32], [2**62, 2**62, 0]],
)
def test_too_many_elements(tmp_path, dims):
    message = refusal(tmp_path, with_tensor(dims))
    assert "'blk.0.w' has dimensions" in message
    assert "at most 9223372036854775807 elements" in message


@pytest.mark.parametrize(
    ("dims", "type_number"),
    [
        ([2**62], F32),
        ([2**40, 2**20], I64),
        ([4, 2**30 - 1, 2**30 + 1], F32),  # 2^64 - 16 bytes: padding to 32 would wrap to 0
        ([2**63 - 64], I8),
    ],
)
def test_too_many_bytes(tmp_path, dims, type_number):
    message = refusal(tmp_path, with_tensor(dims, type_number))
    assert "tensor 'blk.0.w' of shape" in message
    assert "passes 9223372036854775807 bytes" in message


def test_huge_but_possible_sizes_are_left_to_the_data_check(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(with_tensor([2**40]))
    model = read_gguf(path)
    assert model.tensors["blk.0.w"].nbytes == 2**42
    with pytest.raises(ModelFormatError, match=r"'blk\.0\.w' is not whole"):
        model.check_data()
    with pytest.raises(ModelFormatError, match=r"'blk\.0\.w' is not whole"):
        model.raw("blk.0.w")


def test_zero_dimensions_first(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(with_tensor([0, 2**62, 2**62]))
    model = read_gguf(path)
    model.check_data()
    assert model.raw("blk.0.w").size == 0


@pytest.mark.parametrize("number", [-1, 43, 1000, 2**31 - 1])
def test_unknown_type(tmp_path, number):
    message = refusal(tmp_path, with_tensor([32], number))
    assert f"'blk.0.w' has type {number}, which is not known; expected one of F32 (0)" in message


@pytest.mark.parametrize("number", [4, 5, 31, 32, 33, 36, 37, 38])
def test_removed_type(tmp_path, number):
    message = refusal(tmp_path, with_tensor([256], number))
    assert f"'blk.0.w' has type {number}, which was removed from GGUF" in message


@pytest.mark.parametrize("ggml_type", [t for t in GGMLType if BLOCK_SIZES[t][0] > 1])
def test_row_that_is_no_multiple_of_the_block(tmp_path, ggml_type):
    block = BLOCK_SIZES[ggml_type][0]
    for dims in ([block - 1], [block + 1, block], [block // 2, 2], [1], []):
        message = refusal(tmp_path, with_tensor(dims, ggml_type))
        assert f"type {ggml_type.name} has rows of {(dims or [1])[0]} elements" in message
        assert f"multiple of its block of {block}" in message


@pytest.mark.parametrize("offset", [-32, -1, 1, 31, 32, 2**62, 2**63, -33])
def test_offset_that_does_not_follow(tmp_path, offset):
    message = refusal(tmp_path, with_tensor([4], offset=offset))
    assert f"'blk.0.w' has offset {(32 + offset) % 2**64}, expected 32" in message


def test_offsets_padded_to_another_alignment(tmp_path):
    entries = [tensor_entry("a", [1], F32, 0), tensor_entry("b", [1], F32, 4)]
    message = refusal(tmp_path, assemble([], entries, bytes(64)))
    assert "'b' has offset 4, expected 32" in message


def test_too_many_tensors(tmp_path):
    data = assemble([], [], bytes(2**23), n_tensors=MAX_TENSORS + 1)
    assert f"expected at most {MAX_TENSORS}" in refusal(tmp_path, data)


def test_every_cut_of_the_table_is_noticed(tmp_path):
    whole = with_tensor([4, 3])
    start = len(assemble([pair("k", 1)], alignment=1))
    for size in range(start, len(whole) - 4096):
        refusal(tmp_path, whole[:size])
