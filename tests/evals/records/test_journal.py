"""Journals: what is there again after an interruption, and what is refused."""

import io
import math
import pathlib
import subprocess
import sys
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfjax.errors import RequestError
from rfjax.evals.records.journal import Journal, continuation_key

pytestmark = pytest.mark.quick_compile

ABOUT = {"weights": "sha256:1", "settings": {"n_ctx": 512, "chunks": None}}

numbers = st.floats(allow_nan=False) | st.integers() | st.booleans()
values = numbers | st.text() | st.lists(numbers, max_size=3) | st.dictionaries(st.text(), numbers)
records = st.dictionaries(st.text(), values, max_size=6)


def written(path: pathlib.Path, content: dict) -> bytes:
    """The bytes of a journal with these records."""
    with Journal.open(path, ABOUT) as journal:
        for key, value in content.items():
            journal.add(key, value)
    return path.read_bytes()


@settings(deadline=None, max_examples=150, derandomize=True)
@given(records, st.data())
def test_a_file_cut_anywhere_gives_the_first_records_and_goes_on(content, data):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "journal.jsonl")
        whole = written(path, content)
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        with Journal.open(path, ABOUT) as journal:
            first = list(content)[: len(journal)]
            assert len(journal) == max(0, whole[:cut].count(b"\n") - 1)
            assert all(journal.get(key) == content[key] for key in first)
            assert all(key not in journal for key in content if key not in first)
            for key, value in content.items():
                journal.add(key, value)
        assert path.read_bytes() == whole


@settings(deadline=None, max_examples=150, derandomize=True)
@given(records.filter(bool), st.data())
def test_a_damaged_line_is_named(content, data):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "journal.jsonl")
        lines = written(path, content).splitlines(keepends=True)
        number = data.draw(st.integers(1, len(lines) - 1))
        lines[number] = data.draw(st.binary(max_size=20)).replace(b"\n", b"") + b"\n"
        path.write_bytes(b"".join(lines))
        with pytest.raises(RequestError, match=f"line {number + 1} "):
            Journal.open(path, ABOUT)


def test_a_damaged_file_is_left_alone(tmp_path):
    path = tmp_path / "journal.jsonl"
    damaged = written(path, {"a": 1, "b": 2}).replace(b'"b"', b"b") + b'{"key": "c'
    path.write_bytes(damaged)
    with pytest.raises(RequestError, match=r"line 3 is damaged.*Name another file"):
        Journal.open(path, ABOUT)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    "content", [b"a model", b"a,b\n1,2\n", b"\n", b"[1]\n", b'{"key": "a", "value": 1}\n']
)
def test_another_file_is_neither_taken_nor_touched(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(RequestError, match="no journal"):
        Journal.open(path, ABOUT)
    assert path.read_bytes() == content


def test_a_key_counts_once(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal.open(path, ABOUT) as journal:
        journal.add("a", 1)
        journal.add("a", 2)
        assert (journal.get("a"), len(journal)) == (1, 1)
    path.write_bytes(path.read_bytes() + b'{"key": "a", "value": 2}\n')
    with pytest.raises(RequestError, match="line 3 has the key of an earlier line"):
        Journal.open(path, ABOUT)


def test_every_difference_of_what_it_is_about_is_named(tmp_path):
    path = tmp_path / "journal.jsonl"
    written(path, {})
    other = {"weights": "sha256:2", "settings": {"n_ctx": 512.0, "stride": 4}}
    with pytest.raises(RequestError) as error:
        Journal.open(path, other)
    listed = str(error.value).splitlines()[1:-1]
    assert [line.strip() for line in listed] == [
        "weights: 'sha256:1', now 'sha256:2'",
        "settings.n_ctx: 512, now 512.0",
        "settings.chunks: None, now (not there)",
        "settings.stride: (not there), now 4",
    ]


def test_another_version_of_the_format_is_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(written(path, {}).replace(b": 1,", b": 2,", 1))
    with pytest.raises(RequestError, match="line 1 is no header of version 1"):
        Journal.open(path, ABOUT)


def test_values_are_the_same_before_and_after(tmp_path):
    path = tmp_path / "deeper" / "journal.jsonl"
    odd = (-math.inf, 0.1 + 0.2, "\ud800", {"a": (True,)})
    with Journal.open(path, ABOUT) as journal:
        journal.add("a", odd)
        before = journal.get("a")
    with Journal.open(path, {**ABOUT, "settings": dict(ABOUT["settings"])}) as journal:
        assert journal.get("a") == before == [-math.inf, 0.1 + 0.2, "\ud800", {"a": [True]}]


def test_what_json_cannot_say_is_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal.open(path, ABOUT) as journal:
        before = path.read_bytes()
        with pytest.raises(TypeError):
            journal.add("a", {1, 2})
        with pytest.raises(ValueError, match="None"):
            journal.add("a", None)
        assert "a" not in journal
    assert path.read_bytes() == before


class FullDisk(io.FileIO):
    """A file that takes half of what is written, and then nothing."""

    full = False

    def write(self, data) -> int:
        if self.full:
            raise OSError(28, "No space left on device")
        self.full = True
        return super().write(bytes(data)[: len(data) // 2])


def test_a_full_disk_leaves_no_half_line(tmp_path):
    path = tmp_path / "journal.jsonl"
    before = written(path, {"a": 1})
    with FullDisk(path, "a+b") as file:
        journal = Journal(path, file, {})
        expected = rf"{path} cannot be written: No space left .* 0 results before: .* goes on"
        with pytest.raises(RequestError, match=expected):
            journal.add("b", 2)
        assert "b" not in journal
    assert path.read_bytes() == before


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "journal.jsonl"):
        with pytest.raises(RequestError, match=rf"the journal {path} cannot be opened: "):
            Journal.open(path, ABOUT)


_OPEN = """
import sys
from rfjax.errors import RequestError
from rfjax.evals.records.journal import Journal
try:
    Journal.open(sys.argv[1], {})
except RequestError as error:
    print(error)
"""


def test_one_journal_at_a_time(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal.open(path, {}) as journal:
        with pytest.raises(RequestError, match="another evaluation is writing"):
            Journal.open(path, {})
        command = [sys.executable, "-c", _OPEN, str(path)]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "another evaluation is writing" in found.stdout
        journal.add("a", 1)
    with Journal.open(path, {}) as journal:
        assert len(journal) == 1


@given(st.lists(st.integers(0, 2**31 - 1), max_size=4), st.lists(st.integers(0, 9), max_size=4))
def test_keys_tell_contexts_from_what_is_scored(context, tokens):
    keys = {continuation_key(context, tokens), continuation_key(tuple(context), tuple(tokens))}
    assert len(keys) == 1
    if tokens:
        assert continuation_key([*context, tokens[0]], tokens[1:]) not in keys
    assert len(keys.pop()) == 32


def test_keys_stay_what_they_are():
    """Journals that an earlier version began are taken up."""
    assert continuation_key([1, 2], [3]) == "4c85ae5d0e2ecd0933f7d692f4bf61c8"
