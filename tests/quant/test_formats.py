"""Every format: NumPy = jitted JAX = the gguf package = ggml, on random bit patterns."""

import hashlib
import pathlib

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfjax.errors import ModelFormatError, UnsupportedError
from rfjax.quant.formats import FORMATS, Format, dequantize, dequantize_numpy, format_of
from rfjax.quant.types import BLOCK_SIZES, GGMLType

BLOCKS = 16  # one shape per format, so that each is compiled once
EVERY_FORMAT = pytest.mark.parametrize("entry", FORMATS.values(), ids=lambda entry: entry.type.name)
QUANTIZED = [entry for entry in FORMATS.values() if entry.unpack is not None]
DIGESTS = dict(
    line.split("\t")
    for line in pathlib.Path(__file__).with_name("ggml_digests.tsv").read_text().splitlines()
)


def canonical(values) -> np.ndarray:
    """Bits of float32 values, with one NaN for all."""
    values = np.asarray(values, np.float32)
    return np.where(np.isnan(values), np.uint32(0x7FC0_0000), values.view(np.uint32))


def shape_of(entry: Format) -> tuple[int, int]:
    return (BLOCKS // 2, 2 * entry.block_elements)


def random_blocks(entry: Format, seed: int) -> np.ndarray:
    size = BLOCKS * entry.block_bytes
    words = np.random.PCG64(seed).random_raw(-(-size // 8))
    return words.astype("<u8").view(np.uint8)[:size].copy()


def decode_both(raw: np.ndarray, entry: Format) -> tuple[np.ndarray, np.ndarray]:
    shape = shape_of(entry)
    in_numpy = dequantize_numpy(raw, entry.type, shape)
    in_jax = dequantize(jnp.asarray(raw), entry.type, shape)
    assert in_numpy.shape == in_jax.shape == shape
    assert in_numpy.dtype == in_jax.dtype == np.float32
    return in_numpy, np.asarray(in_jax)


@EVERY_FORMAT
@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), edits=st.lists(st.tuples(st.integers(0), st.binary())))
def test_numpy_jax_and_the_gguf_package_agree(entry, seed, edits):
    raw = random_blocks(entry, seed)
    for offset, data in edits:
        part = raw[offset % raw.size :][: len(data)]
        part[:] = np.frombuffer(data, np.uint8)[: part.size]
    in_numpy, in_jax = decode_both(raw, entry)
    np.testing.assert_array_equal(canonical(in_jax), canonical(in_numpy))

    # Versions of the package differ in the types they know; integers are no matter of its own.
    known = {item.value: item for item in gguf.GGMLQuantizationType}.get(entry.type)
    if known is None or entry.type.name.startswith(("I8", "I16", "I32", "I64", "F64")):
        return
    rows = raw.reshape(BLOCKS // 2, -1)
    try:
        with np.errstate(all="ignore"):
            reference = gguf.quants.dequantize(rows, known)
    except NotImplementedError:
        return
    np.testing.assert_array_equal(canonical(in_numpy), canonical(reference))


@EVERY_FORMAT
def test_ggml_itself_gives_these_values(entry):
    """`ggml_digests.tsv` was made by ggml 0.25.3's own dequantize_row functions.

    Each line: type, and SHA-256 (32 digits) of its float32 values, NaNs canonical, for 16 blocks
    of the bytes of PCG64 seeded with the type's id.
    """
    if entry.type.name not in DIGESTS:
        assert entry.unpack is None  # ggml has no such function for f32, f64 and integers
        return
    for values in decode_both(random_blocks(entry, int(entry.type)), entry):
        digest = hashlib.sha256(canonical(values).astype("<u4").tobytes()).hexdigest()
        assert digest[:32] == DIGESTS[entry.type.name]


@pytest.mark.parametrize("entry", QUANTIZED, ids=lambda entry: entry.type.name)
def test_unpacked_parts_are_integers_that_make_the_values_in_one_rounding(entry):
    raw = random_blocks(entry, 1).reshape(BLOCKS, -1)
    parts = entry.unpack(raw, np)
    blocks, groups, elements = parts.q.shape
    assert (blocks, groups * elements) == (BLOCKS, entry.block_elements)
    assert parts.q.dtype == np.int8
    assert parts.d.shape == (BLOCKS,)
    assert parts.d.dtype == np.float32
    assert (parts.mins is None) or (parts.dmin is not None)
    for integers in (parts.scales, parts.mins):
        assert integers is None or (integers.shape, integers.dtype) == ((BLOCKS, groups), np.int32)

    with np.errstate(all="ignore"):
        scale = parts.d[:, None].astype(np.float64)
        scale = scale * (1 if parts.scales is None else parts.scales)
        exact = scale[:, :, None] * parts.q
        if parts.dmin is not None:
            low = parts.dmin[:, None].astype(np.float64)
            exact = exact - (low * (1 if parts.mins is None else parts.mins))[:, :, None]
        expected = exact.astype(np.float32).reshape(BLOCKS, -1)
        values = entry.decode(raw, np)
    np.testing.assert_array_equal(canonical(values), canonical(expected))


def test_every_stored_type_has_a_format():
    assert set(GGMLType) - set(FORMATS) == {GGMLType.Q8_1, GGMLType.Q8_K}
    assert set(BLOCK_SIZES) == set(GGMLType)
    for type, entry in FORMATS.items():
        assert entry.type is type
        assert (entry.block_elements, entry.block_bytes) == BLOCK_SIZES[type]


def test_types_and_sizes_are_those_of_the_gguf_package():
    for theirs, sizes in gguf.GGML_QUANT_SIZES.items():
        ours = GGMLType(theirs.value)
        assert ours.name == theirs.name
        if ours is not GGMLType.Q8_1:
            # The package counts Q8_1 with two f32 scales, as ggml had it long ago.
            assert BLOCK_SIZES[ours] == sizes


def test_decoding_inside_a_jitted_function():
    entry = FORMATS[GGMLType.Q4_K]
    raw = random_blocks(entry, 3)
    shape = shape_of(entry)

    @jax.jit
    def double(raw):
        return 2 * dequantize(raw, entry.type, shape)

    expected = 2 * dequantize_numpy(raw, entry.type, shape)
    np.testing.assert_array_equal(canonical(double(jnp.asarray(raw))), canonical(expected))


@pytest.mark.parametrize("shape", [(0,), (0, 256), (3, 0)])
def test_empty_tensors(shape):
    raw = np.zeros(0, np.uint8)
    assert dequantize_numpy(raw, GGMLType.Q4_K, shape).shape == shape
    assert dequantize(jnp.asarray(raw), GGMLType.Q4_K, shape).shape == shape


def test_numpy_decodes_across_its_chunks():
    entry = FORMATS[GGMLType.Q8_0]
    raw = np.random.default_rng(0).integers(0, 256, (5000, entry.block_bytes), dtype=np.uint8)
    whole = dequantize_numpy(raw, entry.type, (5000, 32))
    rows = [dequantize_numpy(raw[row], entry.type, (32,)) for row in (0, 2047, 2048, 4999)]
    np.testing.assert_array_equal(canonical(whole[[0, 2047, 2048, 4999]]), canonical(rows))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_plain_numbers_of_any_rank(shape):
    raw = np.array([1.5], "<f4").view(np.uint8)
    assert dequantize_numpy(raw, GGMLType.F32, shape).shape == shape
    assert dequantize(jnp.asarray(raw), GGMLType.F32, shape).shape == shape


@pytest.mark.parametrize("decode", [dequantize_numpy, dequantize])
@pytest.mark.parametrize(
    ("size", "dtype", "shape", "message"),
    [
        (17, np.uint8, (32,), "Q4_0 tensor of shape (32,): expected 18 bytes as uint8, got 17"),
        (19, np.uint8, (32,), "got 19 items of uint8"),
        (0, np.uint8, (1, 32), "expected 18 bytes"),
        (18, np.int8, (32,), "got 18 items of int8"),
        (18, np.uint8, (2, 16), "multiple of the block of 32 elements, got 16"),
        (18, np.uint8, (), "multiple of the block of 32 elements, got 1"),
    ],
)
def test_a_size_that_does_not_match_is_refused(decode, size, dtype, shape, message):
    with pytest.raises(ModelFormatError) as error:
        decode(np.zeros(size, dtype), GGMLType.Q4_0, shape)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("type", "name"), [(GGMLType.Q8_1, "9 (Q8_1)"), (GGMLType.Q8_K, "15 (Q8_K)"), (31, "31 (unk")]
)
@pytest.mark.parametrize("decode", [dequantize_numpy, dequantize])
def test_a_type_that_no_tensor_has_is_refused_by_name(decode, type, name):
    with pytest.raises(UnsupportedError) as error:
        decode(np.zeros(36, np.uint8), type, (32,))
    assert name in str(error.value)
    assert "Q4_K" in str(error.value)


def test_format_of_takes_the_number_of_the_file():
    assert format_of(12) is FORMATS[GGMLType.Q4_K]
