"""A trained model that travels with the project: llama-perplexity's numbers, and sane text."""

import pathlib

import pytest

import rfjax

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "examples" / "models"


@pytest.fixture(scope="module")
def llm():
    return rfjax.LLM(FOLDER / "shakespeare.gguf", compilation_cache=False)


@pytest.mark.parametrize(
    "n_ctx, chunks, expected, stderr", [(256, None, 24.8748, 0.59704), (512, 6, 15.1081, 0.95887)]
)
def test_perplexity_is_llama_perplexitys(llm, n_ctx, chunks, expected, stderr):
    """Goldens: llama-perplexity -c N -ctk f32 -ctv f32 -fa off (--chunks 6), same file and text."""
    text = (FOLDER / "shakespeare-heldout.txt").read_text(encoding="utf-8").removesuffix("\n")
    result = llm.perplexity(text, n_ctx=n_ctx, chunks=chunks)
    assert result.perplexity == pytest.approx(expected, abs=5e-4)
    assert result.stderr == pytest.approx(stderr, abs=5e-5)


def test_text_is_tokenized_without_loss(llm):
    text = (FOLDER / "shakespeare-heldout.txt").read_text(encoding="utf-8")
    assert llm.tokenizer.decode(llm.tokenizer.encode(text)) == text


def test_it_writes_in_the_form_of_a_play(llm):
    params = rfjax.SamplingParams(temperature=0.0, max_tokens=120)
    text = llm.generate("KING RICHARD:\n", params)[0].text
    assert text.count("\n\n") >= 1
    assert any(line.isupper() and line.endswith(":") for line in text.splitlines())
