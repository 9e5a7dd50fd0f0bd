"""Which files a YAML task consists of, and that a change of any is seen."""

import hashlib

import pytest
from lm_eval.tasks import TaskManager

from rfjax.evals.harness.lm_eval_files import task_files

TASK = """include: base
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/data/test.jsonl
    train: [{folder}/data/a*.jsonl]
output_type: multiple_choice
doc_to_text: '{folder} is no file, and https://example.com neither'
process_docs: !function code.processed
"""


@pytest.fixture
def folder(tmp_path):
    files = {
        "base": "test_split: test\n",
        "code.py": "def processed(docs): return docs\n",
        "mine.yaml": "task: mine\ntag: some\n" + TASK.format(folder=tmp_path),
        "sub/other.yaml": "task: other\ntag: [some]\ndataset_path: cais/mmlu\n",
        "sub/again/mine.yaml": "task: again\ndataset_path: json\n",
        "group.yaml": "group: all\ntask:\n- mine\n- group: inner\n  task: [again]\n",
        "unused.yaml": "task: unused\n",
        "data/test.jsonl": "{}\n",
        "data/a1.jsonl": "1\n",
        "data/a2.jsonl": "2\n",
        "data/b.jsonl": "3\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


MINE = ["a1.jsonl", "a2.jsonl", "base", "code.py", "mine.yaml", "test.jsonl"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mine", MINE),
        ("mine.yaml", MINE),
        ("min*", MINE),
        ("other", ["other.yaml"]),
        ("some", sorted([*MINE, "other.yaml"])),
        ("all", sorted([*MINE, "group.yaml", "mine.yaml (2)"])),
        ("sub", ["other.yaml"]),
        ("nothing", []),
    ],
)
def test_files_of_a_task(folder, monkeypatch, name, expected):
    monkeypatch.chdir(folder)
    (folder / "json").mkdir()  # the loader has this name, and no data are here
    (folder / "json" / "c.jsonl").write_text("")
    manager = TaskManager(include_path=folder, include_defaults=False)
    found = task_files(name, manager)
    assert sorted(found) == expected
    if "code.py" in found:
        data = (folder / "code.py").read_bytes()
        assert found["code.py"] == hashlib.sha256(data).hexdigest()


def test_local_data_sets_are_seen(folder):
    (folder / "data.yaml").write_text(f"task: data\ndataset_path: {folder}/data\n")
    (folder / "dir.yaml").write_text(
        f"task: dir\ndataset_path: json\ndataset_kwargs:\n  data_dir: {folder}/data\n"
    )
    manager = TaskManager(include_path=folder, include_defaults=False)
    for name in ("data", "dir"):
        found = task_files(name, manager)
        assert sorted(found) == ["a1.jsonl", "a2.jsonl", "b.jsonl", f"{name}.yaml", "test.jsonl"]
