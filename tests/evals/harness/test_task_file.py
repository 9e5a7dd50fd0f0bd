"""Task files: every form, and damaged lines by their numbers."""

import json

import pytest

from rfjax.errors import RequestError
from rfjax.evals.harness.task_file import is_task_file, read_task_file

CHOICE = {"context": "One, two,", "choices": [" three", " four"], "answer": 0}
QUESTION = {"question": "Who?", "choices": ["I", "you", "she"], "answer": 2}
CONTINUATION = {"context": "", "continuation": " be"}
TEXT = {"text": "A text."}
GENERATION = {"prompt": "1 2", "until": "\n", "target": "3"}


@pytest.fixture
def written(tmp_path):
    def write(*lines, name="my task.jsonl"):
        path = tmp_path / name
        data = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        path.write_bytes(b"\n".join(data) + b"\n")
        return path

    return write


@pytest.mark.parametrize(
    ("document", "output_type"),
    [
        (CHOICE, "multiple_choice"),
        (QUESTION, "multiple_choice"),
        (CONTINUATION, "loglikelihood"),
        (TEXT, "loglikelihood_rolling"),
    ],
)
def test_a_form_is_told_by_its_keys(written, document, output_type):
    task = read_task_file(written(document, {**document, "id": 7, "metadata": {"by": "us"}}))
    assert task.name == "my_task"
    assert task.form.output_type == output_type
    assert task.documents == (document, document)


def test_a_generation_ends_at_one_text_several_or_a_blank_line(written):
    several = {**GENERATION, "until": ["a", "b"]}
    path = written(GENERATION, several, {"prompt": "1", "target": "2"})
    task = read_task_file(path)
    assert [document["until"] for document in task.documents] == [["\n"], ["a", "b"], ["\n\n"]]


def test_a_list_is_read_as_well_and_so_are_empty_lines_and_a_byte_order_mark(written, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([TEXT, TEXT], indent=1))
    assert read_task_file(tmp_path / "a.json").documents == (TEXT, TEXT)
    assert read_task_file(
        written(b"\xef\xbb\xbf" + json.dumps(TEXT).encode(), b" ", TEXT)
    ).documents


def test_what_names_a_file():
    assert is_task_file("tasks/a.jsonl") and is_task_file("a.json")
    assert not is_task_file("hellaswag") and not is_task_file("a.yaml")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", r"line 3: got invalid JSON at column 2 .*, expected an object"),
        (b"\xff", r"line 3: got byte 0xff, expected UTF-8"),
        ([1], r"line 3: got \[1\], expected an object. Expected one of: question, choices"),
        ({"contxt": ""}, r"line 3: got the keys contxt. Expected one of"),
        ({}, r"line 3: got the keys none"),
        ({**CHOICE, "answer": 2}, r"line 3: answer: got 2, expected .* from 0 to 1"),
        ({**CHOICE, "answer": True}, r"line 3: answer: got true"),
        ({**CHOICE, "answer": "A"}, r'line 3: answer: got "A"'),
        ({**CHOICE, "choices": [" a"]}, r"line 3: choices: .*at least two"),
        ({**CHOICE, "choices": ["", "b"]}, r"line 3: choices: .*not empty"),
        ({**CHOICE, "context": None}, r"line 3: context: got null, expected a text"),
        ({**CHOICE, "context": "\ud800"}, r"line 3: context: .*expected a text"),
        (
            {**CHOICE, "answr": 1},
            r"line 3: got the unknown keys answr, expected of answer, choices",
        ),
        ({**CHOICE, "continuation": "x"}, r"line 3: .*may be 'choice after a context' or"),
        (TEXT, r"line 3: got a document of the form .* expected 'choice after a context'"),
        (b"[" * 100_000, r"line 3: got JSON that is nested too deeply"),
    ],
)
def test_a_bad_line_is_named_by_its_number(written, line, message):
    path = written(CHOICE, b"", line)
    with pytest.raises(RequestError, match=message) as error:
        read_task_file(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({**CONTINUATION, "continuation": ""}, "continuation: .*not empty"),
        ({**TEXT, "text": ""}, "text: .*not empty"),
        ({**GENERATION, "until": ["\n", ""]}, "until: .*none of them empty"),
        ({**GENERATION, "until": 3}, "until: got 3"),
    ],
)
def test_empty_values_are_refused(written, document, message):
    with pytest.raises(RequestError, match=f"line 1: {message}"):
        read_task_file(written(document))


def test_an_item_of_a_list_is_named(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([TEXT, {"text": 3}]))
    with pytest.raises(RequestError, match=r"a.json, item 2: text: got 3"):
        read_task_file(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('[{"text": "x"},\n oops]')
    with pytest.raises(RequestError, match=r"invalid JSON at line 2, column 2"):
        read_task_file(tmp_path / "a.json")


def test_no_file_and_no_documents(tmp_path, written):
    with pytest.raises(RequestError, match="cannot be read"):
        read_task_file(tmp_path / "none.jsonl")
    with pytest.raises(RequestError, match="got no documents, expected at least one line"):
        read_task_file(written(b""))
