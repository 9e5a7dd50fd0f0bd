"""`rfjax perplexity` on the bundled model, line by line beside llama-perplexity's output."""

import pathlib
import re
import struct

import pytest
from support.command_line import loading_once, runner

MODELS = pathlib.Path(__file__).resolve().parents[2] / "examples" / "models"
GOLDENS = pathlib.Path(__file__).parent / "goldens" / "perplexity"
NUMBER = re.compile(r" *-?\d+\.?\d*")
PERCENT = re.compile(r"( ± *[\d.]+)? ?%")


@pytest.fixture(scope="module")
def open_model():
    return loading_once()


@pytest.fixture
def run(open_model, monkeypatch):
    return runner(open_model, monkeypatch)


def blanked(text):
    return NUMBER.sub(lambda match: "#" * len(match[0]), text)


def assert_same_lines(found, golden, *, abs, rel=0.0):
    """Same text, numbers in the same columns, and near: f32 in another order of sums.

    Percents are printed with three digits, of which the last may be another.
    """
    assert blanked(found) == blanked(golden)
    for line, expected in zip(found.splitlines(), golden.splitlines(), strict=True):
        pairs = zip(NUMBER.finditer(line), NUMBER.finditer(expected), strict=True)
        for ours, theirs in pairs:
            least = max(abs, 2e-3) if PERCENT.match(line, ours.end()) else abs
            assert float(ours[0]) == pytest.approx(float(theirs[0]), abs=least, rel=rel), expected


@pytest.mark.parametrize(
    "name, flags",
    [
        ("chunks-0", ("-b", "256")),
        ("chunks-1", ("--ppl-output-type", "1", "-b", "256")),
        ("stride-0", ("--ppl-stride", "48", "-b", "128")),
        ("stride-1", ("--ppl-stride", "48", "--ppl-output-type", "1", "-b", "1")),
    ],
)
def test_perplexity(run, name, flags):
    text = MODELS / "shakespeare-heldout.txt"
    args = ("-f", text, "-c", "128", "--chunks", "6", "-q", *flags)
    code, out, err = run("perplexity", MODELS / "shakespeare.gguf", *args)
    assert (code, err) == (0, "")
    assert_same_lines(
        out.rstrip("\n"), (GOLDENS / f"{name}.txt").read_text().rstrip("\n"), abs=2e-4
    )


@pytest.fixture
def turned(tmp_path):
    """The bundled model with another RoPE base in its metadata."""
    data = bytearray((MODELS / "shakespeare.gguf").read_bytes())
    key = b"llama.rope.freq_base"
    at = data.index(key) + len(key) + 4  # behind the type of the value
    assert struct.unpack_from("<f", data, at) == (10000.0,)
    struct.pack_into("<f", data, at, 12000.0)
    path = tmp_path / "turned.gguf"
    path.write_bytes(data)
    return path


def test_kl_divergence(run, turned, tmp_path):
    base = tmp_path / "base.kld"
    flags = ("-f", MODELS / "shakespeare-heldout.txt", "-c", "128", "--chunks", "3")
    code, out, err = run(
        "perplexity", MODELS / "shakespeare.gguf", *flags, "--kl-divergence-base", base
    )
    assert (code, out.splitlines()[0]) == (0, "[1]14.3457,[2]13.8797,[3]13.2712,")
    assert err.splitlines()[-1] == f"wrote {base}, {base.stat().st_size} bytes"

    flags = ("--kl-divergence", "--kl-divergence-base", base, "-q")
    code, out, err = run("perplexity", turned, *flags)
    assert (code, err) == (0, "")
    golden = (GOLDENS / "kld.txt").read_text(encoding="utf-8")
    # A code of 16 bits is another where a logit's last bit is: up to 2.4e-4 nats of one token.
    assert_same_lines(out, golden, abs=3e-5, rel=2e-3)
