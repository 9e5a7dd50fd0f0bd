"""Task files as lm-eval has them: what is compared, and how many examples there are."""

import json

import pytest

from rfjax.errors import RequestError
from rfjax.evals.harness.local_tasks import load_local_task


@pytest.fixture
def task(tmp_path):
    def load(*documents):
        path = tmp_path / "task.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in documents))
        return load_local_task(path)

    return load


@pytest.mark.parametrize("target", ["x", " x ", "x\n", "[1, 2]", " 3"])
def test_white_space_around_a_target_does_not_count(task, target):
    own = task({"prompt": "?", "target": target})
    (document,) = own.test_docs()
    assert own.process_results(document, [target.strip()])["exact_match"] == 1
    assert own.process_results(document, [target.strip() + "."])["exact_match"] == 0
    assert document["target"] == target


@pytest.mark.parametrize("text", [("a", "b", "c", "d"), ("a", "b", "a", "c", "b")])
def test_as_many_examples_as_other_documents(task, text):
    own = task(*({"context": one, "continuation": "x"} for one in text))
    most = len(text) - max(map(text.count, text))
    own.set_config(key="num_fewshot", value=most)
    own.set_fewshot_seed(1)
    own.check_examples(most)
    for document in own.test_docs():
        assert own.fewshot_context(document, num_fewshot=most).count("x") == most
    with pytest.raises(
        RequestError, match=f"got --num_fewshot {most + 1}, expected at most {most}"
    ):
        own.check_examples(most + 1)
    with pytest.raises((ValueError, AssertionError)):
        [own.fewshot_context(document, num_fewshot=most + 1) for document in own.test_docs()]
