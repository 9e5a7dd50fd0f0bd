"""The file of a base's probabilities: what is written is read, and what is wrong is refused."""

import os
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfjax.errors import ModelFormatError, RequestError
from rfjax.evals.kl.kl_base_file import KLBase, reading, row_width, writing


def example(n_chunks=3, n_ctx=7, n_vocab=5):
    rng = np.random.default_rng(0)
    base = KLBase(rng.integers(0, n_vocab, (n_chunks, n_ctx)).astype(np.int32), n_vocab)
    codes = rng.integers(0, 1 << 16, (n_chunks, *base.chunk_shape)).astype(np.uint16)
    return base, codes


def write(path, base, codes):
    with writing(path, base) as writer:
        for chunk in codes:
            writer.add(chunk)


def read(path):
    with reading(path) as (base, chunks):
        return base, list(chunks)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.integers(1, 3), st.integers(4, 9), st.integers(1, 9))
def test_what_is_written_is_read(tmp_path_factory, n_chunks, n_ctx, n_vocab):
    path = tmp_path_factory.mktemp("base") / "a.kld"
    base, codes = example(n_chunks, n_ctx, n_vocab)
    write(path, base, codes)
    found, chunks = read(path)
    assert (found.n_chunks, found.n_ctx, found.n_vocab) == (n_chunks, n_ctx, n_vocab)
    np.testing.assert_array_equal(found.tokens, base.tokens)
    np.testing.assert_array_equal(chunks, codes)
    assert path.stat().st_size == base.nbytes
    assert [p.name for p in path.parent.iterdir()] == ["a.kld"]


def test_the_layout_is_llama_perplexitys(tmp_path):
    base, codes = example(n_chunks=2, n_ctx=7, n_vocab=5)
    write(tmp_path / "a.kld", base, codes)
    data = (tmp_path / "a.kld").read_bytes()
    assert data[:20] == b"_logits_" + struct.pack("<3i", 7, 5, 2)
    assert data[20:76] == struct.pack("<14i", *base.tokens.ravel())
    # Of 7 tokens, those at 4 to 6 are scored; 5 codes make a row of 10 with the two f32.
    assert base.chunk_shape == (3, row_width(5)) == (3, 10)
    assert data[76:] == struct.pack("<60H", *codes.ravel())


def test_an_interrupted_file_is_not_there(tmp_path):
    path = tmp_path / "a.kld"
    base, codes = example()
    path.write_bytes(b"what was there before")
    with pytest.raises(KeyboardInterrupt), writing(path, base) as writer:
        writer.add(codes[0])
        (partial,) = set(tmp_path.iterdir()) - {path}
        assert partial.name.startswith(".a.kld.") and partial.suffix == ".part"
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["a.kld"]
    assert path.read_bytes() == b"what was there before"
    write(path, base, codes)
    assert path.stat().st_size == base.nbytes


def test_an_unfinished_file_says_how_much_of_it_is_complete(tmp_path):
    path = tmp_path / "a.kld"
    base, codes = example()
    write(path, base, codes)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelFormatError, match="only 2 chunks are complete"):
        read(path)


def damaged(data):
    def header(n_ctx, n_vocab, n_chunk):
        return data[:8] + struct.pack("<3i", n_ctx, n_vocab, n_chunk) + data[20:]

    return {
        "expected b'_logits_'": b"GGUF" + data[4:],
        "starts with b''": b"",
        "n_ctx 7, n_vocab 0": header(7, 0, 3),
        "n_ctx -7": header(-7, 5, 3),
        "expected at least 4": data[:15],
        "expected .* for 2000000000 chunks": header(7, 5, 2_000_000_000),
        "for 1 chunks of 7 tokens .*: the file is damaged": header(7, 5, 1),
        "token ids from 0 to 9, expected 0 to 4": data[:20] + struct.pack("<i", 9) + data[24:],
    }


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "a.kld"
    base, codes = example()
    base.tokens[0, :2] = 0, 0
    write(path, base, codes)
    for message, data in damaged(path.read_bytes()).items():
        path.write_bytes(data)
        with pytest.raises(ModelFormatError, match=message) as raised:
            read(path)
        assert str(raised.value).startswith(str(path))


def test_no_file_and_no_place_for_one(tmp_path, monkeypatch):
    base, codes = example()
    with pytest.raises(RequestError, match=r"none\.kld: cannot be read \(No such file"):
        read(tmp_path / "none.kld")
    for path in (tmp_path / "none" / "a.kld", tmp_path):
        with pytest.raises(RequestError, match="cannot be written"):
            write(path, base, codes)
    usage = shutil.disk_usage(tmp_path)._replace(free=base.nbytes - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(RequestError, match=f"needs {base.nbytes} bytes"):
        write(tmp_path / "a.kld", base, codes)
    assert not list(tmp_path.iterdir())


def test_links_are_followed(tmp_path):
    base, codes = example()
    (tmp_path / "far").mkdir()
    link, target = tmp_path / "link.kld", tmp_path / "far" / "a.kld"
    link.symlink_to(target)
    for _ in range(2):  # to nothing, then to a file
        write(link, base, codes)
        assert link.is_symlink() and not target.is_symlink()
        np.testing.assert_array_equal(read(target)[1], codes)
        assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.kld", "far", "link.kld"]


def test_what_is_no_regular_file_is_refused_and_stays(tmp_path):
    base, codes = example()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(RequestError, match=f"{name}: cannot be written .not a regular file"):
            write(tmp_path / name, base, codes)
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(tmp_path):
    path = tmp_path / "a[1].kld"
    base, codes = example()
    begin = (
        "import sys, numpy as np, rfjax.evals.kl.kl_base_file as f; "
        "base = f.KLBase(np.zeros((1, 7), np.int32), 5); "
        "manager = f.writing(sys.argv[1], base); manager.__enter__(); "
        "print('begun', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", begin, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout.readline() == b"begun\n"
            (left,) = tmp_path.iterdir()
            write(path, base, codes)
            assert left.exists()
        finally:
            process.kill()
    path.unlink()
    (tmp_path / ".a1.kld.1.part").touch()  # another file's
    write(path, base, codes)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a1.kld.1.part", "a[1].kld"]


class Full:
    def write(self, data):
        raise OSError(28, "No space left on device")


def test_a_full_disk_names_the_file(tmp_path):
    base, codes = example()
    full = pytest.raises(RequestError, match=r"a\.kld: cannot be written \(No space left")
    with full, writing(tmp_path / "a.kld", base) as writer:
        writer._file = Full()
        writer.add(codes[0])
    assert not list(tmp_path.iterdir())
