"""The scale of latent attention against the formula in DeepSeek's own model code."""

import math

import pytest

from rfjax.models.latent_scale import latent_scale


def yarn_get_mscale(scale, mscale):
    return 1.0 if scale <= 1 else 0.1 * mscale * math.log(scale) + 1.0


@pytest.mark.parametrize("mscale_all_dim", [0.707, 1.0])  # DeepSeek V2, and V2 Lite and V3
@pytest.mark.parametrize("factor", [0.5, 1.0, 4.0, 40.0])
def test_it_is_deepseeks(factor, mscale_all_dim):
    expected = 192**-0.5 * yarn_get_mscale(factor, mscale_all_dim) ** 2
    scale = latent_scale(192, scaling="yarn", factor=factor, log_multiplier=0.1 * mscale_all_dim)
    assert scale == pytest.approx(expected, rel=1e-15)


def test_deepseek_v3():
    """40 times 4096 tokens, mscale_all_dim 1: the square of 1.3689 over the root of 192."""
    scale = latent_scale(192, scaling="yarn", factor=40.0, log_multiplier=0.1)
    assert scale == pytest.approx(1.3688879454113936**2 / 192**0.5, rel=1e-15)


def test_the_attention_factor_multiplies_queries_and_keys():
    plain = latent_scale(64, scaling="yarn", factor=4.0, log_multiplier=0.07)
    other = latent_scale(64, scaling="yarn", factor=4.0, log_multiplier=0.07, attention_factor=1.5)
    assert other == pytest.approx(2.25 * plain, rel=1e-15)


@pytest.mark.parametrize(
    ("scaling", "log_multiplier", "expected"),
    [
        ("yarn", 0.0, 0.32411924819517657),
        ("linear", 0.0, 0.32411924819517657),
        ("linear", 0.07, 0.3900768960150711),
        ("none", 0.07, 0.25),
    ],
)
def test_other_files_as_llama_cpp_reads_them(scaling, log_multiplier, expected):
    """With these its logits of a small random model are met at a normalised error of 2e-12."""
    scale = latent_scale(16, scaling=scaling, factor=4.0, log_multiplier=log_multiplier)
    assert scale == pytest.approx(expected, rel=1e-15)
