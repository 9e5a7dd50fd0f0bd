"""HellaSwag, WinoGrande and multiple choice with the bundled model: llama-perplexity's lines."""

import json
import pathlib
import types

import pytest
from support.choice_goldens import (
    FOLDER,
    InventedScorer,
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
from rfjax.errors import RequestError
from rfjax.evals.scoring.scorer import Scorer
from rfjax.evals.tasks.multiple_choice_file import write_multiple_choice

BUNDLED = pathlib.Path(__file__).parents[1] / "examples" / "models" / "shakespeare.gguf"
PLAIN = TaskSettings(512, quiet=True)


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
    run_hellaswag(lambda: llm, FOLDER / "hellaswag.txt", n_tasks, PLAIN)
    out, err = capsys.readouterr()
    assert_as_printed(out, golden)
    assert not err


@pytest.mark.parametrize("n_tasks, golden", [(0, "winogrande.out"), (100, "winogrande-100.out")])
def test_winogrande_is_llama_perplexitys(llm, capsys, n_tasks, golden):
    run_winogrande(lambda: llm, FOLDER / "winogrande.csv", n_tasks, PLAIN)
    out, err = capsys.readouterr()
    assert_as_printed(out, golden)
    assert "last line is not read" in err


@pytest.mark.parametrize(
    "n_tasks, golden", [(0, "multiple_choice.out"), (40, "multiple_choice-40.out")]
)
def test_multiple_choice_is_llama_perplexitys(llm, binary, capsys, n_tasks, golden):
    run_multiple_choice(lambda: llm, binary, n_tasks, PLAIN)
    assert_as_printed(capsys.readouterr().out, golden)


def test_json_has_every_task(llm, capsys):
    path = FOLDER / "hellaswag.txt"
    run_hellaswag(lambda: llm, path, 12, TaskSettings(512, json=True))
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
    run_winogrande(
        lambda: llm, FOLDER / "winogrande.csv", 0, TaskSettings(512, json=True, quiet=True)
    )
    outcomes = json.loads(capsys.readouterr().out)["outcomes"]
    assert outcomes[24]["scores"] == [None, None] and outcomes[24]["choice"] == 1


def test_tasks_that_do_not_fit_are_named_and_counted(llm, capsys, tmp_path):
    lines = (FOLDER / "hellaswag.txt").read_text(encoding="utf-8").split("\n")
    lines[6 * 4 + 2] += " and so on" * 200  # more than the model's context
    lines[6 * 7 + 5] += " and so on" * 80  # more than 256 with the other endings
    path = tmp_path / "long.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    run_hellaswag(lambda: llm, path, 400, TaskSettings(32, quiet=True))
    out, err = capsys.readouterr()
    assert out.count("%]\n") == 28
    assert "task 5 (line 25): left out, as it needs a context of " in err
    assert "task 8 (line 43): left out, as its choices take " in err
    assert "2 of 30 tasks are too long and not counted in the score" in err


@pytest.mark.parametrize(
    "command, data, message",
    [
        (run_multiple_choice, None, r"tasks: cannot be read \(No such file"),
        (run_multiple_choice, b"abc", "tasks"),
        (run_hellaswag, b"one line\n", "tasks"),
        (run_winogrande, b"a,b\n\n", "tasks"),
    ],
)
def test_a_bad_file_is_refused_before_the_model_is_loaded(tmp_path, command, data, message):
    def load():
        raise AssertionError("the model is loaded")

    path = tmp_path / "tasks"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(RequestError, match=message):
        command(load, path, 0, PLAIN)


@pytest.mark.parametrize(
    "command, file",
    [
        (run_hellaswag, "hellaswag.txt"),
        (run_winogrande, "winogrande.csv"),
        (run_multiple_choice, None),
    ],
)
def test_an_interrupted_run_goes_on_from_its_journal(llm, binary, capsys, tmp_path, command, file):
    path, said = binary if file is None else FOLDER / file, []

    def run(scorer, n_tasks, **settings):
        """What is printed."""
        own = types.SimpleNamespace(model=llm.model, tokenizer=llm.tokenizer, scorer=lambda: scorer)
        try:
            command(lambda: own, path, n_tasks, TaskSettings(512, **settings))
        finally:
            printed = capsys.readouterr()
            said.append(printed.err)
        return printed.out, printed.err.splitlines()[-1:]

    whole = InventedScorer()
    expected, (last,) = run(whole, 12)
    assert "tasks/s" in last
    kept = {"journal": tmp_path / "tasks.jsonl"}
    first, second, third = InventedScorer(most=15), InventedScorer(), InventedScorer(most=0)
    with pytest.raises(KeyboardInterrupt):
        run(first, 12, **kept)
    assert "tasks.jsonl holds 15 results, from which the same command goes on" in said[-1]
    out, (last,) = run(second, 12, **kept)
    assert out == expected
    assert "the journal's likelihoods not computed again" in last
    assert len(first.asked) == 15
    assert sorted(first.asked + second.asked, key=repr) == sorted(whole.asked, key=repr)
    assert run(third, 12, **kept)[0] == expected  # all is there
    more = InventedScorer()
    run(more, 20, **kept)  # more tasks of the same file
    assert more.asked and not set(more.asked) & set(whole.asked)


def test_a_journal_of_another_file_is_refused(llm, capsys, tmp_path):
    own = types.SimpleNamespace(
        model=llm.model, tokenizer=llm.tokenizer, scorer=lambda: InventedScorer()
    )
    settings = TaskSettings(512, quiet=True, journal=tmp_path / "tasks.jsonl")
    run_hellaswag(lambda: own, FOLDER / "hellaswag.txt", 4, settings)
    with pytest.raises(RequestError, match="it is about another evaluation"):
        run_winogrande(lambda: own, FOLDER / "winogrande.csv", 4, settings)


def test_a_model_without_tokenizer_is_refused(llm):
    without = types.SimpleNamespace(model=llm.model, tokenizer=None, scorer=llm.scorer)
    with pytest.raises(RequestError, match="has no tokenizer, and tasks are texts"):
        run_hellaswag(lambda: without, FOLDER / "hellaswag.txt", 4, PLAIN)
