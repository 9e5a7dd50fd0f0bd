"""HellaSwag, WinoGrande and multiple choice with the bundled model: llama-perplexity's lines."""

import json
import pathlib
import types

import pytest
from support.choice_goldens import (
    FOLDER,
    RememberingScorer,
    assert_as_printed,
    multiple_choice_items,
)

import rfjax
from rfjax.cli.choice_tasks import run_hellaswag, run_multiple_choice, run_winogrande
from rfjax.errors import RequestError
from rfjax.evals.multiple_choice_file import write_multiple_choice
from rfjax.evals.scorer import Scorer

BUNDLED = pathlib.Path(__file__).parents[1] / "examples" / "models" / "shakespeare.gguf"


@pytest.fixture(scope="module")
def llm():
    """An LLM as far as the commands need one; nothing is scored twice."""
    model = rfjax.LLM(BUNDLED, compilation_cache=False)
    # Sizes with which the three kinds share most programs.
    scorer = RememberingScorer(Scorer(model.model, step_tokens=64, cache_tokens=8192))
    return types.SimpleNamespace(
        model=model.model, tokenizer=model.tokenizer, scorer=lambda: scorer
    )


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "tasks.bin"
    path.write_bytes(write_multiple_choice(multiple_choice_items()))
    return path


@pytest.mark.parametrize("n_tasks, golden", [(400, "hellaswag.out"), (12, "hellaswag-12.out")])
def test_hellaswag_is_llama_perplexitys(llm, capsys, n_tasks, golden):
    run_hellaswag(llm, FOLDER / "hellaswag.txt", n_tasks, n_ctx=512, json=False, quiet=True)
    out, err = capsys.readouterr()
    assert_as_printed(out, golden)
    assert not err


@pytest.mark.parametrize("n_tasks, golden", [(0, "winogrande.out"), (100, "winogrande-100.out")])
def test_winogrande_is_llama_perplexitys(llm, capsys, n_tasks, golden):
    run_winogrande(llm, FOLDER / "winogrande.csv", n_tasks, n_ctx=512, json=False, quiet=True)
    out, err = capsys.readouterr()
    assert_as_printed(out, golden)
    assert "last line is not read" in err


@pytest.mark.parametrize(
    "n_tasks, golden", [(0, "multiple_choice.out"), (40, "multiple_choice-40.out")]
)
def test_multiple_choice_is_llama_perplexitys(llm, binary, capsys, n_tasks, golden):
    run_multiple_choice(llm, binary, n_tasks, n_ctx=512, json=False, quiet=True)
    assert_as_printed(capsys.readouterr().out, golden)


def test_json_has_every_task(llm, capsys):
    path = FOLDER / "hellaswag.txt"
    run_hellaswag(llm, path, 12, n_ctx=512, json=True, quiet=False)
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["n_tasks"] == len(result["outcomes"]) == 12
    assert result["n_correct"] == sum(one["correct"] for one in result["outcomes"])
    assert result["file"] == str(path) and result["seconds"] > 0
    settings = result["provenance"]["settings"]
    assert settings["n_tasks"] == 12 and settings["n_ctx"] == 512
    assert settings["hellaswag"].startswith("sha256:")
    assert "12 tasks in" in err


def test_scores_that_are_no_numbers_are_null_in_json(llm, capsys):
    run_winogrande(llm, FOLDER / "winogrande.csv", 0, n_ctx=512, json=True, quiet=True)
    outcomes = json.loads(capsys.readouterr().out)["outcomes"]
    assert outcomes[24]["scores"] == [None, None] and outcomes[24]["choice"] == 1


def test_tasks_that_do_not_fit_are_named_and_counted(llm, capsys, tmp_path):
    lines = (FOLDER / "hellaswag.txt").read_text(encoding="utf-8").split("\n")
    lines[6 * 4 + 2] += " and so on" * 200  # more than the model's context
    lines[6 * 7 + 5] += " and so on" * 80  # more than 256 with the other endings
    path = tmp_path / "long.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    run_hellaswag(llm, path, 400, n_ctx=32, json=False, quiet=True)
    out, err = capsys.readouterr()
    assert out.count("%]\n") == 28
    assert "task 5 (line 25): left out, as it needs a context of " in err
    assert "task 8 (line 43): left out, as its choices take " in err
    assert "2 of 30 tasks are too long and not counted in the score" in err


def test_a_file_that_is_not_there_is_named(llm, tmp_path):
    with pytest.raises(RequestError, match=r"none\.bin: cannot be read \(No such file"):
        run_multiple_choice(llm, tmp_path / "none.bin", 0, n_ctx=512, json=False, quiet=True)


def test_a_model_without_tokenizer_is_refused(llm):
    without = types.SimpleNamespace(model=llm.model, tokenizer=None, scorer=llm.scorer)
    with pytest.raises(RequestError, match="has no tokenizer, and tasks are texts"):
        run_hellaswag(without, FOLDER / "hellaswag.txt", 4, n_ctx=512, json=False, quiet=True)
