"""The heat map of the bundled model quantized by the script, and of a file beside itself."""

import html
import re

import kld_heat_map
import numpy as np
import pytest

pytestmark = pytest.mark.quick_compile


def test_every_token_is_coloured_by_its_divergence(tmp_path, capsys):
    page = tmp_path / "map.html"
    words, kld = kld_heat_map.main(page, length=64)
    assert len(words) == len(kld) == 63
    assert 0.01 < kld.mean() < 0.5 and (kld >= 0).all()
    found = re.findall(r'/ (\d+)%\)" title="([\d.]+) nats">(.*?)</span>', page.read_text(), re.S)
    assert [html.unescape(word) for _, _, word in found] == words
    np.testing.assert_allclose([float(value) for _, value, _ in found], kld, atol=1e-4)
    assert max(int(share) for share, _, _ in found) == 100
    assert "most at:" in capsys.readouterr().out


def test_rounding_keeps_blocks_within_half_a_step():
    weight = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    blocks = weight.reshape(4, 2, 32)
    error = np.abs(np.asarray(kld_heat_map.rounded(weight)).reshape(4, 2, 32) - blocks)
    step = np.abs(blocks).max(-1, keepdims=True) / 3.5
    assert (error <= 0.5 * step * (1 + 1e-5)).all()
    odd = np.ones((4, 40), np.float32)
    assert kld_heat_map.rounded(odd) is odd
