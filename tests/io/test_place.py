"""Packed loading: every type on the device in the file's own bytes, whole or in pieces."""

import gc
import mmap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from support.gguf_files import RawTensor, write_gguf
from support.random_model import Shape, random_model
from support.typed_model import SHAPES, blocks, save_typed

from rfjax.errors import ConfigError
from rfjax.io import place as place_module
from rfjax.io.gguf import read_gguf
from rfjax.io.load import load
from rfjax.io.place import pieces
from rfjax.quant.formats import FORMATS, dequantize_numpy
from rfjax.quant.qtensor import QTensor, dequantize_packed
from rfjax.quant.types import GGMLType
from rfjax.sharding import make_mesh

pytestmark = pytest.mark.quick_compile

WIDE = SHAPES["dense"]
SQUARE = Shape(
    n_layers=1, width=256, n_heads=4, n_kv_heads=4, head_dim=64, ffn_width=256, vocab_size=256
)
"""All its matrices are re-ordered by one program."""

PACKED = [type for type, row in FORMATS.items() if row.unpack is not None]
NATIVE = [GGMLType.F32, GGMLType.F16, GGMLType.BF16]
CONVERTED = [GGMLType.F64, GGMLType.I8, GGMLType.I32]


def live_bytes():
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


def file_bytes(path):
    return sum(info.nbytes for info in read_gguf(path).tensors.values())


MIXES = [[type] for type in (*PACKED, *NATIVE)] + [
    [GGMLType.Q4_K, GGMLType.Q6_K, GGMLType.F16],
    [GGMLType.Q4_0, GGMLType.IQ2_XS, GGMLType.BF16, GGMLType.Q5_1, GGMLType.MXFP4],
]


@pytest.mark.parametrize("types", MIXES, ids=lambda types: "-".join(t.name for t in types))
def test_live_bytes_are_those_of_the_file(tmp_path, types):
    path = save_typed(tmp_path / "m.gguf", SQUARE if len(types) == 1 else WIDE, types)
    before = live_bytes()
    model = load(path, weights="packed")
    held = live_bytes() - before
    assert abs(held - file_bytes(path)) <= 0.03 * file_bytes(path)
    assert held == model.plan.weights
    gguf = read_gguf(path)
    weight = model.params.blk[0].ffn_down.weight
    info = gguf.tensors["blk.0.ffn_down.weight"]
    expected = dequantize_numpy(gguf.raw(info.name), info.type, info.shape)
    if info.type in NATIVE:
        assert str(weight.dtype) == {0: "float32", 1: "float16", 30: "bfloat16"}[info.type]
        found = weight.astype(jnp.float32)
    else:
        assert isinstance(weight, QTensor) and weight.type == info.type
        found = jax.jit(dequantize_packed)(weight)
    assert_array_equal(found, expected)


@pytest.mark.parametrize("type", CONVERTED, ids=lambda type: type.name)
@pytest.mark.parametrize("weights", ["packed", "dequantized"])
def test_integers_and_f64_become_f32(tmp_path, type, weights):
    metadata, tensors = random_model(WIDE)
    name = "blk.0.attn_v.weight"
    values = np.random.default_rng(0).integers(-9, 9, tensors[name].shape)
    dtype = {GGMLType.F64: "f8", GGMLType.I8: "i1", GGMLType.I32: "i4"}[type]
    raw = RawTensor(type, values.shape, values.astype(dtype).tobytes())
    path = write_gguf(tmp_path / "m.gguf", metadata, {**tensors, name: raw})
    weight = load(path, weights=weights, dtype="bfloat16").params.blk[0].attn_v.weight
    assert weight.dtype == jnp.float32
    assert_array_equal(weight, values.astype(np.float32))


@pytest.mark.parametrize(
    ("piece", "mesh"),
    [(600, None), (50_000, None), (5000, (1, 2)), (600, (2, 4)), (50_000, (2, 4))],
)
def test_pieces_make_the_whole(tmp_path, monkeypatch, piece, mesh):
    types = [GGMLType.Q6_K, GGMLType.Q4_0, GGMLType.IQ3_S]
    path = save_typed(tmp_path / "m.gguf", SHAPES["experts"], types)
    whole = load(path, weights="packed")
    monkeypatch.setattr(place_module, "PIECE_BYTES", piece)
    mesh = None if mesh is None else make_mesh(data=mesh[0], model=mesh[1])
    cut = load(path, weights="packed", mesh=mesh)
    for expected, found in zip(
        jax.tree.leaves(whole.params), jax.tree.leaves(cut.params), strict=True
    ):
        assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("leading", "row_bytes", "room", "size", "starts"),
    [
        ((10,), 8, 80, (10,), [(0,)]),
        ((10,), 8, 32, (4,), [(0,), (4,), (6,)]),
        ((10,), 8, 1, (1,), [(i,) for i in range(10)]),
        ((3, 4), 8, 96, (3, 4), [(0, 0)]),
        ((3, 4), 8, 64, (2, 4), [(0, 0), (1, 0)]),
        ((2, 4), 8, 24, (1, 3), [(0, 0), (0, 1), (1, 0), (1, 1)]),
    ],
)
def test_pieces_of_one_size_cover_everything(monkeypatch, leading, row_bytes, room, size, starts):
    monkeypatch.setattr(place_module, "PIECE_BYTES", room)
    assert pieces(leading, row_bytes) == (size, starts)


def test_experts_of_their_own_are_stacked_packed(tmp_path, caplog):
    """As files of Mixtral from before April 2024 have them."""
    shape = Shape(width=256, head_dim=64, expert_width=256, n_experts=4, n_used=2, n_layers=1)
    metadata, tensors = random_model(shape)
    apart, whole = {}, {}
    for name, tensor in tensors.items():
        if "_exps" not in name:
            apart[name] = whole[name] = tensor
            continue
        stack = blocks(GGMLType.Q4_K, tensor.shape)
        whole[name] = stack
        size = len(stack.data) // 4
        for e in range(4):
            part = stack.data[e * size : (e + 1) * size]
            single = name.replace("_exps.", f".{e}.")
            apart[single] = RawTensor(GGMLType.Q4_K, tensor.shape[1:], part)
    expected = load(write_gguf(tmp_path / "whole.gguf", metadata, whole), weights="packed")
    found = load(write_gguf(tmp_path / "apart.gguf", metadata, apart), weights="packed")
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(expected.params), strict=True):
        assert_array_equal(a, b)

    # One expert of another type: such a stack has no one packed form.
    name = "blk.0.ffn_up.2.weight"
    other = blocks(GGMLType.Q8_0, tensors["blk.0.ffn_up_exps.weight"].shape[1:])
    path = write_gguf(tmp_path / "mixed.gguf", metadata, {**apart, name: other})
    with caplog.at_level("INFO", logger="rfjax.io.storage"):
        mixed = load(path, weights="packed").params.blk[0].ffn_up_exps.weight
    assert mixed.shape == (4, 256, 256) and mixed.dtype == jnp.float32
    raw = np.frombuffer(other.data, np.uint8)
    assert_array_equal(mixed[2], dequantize_numpy(raw, GGMLType.Q8_0, (256, 256)))
    assert "its experts have several types, Q4_K, Q8_0" in caplog.text


def test_loaded_weights_do_not_change_with_the_file(tmp_path):
    path = save_typed(tmp_path / "m.gguf", WIDE, [GGMLType.F32, GGMLType.IQ3_S, GGMLType.F16])
    model = load(path, weights="packed")
    before = [np.array(leaf) for leaf in jax.tree.leaves(model.params)]
    with path.open("r+b") as file:
        file.seek(-50_000, 2)
        file.write(bytes(50_000))
    for old, leaf in zip(before, jax.tree.leaves(model.params), strict=True):
        assert_array_equal(leaf, old)


def test_an_unknown_kind_of_weights_is_refused(tmp_path):
    path = save_typed(tmp_path / "m.gguf", WIDE, [GGMLType.F32])
    with pytest.raises(ConfigError, match="weights: got 'raw', expected one of packed, deq"):
        load(path, weights="raw")


@pytest.mark.parametrize("rows", [3, 1 << 16])
def test_host_memory_is_aligned_and_that_of_large_arrays_their_own(rows):
    """A mapping goes back to the system with its array, whichever thread made it."""
    held = place_module._empty((rows, 5), np.dtype(np.float32))
    assert held.shape == (rows, 5) and held.flags.writeable and held.flags.c_contiguous
    assert held.ctypes.data % 64 == 0
    owner = held
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    mapped = owner.obj if isinstance(owner, memoryview) else owner
    assert isinstance(mapped, mmap.mmap) is (held.nbytes >= 1 << 20)
