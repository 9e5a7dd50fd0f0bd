"""`rfjax eval`: task files and YAML tasks without a network, results, checks, journals."""

import hashlib
import json
import re
import socket
import subprocess
import sys

import pytest
from support.command_line import loading_once, runner
from support.tiny_model import tiny_llama

pytestmark = pytest.mark.quick_compile

DOCUMENTS = {
    "choices": [
        {"context": "The cat", "choices": [" sat", " ran away"], "answer": 0},
        {"context": "long " * 40, "choices": ["er", "est"], "answer": 1},
    ],
    "questions": [
        {"question": "Who?", "choices": ["I", "you"], "answer": 0},
        {"question": "What?", "choices": ["a", "b"], "answer": 0},
    ],
    "continuations": [{"context": "One", "continuation": " two"}],
    "texts": [{"text": "One two three."}, {"text": "Four."}],
    "generations": [{"prompt": "One", "until": ["\n"], "target": "two"}],
}
GENERATED = ("--gen_kwargs", "max_gen_toks=2")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return tiny_llama(folder / "tiny.gguf", n_layers=1, context_length=64)


@pytest.fixture(scope="module")
def open_model():
    return loading_once()


@pytest.fixture
def rfjax(open_model, monkeypatch, tmp_path):
    """The command line in an empty folder, where the network is out of reach."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"the network is asked: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    return runner(open_model, monkeypatch)


@pytest.fixture
def files(tmp_path):
    paths = {}
    for name, documents in DOCUMENTS.items():
        paths[name] = tmp_path / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(one) + "\n" for one in documents))
    return paths


def written(folder):
    (path,) = folder.glob("**/results_*.json")
    return path


def test_task_files_of_all_forms(rfjax, model, files, tmp_path):
    tasks = ",".join(map(str, files.values()))
    out = tmp_path / "out"
    flags = (*GENERATED, "--output_path", out, "--log_samples", "--bootstrap-iters", 20)
    code, stdout, stderr = rfjax("eval", model, "--tasks", tasks, *flags)
    assert code == 0
    assert stdout.startswith(f"rfjax ({model}), gen_kwargs: ({{'max_gen_toks': 2}}), limit: None")
    for metric in ("acc_norm", "perplexity", "bits_per_byte", "exact_match"):
        assert f"|{metric}" in stdout
    assert "choices: 1 documents did not fit in the context" in stderr
    assert f"written to {written(out)}" in stderr
    results = json.loads(written(out).read_text())
    assert results["n_truncated"] == {name: int(name == "choices") for name in DOCUMENTS}
    assert results["n-samples"]["texts"] == {"original": 2, "effective": 2}
    assert results["provenance"]["weights"]["file"] == model.name
    assert "lm-eval" in results["provenance"]["versions"]
    assert results["rfjax"]["arguments"]["tasks"] == [*map(str, files.values())]
    (samples,) = out.glob("**/samples_choices_*.jsonl")
    first = json.loads(samples.read_text().splitlines()[0])
    assert first["doc"]["choices"] == [" sat", " ran away"]


def test_git_does_not_complain_outside_of_repositories(
    rfjax, model, files, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    code, stdout, stderr = rfjax("eval", model, "--tasks", files["continuations"], "--json", "-q")
    assert code == 0
    assert json.loads(stdout)["git_hash"] is None
    assert "fatal" not in stderr + capfd.readouterr().err


def test_a_result_is_checked(rfjax, model, files, tmp_path):
    code, stdout, _ = rfjax("eval", model, "--tasks", files["texts"], "--json", "-q")
    result = json.loads(stdout)
    assert code == 0
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result))
    assert rfjax("eval", "--check", path)[:2] == (0, "reproduced: texts\n")
    result["results"]["texts"]["bits_per_byte,none"] += 1e-9
    result["provenance"]["versions"]["jax"] = "0.0.1"
    path.write_text(json.dumps(result))
    assert rfjax("eval", "--check", path)[0] == 0  # another version may round otherwise
    result["results"]["texts"]["bits_per_byte,none"] += 1
    path.write_text(json.dumps(result))
    code, stdout, _ = rfjax("eval", model, "--check", path)
    assert code == 1
    assert "figure: task texts.bits_per_byte,none: " in stdout
    assert "circumstance: versions.jax: '0.0.1', now " in stdout
    code, _, stderr = rfjax("eval", "--check", path, "--limit", 3)
    assert code == 2
    assert "--check: got --limit 3 besides" in stderr
    code, _, stderr = rfjax("eval", model, "--check", path, "--dtype", "float16", "--limit", 3)
    assert "--check: got --dtype --limit 3 besides" in stderr


def test_a_check_computes_anew(rfjax, model, files, tmp_path, monkeypatch):
    from rfjax.evals.harness.lm_eval_model import RfjaxLM

    journal, path = tmp_path / "journal.jsonl", tmp_path / "result.json"
    run = ("eval", model, "--tasks", files["texts"], "--json", "-q", "--journal", journal)
    path.write_text(rfjax(*run)[1])
    code, _, stderr = rfjax("eval", "--check", path, "--journal", journal)
    assert code == 2
    assert "it is about another evaluation" in stderr and "check: (not there), now '" in stderr
    own = tmp_path / "check.jsonl"
    check = ("eval", "--check", path, "--journal", own)
    with monkeypatch.context() as patch:

        def interrupted(self, requests, disable_tqdm=False):
            raise KeyboardInterrupt

        patch.setattr(RfjaxLM, "loglikelihood_rolling", interrupted)
        code, _, stderr = rfjax(*check)
    assert code == 130
    assert f"the journal {own} holds 0 results" in stderr
    assert rfjax(*check)[:2] == (0, "reproduced: texts\n")
    assert len(own.read_text().splitlines()) == len(journal.read_text().splitlines()) + 1
    code, _, stderr = rfjax(*check)
    assert code == 2
    assert f"the journal {own} is that of a check that came to its end" in stderr


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("rfjax.options", None, "it has no rfjax.options"),
        ("rfjax.options.dtype", None, "it has no rfjax.options.dtype"),
        ("rfjax.model", "null", "rfjax.model is null, expected a text"),
        ("rfjax.arguments", "[1]", "rfjax.arguments is [1], expected an object"),
        ("rfjax.bootstrap_iters", "true", "rfjax.bootstrap_iters is true, expected an integer"),
        ("rfjax.options.max_context", '"a"', "expected an integer or null"),
        ("rfjax.options.implementation", '"cuda"', "is 'cuda', expected one of auto, xla, pallas"),
        ("results", "[]", "results is [], expected an object"),
        ("results.texts", "3", "results.texts is 3, expected an object"),
        ("n-samples", "3", "n-samples is 3, expected an object"),
        ("provenance.settings", "[]", "provenance.settings is [], expected an object"),
    ],
)
def test_a_damaged_result_is_named_with_what_is_wrong(rfjax, tmp_path, entry, value, message):
    options = {"dtype": None, "weights": None, "tensor_parallel": 1, "data_parallel": 1}
    options |= {"implementation": "auto", "selfcheck": None, "max_context": None}
    run = {"model": "m.gguf", "arguments": {"tasks": ["none.jsonl"]}, "options": options}
    run |= {"batch_invariant": True, "bootstrap_iters": 0}
    result = {"provenance": {"weights": {}, "settings": {}}, "rfjax": run, "results": {}}
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result))
    assert "none.jsonl: cannot be read" in rfjax("eval", "--check", path)[2]  # as far as that
    *outer, last = entry.split(".")
    holder = result
    for key in outer:
        holder = holder[key]
    if value is None:
        del holder[last]
    else:
        holder[last] = json.loads(value)
    path.write_text(json.dumps(result))
    code, _, stderr = rfjax("eval", "--check", path)
    assert code == 2
    assert f"{path} is damaged: " in stderr
    assert message in stderr


def test_the_newest_result_of_a_folder_is_named(rfjax, tmp_path):
    for name in ("b/results_2026-01-01T00-00-00.json", "a/results_2026-01-02T00-00-00.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{}")
    code, _, stderr = rfjax("eval", "--check", tmp_path)
    assert code == 2
    assert f"of which the newest is {tmp_path}/a/results_2026-01-02T00-00-00.json" in stderr


def test_another_file_is_another_measurement(rfjax, model, files, tmp_path):
    path = tmp_path / "result.json"
    path.write_text(rfjax("eval", model, "--tasks", files["texts"], "--json", "-q")[1])
    with files["texts"].open("a") as file:
        file.write(json.dumps({"text": "More."}))
    code, stdout, _ = rfjax("eval", "--check", path)
    assert code == 1
    assert "measured: settings.lm_eval.tasks[0].texts: " in stdout
    assert "figure: task texts.n-samples.original: 2, now 3" in stdout


def test_an_interrupted_evaluation_goes_on(rfjax, model, files, tmp_path, monkeypatch):
    from rfjax.evals.harness.lm_eval_model import RfjaxLM

    journal = tmp_path / "journal.jsonl"
    tasks = ("--tasks", files["choices"], "--tasks", files["generations"], *GENERATED)
    arguments = ("eval", model, *tasks, "--journal", journal, "--json", "-q")
    with monkeypatch.context() as patch:

        def interrupted(self, requests, disable_tqdm=False):
            raise KeyboardInterrupt

        patch.setattr(RfjaxLM, "generate_until", interrupted)
        code, _, stderr = rfjax(*arguments)
    assert code == 130
    assert f"interrupted: the journal {journal} holds 4 results, from which" in stderr
    half = len(journal.read_text().splitlines())
    assert half == 1 + 4
    code, stdout, _ = rfjax(*arguments)
    assert (code, len(journal.read_text().splitlines())) == (0, half + 1)
    again = rfjax(*arguments)[1]
    assert json.loads(again)["results"] == json.loads(stdout)["results"]
    assert len(journal.read_text().splitlines()) == half + 1


def test_yaml_tasks_with_local_data(rfjax, model, files, tmp_path, monkeypatch):
    import functools

    import datasets.config
    import lm_eval.tasks

    # lm-eval's own tasks take seconds to find, and none is asked for.
    small = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", small)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {files['questions']}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: '{{question}}'\n"
        "doc_to_choice: choices\ndoc_to_target: answer\n"
    )
    for tasks in (("mine", "--include_path", folder), (folder / "mine.yaml",)):
        code, stdout, _ = rfjax("eval", model, "--tasks", *tasks, "--limit", 1, "--num_fewshot", 0)
        assert code == 0
        assert "|mine " in stdout and "acc_norm" in stdout
    named = ("eval", model, "--tasks", "mine", "--include_path", folder, "--limit", 1, "--json")
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_text(rfjax(*named, "-q")[1])
    data = files["questions"].read_text()
    files["questions"].write_text(data.replace("Who", "Why"))
    after.write_text(rfjax(*named, "-q")[1])
    told = [json.loads(path.read_text())["provenance"]["settings"] for path in (before, after)]
    own = [settings["lm_eval"]["tasks"][0]["mine"] for settings in told]
    assert own[0].keys() == own[1].keys() == {"mine.yaml", "questions.jsonl"}
    assert own[0]["mine.yaml"] == own[1]["mine.yaml"]
    assert own[0]["questions.jsonl"] == hashlib.sha256(data.encode()).hexdigest()
    code, stdout, _ = rfjax("eval", "--check", before)
    assert code == 1
    assert "measured: settings.lm_eval.tasks[0].mine.questions.jsonl: " in stdout
    code, _, stderr = rfjax("eval", model, "--tasks", "not_there", "--include_path", folder)
    assert code == 2
    assert "Tasks not found: not_there" in stderr


def test_data_that_are_not_to_be_had(rfjax, model, files, monkeypatch):
    import rfjax.evals.harness.lm_eval_run as lm_eval_run

    def unreachable(**arguments):
        raise ConnectionError("Couldn't reach 'them' on the Hub")

    monkeypatch.setattr(lm_eval_run, "simple_evaluate", unreachable)
    code, _, stderr = rfjax("eval", model, "--tasks", files["texts"])
    assert code == 2
    assert "Couldn't reach 'them' on the Hub" in stderr
    assert "give a task file" in stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "got no tasks, expected --tasks"),
        (("--tasks", "none.jsonl"), "none.jsonl: cannot be read"),
        (("--tasks", "bad.jsonl"), "bad.jsonl, line 2: text: got 3, expected a text"),
        (("--tasks", "texts.jsonl,a/texts.jsonl"), "two tasks are named texts"),
        (("--tasks", "texts.jsonl", "--nope"), "lm-eval's flags: unrecognized arguments: --nope"),
        (("--tasks", "texts.jsonl", "--limit", "x"), "invalid float value: 'x'"),
        (("--tasks", "texts.jsonl", "--model", "hf"), "--model is not used with rfjax"),
        (("--tasks", "texts.jsonl", "--use_cache", "c"), "--use_cache is not used .*--journal"),
        (("--tasks", "texts.jsonl", "--cache_requests"), "an older task file of the same name"),
        (("--tasks", "texts.jsonl", "--config", "c.yaml"), "use_cache is not used .*--journal"),
        (("--tasks", "texts.jsonl", "--num_fewshot", "1"), "texts.jsonl: got --num_fewshot 1, exp"),
        (
            ("--tasks", "texts.jsonl", "--num_fewshot", "-1"),
            "num_fewshot: got -1, expected an integer",
        ),
        (("--tasks", "texts.jsonl", "--log_samples"), "lm-eval: Specify --output_path"),
        (("--check", "texts.jsonl"), "expected a JSON object that rfjax wrote"),
        (("--check", "result.json"), "expected a result that rfjax eval wrote"),
        (("--check", "a"), "a is a folder: expected one result in it, and it has none"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(rfjax, files, tmp_path, arguments, message):
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": 3}\n')
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "texts.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "result.json").write_text('{"provenance": {}}')
    (tmp_path / "c.yaml").write_text("use_cache: c\n")
    code, stdout, stderr = rfjax("eval", "none.gguf", *arguments)
    assert (code, stdout) == (2, "")
    assert re.search(message, " ".join(stderr.split()))


def test_the_model_comes_first(rfjax):
    code, _, stderr = rfjax("eval", "--limit", "3", "model.gguf")
    assert code == 2
    assert "the model stands before all flags" in stderr
    code, _, stderr = rfjax("eval", "--tasks", "a.jsonl")
    assert code == 2
    assert "give a GGUF file, or --check" in stderr


def test_without_lm_eval_it_says_how_to_install_it(rfjax, monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "lm_eval" or "lm_eval_" in n]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, _, stderr = rfjax("eval", "model.gguf", "--tasks", "a.jsonl")
    assert code == 2
    assert 'pip install "rfjax[eval]"' in stderr


def test_the_help_imports_no_lm_eval():
    code = (
        "import sys, typer.testing, rfjax.cli.app as a\n"
        "assert typer.testing.CliRunner().invoke(a.app, ['eval', '--help']).exit_code == 0\n"
        "print(sorted({'jax', 'lm_eval', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
