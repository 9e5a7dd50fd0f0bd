"""`rfjax perplexity` in this process: what its modes print, and what it refuses."""

import hashlib
import io
import json
import pathlib
import sys
import types

import numpy as np
import pytest
from support.command_line import loading_once, runner

from rfjax.cli.choice_tasks import TaskSettings
from rfjax.cli.running import running_output
from rfjax.evals.kl import kl_report
from rfjax.evals.kl.against_file import kl_divergence
from rfjax.evals.kl.kl_base_file import KLBase, writing
from rfjax.evals.records.provenance import text_hash
from rfjax.evals.strided import strided_perplexity

pytestmark = pytest.mark.quick_compile

TEXT = "The cat sat on the mat, and the dog ate it all. " * 12


@pytest.fixture(scope="module")
def open_model():
    return loading_once()


@pytest.fixture
def run(open_model, monkeypatch):
    return runner(open_model, monkeypatch)


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT + "\n", newline="")
    return path


def test_perplexity_prints_what_llama_perplexity_prints(
    run, open_model, tiny_llama_path, text_file
):
    result = open_model(tiny_llama_path, None).perplexity(TEXT, n_ctx=64)
    code, out, err = run("perplexity", tiny_llama_path, "-f", text_file, "-c", "64")
    running = "".join(f"[{i}]{value:.4f}," for i, value in enumerate(result.running, 1))
    final = f"Final estimate: PPL = {result.perplexity:.4f} +/- {result.stderr:.5f}"
    assert (code, out) == (0, f"{running}\n{final}\n")
    assert len(result.running) > 2
    assert "tokens/s" in err
    assert "\x1b" not in err

    flags = ("-c", "64", "--chunks", "2", "-b", "1", "--json", "-q")
    code, out, err = run("perplexity", tiny_llama_path, "-f", text_file, *flags)
    found = json.loads(out)
    assert (code, err) == (0, "")
    np.testing.assert_allclose(found["running"], result.running[:2], rtol=1e-6)
    assert (found["n_chunks"], found["n_ctx"]) == (2, 64)
    settings = found["provenance"]["settings"]
    assert settings["text"] == text_hash(TEXT)
    assert (settings["n_ctx"], settings["chunks"], settings["stride"]) == (64, 2, None)


def test_perplexity_drops_one_newline_at_the_end_and_no_other(run, tiny_llama_path, tmp_path):
    outputs = []
    for text in ("a\n" * 64 + "bb", "a\n" * 64 + "bb\n", "a\n" * 64 + "bb\n\n"):
        (tmp_path / "text.txt").write_text(text, newline="")
        args = ("-f", tmp_path / "text.txt", "-c", "33", "-q")
        outputs.append(run("perplexity", tiny_llama_path, *args))
    # BOS and 130 tokens; the third text has one more, which makes four chunks of 33.
    assert [out.count("[") for _, out, _ in outputs] == [3, 3, 4]
    assert outputs[0] == outputs[1]


def test_a_line_a_chunk(run, open_model, tiny_llama_path, text_file):
    result = open_model(tiny_llama_path, None).perplexity(TEXT, n_ctx=64)
    flags = ("-f", text_file, "--ctx-size", "64", "--ppl-output-type", "1", "-q")
    for batch, firsts in (("64", [0, 64, 128]), ("128", [0, 0, 128])):
        code, out, _ = run("perplexity", tiny_llama_path, *flags, "-b", batch, "--chunks", "3")
        *lines, empty, final = out.splitlines()
        assert (code, empty) == (0, "")
        assert final.startswith("Final estimate")
        fields = [line.split() for line in lines]
        # llama-perplexity gives chunks that it computes together the number of the first.
        assert [int(first) for first, *_ in fields] == firsts
        running = [float(value) for _, value, *_ in fields]
        assert running == pytest.approx(result.running[:3], abs=1e-3)
        assert float(fields[0][2]) == pytest.approx(np.log(running[0]), abs=1e-4)
        assert all(line[:10] == f"{first:8d}  " for line, first in zip(lines, firsts, strict=True))


def test_the_model_and_all_chunks_as_llama_perplexity_has_them(run, tiny_llama_path, text_file):
    flags = ("-f", text_file, "-c", "64", "-q")
    expected = run("perplexity", tiny_llama_path, *flags)
    assert run("perplexity", "-m", tiny_llama_path, *flags, "--chunks", "-1") == expected
    code, out, err = run("perplexity", *flags)
    assert (code, out) == (2, "")
    assert err.startswith("error: MODEL is missing, expected a GGUF file: name the file on the")
    code, _, err = run("perplexity", tiny_llama_path, "-m", "other.gguf", *flags)
    assert code == 2 and "other.gguf (-m), expected one of them" in err


def test_a_stride(run, open_model, tiny_llama_path, tmp_path):
    text = TEXT * 2
    (tmp_path / "text.txt").write_text(text)
    flags = ("-f", tmp_path / "text.txt", "-c", "64", "--chunks", "2", "--ppl-stride", "32")
    sizes = {"n_ctx": 64, "chunks": 2, "stride": 32}
    result = strided_perplexity(open_model(tiny_llama_path, None).model, text, **sizes)
    code, out, err = run("perplexity", tiny_llama_path, *flags)
    running = "".join(f"[{i}]{value:.4f}," for i, value in enumerate(result.running, 1))
    assert (code, out) == (0, f"{running}\n")
    assert err.startswith("512 tokens (2 chunks of 256, 64 scored)")
    out = run("perplexity", tiny_llama_path, *flags, "--ppl-output-type", "1")[1]
    lines = [f"{32 * i:8d}  {value:.4f}\n" for i, value in enumerate(result.running)]
    assert out == "".join(lines) + "\n"
    found = json.loads(run("perplexity", tiny_llama_path, *flags, "--json", "-q")[1])
    assert (found["stride"], found["window"], found["n_ctx"]) == (32, 256, 64)
    assert found["running"] == pytest.approx(result.running)


@pytest.mark.parametrize("flags", [("-c", "64"), ("-c", "64", "--ppl-stride", "64")])
def test_a_journal_goes_on_with_more_chunks(run, tiny_llama_path, tmp_path, flags):
    (tmp_path / "text.txt").write_text(TEXT * 2)
    flags = ("-f", tmp_path / "text.txt", *flags)
    journal = ("--journal", tmp_path / "chunks.jsonl")
    _, expected, err = run("perplexity", tiny_llama_path, *flags)
    assert "tokens/s" in err
    assert run("perplexity", tiny_llama_path, *flags, *journal, "--chunks", "2")[0] == 0
    code, out, err = run("perplexity", tiny_llama_path, *flags, *journal)
    assert (code, out) == (0, expected)
    assert "going on after 2 results" in err and "the journal's chunks not computed again" in err
    before = journal[1].read_bytes()
    assert run("perplexity", tiny_llama_path, *flags, *journal, "-q")[1:] == (expected, "")
    assert journal[1].read_bytes() == before
    code, _, err = run("perplexity", tiny_llama_path, *flags, *journal, "-b", "64")
    assert code == 2 and "settings.tokens_per_batch" in err


@pytest.fixture(scope="module")
def base(open_model, tiny_llama_path, tmp_path_factory):
    """A file of noise for the tiny model, of 105 tokens."""
    path = tmp_path_factory.mktemp("base") / "base.kld"
    rng = np.random.default_rng(0)
    vocab = open_model(tiny_llama_path, None).config.vocab_size
    header = KLBase(rng.integers(3, vocab, (15, 16)).astype(np.int32), vocab)
    with writing(path, header) as writer:
        for _ in range(header.n_chunks):
            codes = rng.integers(0, 1 << 16, header.chunk_shape).astype(np.uint16)
            codes[:, :4] = np.array([16 / 65535, -17.0], np.float32).view(np.uint16)
            writer.add(codes)
    return path


def test_kl_divergence(run, open_model, tiny_llama_path, base):
    result = kl_divergence(open_model(tiny_llama_path, None).model, base, batch_size=128)
    flags = ("--kl-divergence", "--kl-divergence-base", base)
    code, out, err = run("perplexity", tiny_llama_path, *flags)
    assert code == 0
    assert out.startswith(kl_report.HEADER)
    assert out.endswith(kl_report.report(result.summary))
    chunks = out.removeprefix(kl_report.HEADER).partition("\n\n")[0].splitlines()
    assert [int(line.split()[0]) for line in chunks] == list(range(1, 16))
    assert err.startswith("240 tokens (15 chunks of 16, 105 compared)")

    code, out, err = run("perplexity", tiny_llama_path, *flags, "--json", "-q", "--chunks", "8")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["n_chunks"], found["n_ctx"], found["summary"]["count"]) == (8, 16, 56)
    assert set(found["summary"]["kld"]) == {"value", "error"}
    assert len(found["summary"]["kld_percentiles"]) == 11
    digest = hashlib.sha256(base.read_bytes()).hexdigest()
    assert found["provenance"]["settings"]["base"] == f"sha256:{digest}"


def test_a_base_is_written_while_the_perplexity_is_printed(
    run, tiny_llama_path, text_file, tmp_path
):
    flags = ("-f", text_file, "-c", "64", "--chunks", "2", "-q")
    expected = run("perplexity", tiny_llama_path, *flags)
    path = tmp_path / "base.kld"
    for name in ("--kl-divergence-base", "--save-all-logits"):
        assert run("perplexity", tiny_llama_path, *flags, name, path) == expected
        assert path.read_bytes().startswith(b"_logits_")
        path.unlink()
    out = run("perplexity", tiny_llama_path, *flags, "--kl-divergence-base", path, "--json")[1]
    assert json.loads(out)["kl_divergence_base"] == {"file": str(path)}


@pytest.mark.parametrize(
    "flags, call",
    [
        (("--hellaswag", "-f", "a"), ("run_hellaswag", "a", 400)),
        (("--hellaswag", "--hellaswag-tasks", "7", "-f", "a"), ("run_hellaswag", "a", 7)),
        (("--winogrande", "-f", "a"), ("run_winogrande", "a", 0)),
        (("--winogrande", "--winogrande-tasks", "7", "-f", "a"), ("run_winogrande", "a", 7)),
        (("--multiple-choice", "-bf", "b"), ("run_multiple_choice", "b", 0)),
        (
            ("--multiple-choice", "--multiple-choice-tasks", "7", "--binary-file", "b"),
            ("run_multiple_choice", "b", 7),
        ),
    ],
)
def test_tasks_are_handed_on(run, tiny_llama_path, monkeypatch, flags, call):
    calls = []

    def recorder(name):
        return lambda load, path, n, settings: calls.append(((name, str(path), n), settings))

    names = ("run_hellaswag", "run_winogrande", "run_multiple_choice")
    recorders = {name: recorder(name) for name in names}
    module = types.SimpleNamespace(TaskSettings=TaskSettings, **recorders)
    monkeypatch.setitem(sys.modules, "rfjax.cli.choice_tasks", module)
    flags = (*flags, "-c", "99", "-q", "--journal", "j")
    assert run("perplexity", tiny_llama_path, *flags)[0] == 0
    assert calls == [(call, TaskSettings(99, False, True, pathlib.Path("j")))]


def refusals(folder):
    """What is wrong with a command line, and the message it gets."""
    (folder / "text").write_text("too short")
    text = ("-f", folder / "text")
    base = ("--kl-divergence-base", folder / "text")
    return [
        ((), "-f is missing, expected the text: name the file with -f FILE"),
        (("--hellaswag",), "-f is missing, expected the tasks"),
        (("--multiple-choice",), "-bf is missing, expected the tasks"),
        (("--kl-divergence",), "--kl-divergence-base is missing, expected the base's file"),
        (("--kl-divergence", *base), "not a file that --kl-divergence-base wrote"),
        ((*text, "--hellaswag", "--winogrande"), "--hellaswag and --winogrande: each measures"),
        ((*text, *base, "--ppl-stride", "9"), "--ppl-stride and --kl-divergence-base without"),
        ((*text, *base, "--journal", "j"), "--journal j: there is none with --kl-divergence-base"),
        ((*text, "--ppl-stride", "-9"), "stride: got -9"),
        ((*text, *base, "-c", "64"), "needs at least 128"),
        ((*text, "-c", "0"), "n_ctx: got 0"),
        ((*text, "-c", "0", "--ppl-stride", "1"), "n_ctx: got 0"),
    ]


def test_what_is_refused(run, tiny_llama_path, tmp_path):
    for flags, message in refusals(tmp_path):
        code, out, err = run("perplexity", tiny_llama_path, *flags)
        assert (code, out) == (2, ""), message
        assert err.startswith("error: ") and message in err
    for flags in (("--ppl-output-type", "2"), ("-b", "0")):
        assert run("perplexity", tiny_llama_path, "-f", tmp_path / "text", *flags)[0] == 2


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_wait_for_the_bar_on_a_terminal(monkeypatch):
    stdout = Terminal()
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "stderr", Terminal())
    for printing, expected in ((True, "head a b"), (False, "")):
        with running_output(printing=printing, start="head ") as tell:
            tell(2, 4, "figure", "a ")
            tell(4, 4, "figure", "b")
            assert stdout.getvalue() == ""
        assert stdout.getvalue() == expected
        stdout.truncate(stdout.seek(0))
