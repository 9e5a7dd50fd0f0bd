"""HellaSwag, WinoGrande and multiple choice of stories260K, as llama-perplexity prints them."""

import io
import types
from contextlib import redirect_stdout

import pytest
from support.choice_goldens import (
    FOLDER,
    RememberingScorer,
    assert_as_printed,
    multiple_choice_items,
)

import rfjax
from rfjax.cli.choice_tasks import (
    TaskSettings,
    run_hellaswag,
    run_multiple_choice,
    run_winogrande,
)
from rfjax.evals.scoring.scorer import Scorer
from rfjax.evals.tasks.multiple_choice_file import write_multiple_choice


@pytest.fixture(scope="module")
def printed(conformance):
    """Runs one of the commands, which score nothing twice; gives what it printed."""
    path = conformance / "perplexity" / "stories260K.gguf"
    model = rfjax.LLM(path, compilation_cache=False)
    scorer = RememberingScorer(Scorer(model.model, step_tokens=64, cache_tokens=8192))
    llm = types.SimpleNamespace(model=model.model, tokenizer=model.tokenizer, scorer=lambda: scorer)

    def run(command, path, n_tasks):
        with redirect_stdout(io.StringIO()) as out:
            command(lambda: llm, path, n_tasks, TaskSettings(512, quiet=True))
        return out.getvalue()

    return run


def test_hellaswag(printed, conformance):
    """The folder's figure, and every line before it."""
    path = conformance / "perplexity" / "hellaswag-200.txt"
    out = printed(run_hellaswag, path, 200)
    assert "200\t23.50000000%\t[18.1574%, 29.8414%]\n" in out
    assert_as_printed(out, "stories260K-hellaswag.out")
    assert_as_printed(printed(run_hellaswag, path, 50), "stories260K-hellaswag-50.out")


def test_winogrande(printed):
    out = printed(run_winogrande, FOLDER / "winogrande.csv", 0)
    assert_as_printed(out, "stories260K-winogrande.out")


def test_multiple_choice(printed, tmp_path):
    path = tmp_path / "tasks.bin"
    path.write_bytes(write_multiple_choice(multiple_choice_items()))
    assert_as_printed(printed(run_multiple_choice, path, 0), "stories260K-multiple_choice.out")
