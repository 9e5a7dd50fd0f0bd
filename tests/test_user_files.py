"""Files written whole: through links, and into what is no file."""

import os
import threading

import pytest

from rfjax.user_files import replaceable, write_atomically


def test_a_file_appears_whole_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "new" / "a.txt"
    for text in ("first", "second"):
        write_atomically(path, text)
        assert path.read_text() == text
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_links_are_followed(tmp_path):
    link, target = tmp_path / "link", tmp_path / "a.txt"
    link.symlink_to(target)
    write_atomically(link, "text")
    assert link.is_symlink() and not target.is_symlink() and target.read_text() == "text"


def test_a_pipe_is_written_to_and_stays(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    write_atomically(pipe, "text")
    reader.join(10)
    assert read == ["text"] and pipe.is_fifo()


def test_what_a_rename_would_do_away_with_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        replaceable(tmp_path / "pipe")
    for act in (replaceable, lambda path: write_atomically(path, "text")):
        with pytest.raises(IsADirectoryError):
            act(tmp_path)
