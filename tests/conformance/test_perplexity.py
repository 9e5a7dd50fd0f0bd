"""llama-perplexity's numbers on a trained model, its file of a base, and 200 greedy tokens."""

import json

import numpy as np
import pytest

import rfjax
from rfjax.evals.kl.against_file import kl_divergence, write_kl_base
from rfjax.evals.kl.kl_base_file import reading
from rfjax.evals.strided import strided_perplexity


@pytest.fixture(scope="module")
def folder(conformance):
    return conformance / "perplexity"


@pytest.fixture(scope="module")
def text(folder):
    return (folder / "shakespeare-60k.txt").read_text(encoding="utf-8").removesuffix("\n")


@pytest.fixture(scope="module")
def llm(folder):
    return rfjax.LLM(folder / "stories260K.gguf", compilation_cache=False)


@pytest.mark.parametrize(
    "n_ctx, expected, stderr", [(128, 106.5195, 2.81975), (256, 99.1474, 2.57813)]
)
def test_f32_perplexity(llm, text, n_ctx, expected, stderr):
    result = llm.perplexity(text, n_ctx=n_ctx)
    assert result.perplexity == pytest.approx(expected, abs=1e-3)
    assert result.stderr == pytest.approx(stderr, abs=1e-4)
    if n_ctx == 256:
        assert result.n_chunks == 144
        assert result.running[:4] == pytest.approx([45.8386, 48.2457, 48.6809, 52.2548], abs=5e-4)


@pytest.mark.parametrize(
    "name, n_ctx, expected",
    [
        ("Q8_0", 128, 106.5369),
        ("Q4_0", 256, 100.0863),
        ("Q5_1", 128, 104.7488),
        ("IQ4_NL", 256, 96.4752),
    ],
)
def test_quantized_perplexity(folder, text, name, n_ctx, expected):
    """llama.cpp rounds activations to 8 bits here, which is worth up to 0.2%."""
    llm = rfjax.LLM(folder / f"stories260K-{name}.gguf", compilation_cache=False)
    assert llm.perplexity(text, n_ctx=n_ctx).perplexity == pytest.approx(expected, rel=3e-3)


@pytest.fixture(scope="module")
def short_text(folder):
    return (folder / "shakespeare-24k.txt").read_text(encoding="utf-8").removesuffix("\n")


def test_perplexity_with_a_stride(llm, short_text):
    """llama-perplexity -c 128 -b 128 --ppl-stride 64."""
    result = strided_perplexity(llm.model, short_text, n_ctx=128, stride=64)
    assert len(result.running) == 229
    assert result.running[-1] == pytest.approx(100.0750, abs=1e-3)
    assert result.running[:3] == pytest.approx([40.3608, 41.4642, 46.6841], abs=1e-3)


def test_a_quantized_model_beside_its_base(folder):
    """llama.cpp rounds activations to 8 bits here, which moves single tokens more than means."""
    llm = rfjax.LLM(folder / "stories260K-Q4_0.gguf", compilation_cache=False)
    found = kl_divergence(llm.model, folder / "stories260K-base.kld").summary
    for figure, value, error in (
        (found.ppl, 94.322044, 3.782783),
        (found.ppl_base, 93.690611, 3.788489),
        (found.kld, 0.164106, 0.002865),
        (found.p_diff_rms, 0.07643, 0.00211),
        (found.same_top, 0.71935, 0.00526),
    ):
        assert figure.value == pytest.approx(value, rel=1e-2)
        assert figure.error == pytest.approx(error, rel=1e-2)
    assert found.kld_percentiles[50.0] == pytest.approx(0.096111, rel=1e-2)
    assert found.kld_percentiles[99.0] == pytest.approx(1.214199, rel=2e-2)
    assert found.kld_percentiles[100.0] == pytest.approx(5.278174, rel=1e-2)


def test_the_base_beside_its_own_file(folder, llm):
    found = kl_divergence(llm.model, folder / "stories260K-base.kld")
    assert (found.n_chunks, found.n_ctx) == (116, 128)
    summary = found.summary
    assert abs(summary.kld.value) <= 1e-5
    assert summary.kld_percentiles[100.0] == pytest.approx(5.6e-5, abs=1e-5)
    assert summary.ppl.value == pytest.approx(94.431792, abs=1e-3)
    assert summary.ppl_base.value == pytest.approx(93.690611, abs=1e-4)
    assert summary.same_top.value == pytest.approx(0.99973, abs=3e-4)


def test_a_base_file_is_llama_perplexitys(folder, llm, short_text, tmp_path):
    """The same but for codes next to a half, where a logit's last bits decide.

    llama-perplexity's own files of one model differ by as much from machine to machine.
    """
    path = tmp_path / "base.kld"
    result = write_kl_base(llm.model, short_text, path, n_ctx=128)
    assert result.perplexity == pytest.approx(94.431792, abs=1e-3)
    with reading(path) as (ours, chunks), reading(folder / "stories260K-base.kld") as (base, its):
        np.testing.assert_array_equal(ours.tokens, base.tokens)
        assert (ours.n_vocab, ours.nbytes) == (base.n_vocab, base.nbytes)
        found, expected = np.concatenate(list(chunks)), np.concatenate(list(its))
    numbers, wanted = (codes[:, :4].copy().view(np.float32) for codes in (found, expected))
    np.testing.assert_allclose(numbers, wanted, rtol=2e-6)
    apart = np.abs(found[:, 4:].astype(int) - expected[:, 4:])
    assert apart.max() <= 1
    assert (apart > 0).mean() < 0.01


def test_greedy_tokens(folder, llm):
    golden = json.loads((folder / "stories260K-greedy.json").read_text())
    n = len(golden["ids"]) - 1
    params = rfjax.SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True)
    output = llm.generate([golden["ids"][:1]], params)[0]
    assert output.token_ids == golden["ids"][1:]
    assert output.text.strip() == golden["expected_text"].strip()
    assert -sum(output.logprobs) / n == pytest.approx(golden["mean_nll"], rel=1e-3)
