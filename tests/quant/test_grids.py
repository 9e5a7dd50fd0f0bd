import gguf.quants
import numpy as np
import pytest

from rfjax.quant import grids


@pytest.mark.parametrize(
    ("grid", "name", "elements"),
    [
        (grids.IQ1_GRID, "IQ1_S", 8),
        (grids.IQ2_XXS_GRID, "IQ2_XXS", 8),
        (grids.IQ2_XS_GRID, "IQ2_XS", 8),
        (grids.IQ2_S_GRID, "IQ2_S", 8),
        (grids.IQ3_XXS_GRID, "IQ3_XXS", 4),
        (grids.IQ3_S_GRID, "IQ3_S", 4),
    ],
)
def test_grid_is_that_of_the_gguf_package(grid, name, elements):
    reference = getattr(gguf.quants, name)
    reference.init_grid()
    points = reference.grid.reshape(-1, elements)
    width = 2 if elements == 8 else 3
    shifts = np.arange(elements, dtype=np.uint32) * width
    digits = (grid[:, None] >> shifts) & (2**width - 1)
    np.testing.assert_array_equal(np.array(reference.grid_map)[digits], points)
    assert not grid.flags.writeable


def test_even_signs_make_the_number_of_minus_signs_even():
    signs = grids.even_signs(np.arange(128, dtype=np.uint32))
    np.testing.assert_array_equal(signs & 127, np.arange(128))
    assert all(int(code).bit_count() % 2 == 0 for code in signs)
    assert gguf.quants.IQ2_XXS.ksigns == signs.astype(np.uint8).tobytes()


def test_apply_signs_takes_the_lowest_bit_first():
    values = np.arange(1, 9, dtype=np.int8).reshape(1, 1, 8)
    got = grids.apply_signs(values, np.array([[0b1000_0001]], np.uint32))
    assert got.ravel().tolist() == [-1, 2, 3, 4, 5, 6, 7, -8]
