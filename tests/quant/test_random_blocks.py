"""Random blocks of every type: finite, centred, of the deviation asked for, and random."""

import numpy as np
import pytest

from rfjax.quant.formats import FORMATS, dequantize_numpy
from rfjax.quant.random_blocks import with_scales

QUANTIZED = [type for type, row in FORMATS.items() if row.unpack is not None]


@pytest.mark.parametrize("type", QUANTIZED, ids=lambda type: type.name)
@pytest.mark.parametrize("deviation", [1.0, 0.005])
def test_values_are_of_the_deviation_asked_for(type, deviation):
    rng = np.random.default_rng(1)
    raw = rng.integers(0, 256, (2000, FORMATS[type].block_bytes), dtype=np.uint8)
    blocks = with_scales(raw, type, deviation)
    assert blocks.dtype == np.uint8
    values = dequantize_numpy(blocks, type, (blocks.shape[0], FORMATS[type].block_elements))
    assert np.isfinite(values).all()
    found = np.std(values, dtype=np.float64) / deviation
    if type.name in ("MXFP4", "NVFP4"):  # their scales are few
        assert 2**-0.55 < found < 2**0.55
    else:
        assert found == pytest.approx(1, rel=0.1)
    assert abs(np.mean(values, dtype=np.float64)) < 0.05 * deviation
    assert len(np.unique(blocks, axis=0)) > 1900
    kept = (blocks == raw).mean(axis=0)
    assert (kept == 1).sum() >= blocks.shape[1] - 8  # no bits but the scales' are touched
