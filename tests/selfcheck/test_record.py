import concurrent.futures
import dataclasses
import json
import pathlib

from rfjax.pallas.tuned_config import user_file
from rfjax.selfcheck.case import CheckCase, Trial
from rfjax.selfcheck.checker import CheckResult
from rfjax.selfcheck.record import Record, current_identity

CASE = CheckCase("decode_attention", "4 x 128", 1e-4, lambda rng: Trial(len, (), len))
OK = CheckResult("decode_attention", "4 x 128", 1e-4, "ok", 2e-6)
WRONG = CheckResult("quantized_matvec:Q4_0", "67x1792", 1e-4, "wrong", None, "results are NaN")


def test_results_are_remembered(tmp_path):
    record = Record(tmp_path)
    assert record.read() == {}
    record.add([OK])
    record.add([WRONG])
    assert Record(tmp_path).read() == {OK.key: OK, WRONG.key: WRONG}
    better = dataclasses.replace(WRONG, verdict="ok", error=1e-5, reason=None)
    record.add([better])
    assert record.read()[WRONG.key] == better
    assert [path.name for path in tmp_path.iterdir()] == [record.path.name]


def test_they_hold_for_one_device_and_one_set_of_versions(tmp_path):
    here = current_identity()
    Record(tmp_path, here).add([OK])
    for field in dataclasses.fields(here):
        other = dataclasses.replace(here, **{field.name: "another"})
        assert Record(tmp_path, other).read() == {}


def test_a_damaged_file_is_ignored_and_replaced(tmp_path, caplog):
    record = Record(tmp_path)
    record.add([OK])
    whole = record.path.read_text()
    spoiled = json.loads(whole)
    spoiled["results"][0]["verdict"] = 3
    for text in ("", whole[:-20], "[]", "{}", "null", json.dumps(spoiled), '{"identity": 3}'):
        record.path.write_text(text)
        caplog.clear()
        assert record.read() == {}
        assert "is ignored" in caplog.text
    record.path.write_bytes(b"\xff\xfe")
    assert record.read() == {}
    record.add([OK])
    assert record.read() == {OK.key: OK}


def test_many_writers_leave_a_whole_file(tmp_path):
    record = Record(tmp_path)
    record.add([OK])

    def work(i):
        record.add([dataclasses.replace(OK, label=f"case {i}")])
        return record.read()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for found in pool.map(work, range(40)):
            assert OK.key in found
    assert not list(tmp_path.glob(".*"))


def test_without_a_place_nothing_is_kept(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    record = Record(tmp_path / "file" / "folder")
    record.add([OK])
    assert "not kept" in caplog.text
    with record.under_way(CASE):
        assert record.unfinished() == ()
    assert "a self-check that dies will not be noticed" in caplog.text
    monkeypatch.setattr("rfjax.selfcheck.record.user_folder", lambda: None)
    record = Record()
    record.add([OK])
    assert record.read() == {}


def test_tuned_settings_of_the_users_are_checked_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(pathlib.Path, "home", lambda: tmp_path)
    before = current_identity()
    path = user_file(before.device)
    assert path is not None
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    after = current_identity()
    assert dataclasses.replace(after, kernels=before.kernels) == before != after


def test_notes_that_say_nothing_are_ignored(tmp_path, caplog):
    record = Record(tmp_path)
    note = record.path.parent / f"{record.path.stem}.1.x.running"
    note.write_text("[3]")
    assert record.unfinished() == ()
    assert "is ignored" in caplog.text
    assert not note.exists()
    note.write_text("")  # of a process that is about to lock it
    assert record.unfinished() == ()
