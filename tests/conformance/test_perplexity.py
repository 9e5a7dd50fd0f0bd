"""llama-perplexity's numbers on a trained model, and its 200 greedy tokens."""

import json

import pytest

import rfjax


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


def test_greedy_tokens(folder, llm):
    golden = json.loads((folder / "stories260K-greedy.json").read_text())
    n = len(golden["ids"]) - 1
    params = rfjax.SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True)
    output = llm.generate([golden["ids"][:1]], params)[0]
    assert output.token_ids == golden["ids"][1:]
    assert output.text.strip() == golden["expected_text"].strip()
    assert -sum(output.logprobs) / n == pytest.approx(golden["mean_nll"], rel=1e-3)
