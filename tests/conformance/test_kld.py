"""A trained model and its quantizations against llama-perplexity's divergences."""

import functools

import pytest

import rfjax
from rfjax.evals.kl.kld import kld
from rfjax.evals.kl.kld_files import kld_files
from rfjax.io.parts import open_parts


@pytest.fixture(scope="module")
def paths(conformance):
    names = ("stories260K.gguf", "stories260K-Q4_0.gguf")
    return [conformance / "perplexity" / name for name in names]


@pytest.fixture(scope="module")
def text(conformance):
    path = conformance / "perplexity" / "shakespeare-24k.txt"
    return path.read_text(encoding="utf-8").removesuffix("\n")


@pytest.fixture(scope="module")
def results(paths, text):
    base, q4 = (rfjax.load(path, weights="packed") for path in paths)
    return kld(base, [q4, base], text, n_ctx=128)


def test_the_base_is_exact(results):
    """llama.cpp's file of the base, with 16 bits and a floor, makes 93.69 of this."""
    assert results[0].summary.ppl_base.value == pytest.approx(94.4318, abs=5e-4)


def test_q4_0_is_where_llama_perplexity_finds_it(results):
    """Its activations of 8 bits and its coding of the base are worth up to 1%."""
    found = results[0].summary
    assert found.kld.value == pytest.approx(0.164106, rel=0.01)
    assert found.kld.error == pytest.approx(0.002865, rel=0.02)
    assert found.kld_percentiles[50.0] == pytest.approx(0.096111, rel=0.01)
    assert found.kld_percentiles[99.0] == pytest.approx(1.214199, rel=0.02)
    assert found.kld_percentiles[100.0] == pytest.approx(5.278174, rel=0.01)
    assert found.p_diff_rms.value == pytest.approx(0.07643, rel=0.01)
    assert found.same_top.value == pytest.approx(0.71935, abs=0.005)


def test_a_model_beside_itself_is_at_no_distance(results):
    itself = results[1].summary
    assert itself.kld_percentiles[100.0] == 0 and itself.same_top.value == 1
    assert itself.ppl == itself.ppl_base


def test_layer_by_layer_nothing_changes(paths, text, results):
    """Not even a bit, in f32 on the CPU."""
    found = kld_files(
        paths[0],
        [paths[1], paths[0]],
        text,
        residency="layers",
        load=functools.partial(rfjax.load, weights="packed"),
        open_parts=functools.partial(open_parts, weights="packed"),
        n_ctx=128,
    )
    assert found == results
