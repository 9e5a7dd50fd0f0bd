"""`rfjax kld` and `rfjax compare` on tiny models: tables, JSON, files written, what is refused."""

import json
import re

import numpy as np
import pytest
from support.command_line import loading_once, runner
from support.tiny_model import tiny_llama

import rfjax.cli.compare
from rfjax.errors import RequestError

pytestmark = pytest.mark.quick_compile


@pytest.fixture(scope="module")
def open_model():
    return loading_once()


@pytest.fixture
def run(open_model, monkeypatch):
    return runner(open_model, monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, the same with attention in Q8_0, and a text of 5 chunks of 16 tokens."""
    found = tmp_path_factory.mktemp("models")
    tiny_llama(found / "tiny-F32.gguf", n_layers=1)
    tiny_llama(found / "tiny-Q8_0.gguf", n_layers=1, quantized=True)
    letters = np.random.default_rng(0).choice(list("abcdefgh "), 80)
    (found / "text.txt").write_text("".join(letters), encoding="utf-8")
    return found


@pytest.fixture
def kld(run, folder):
    base, quant = folder / "tiny-F32.gguf", folder / "tiny-Q8_0.gguf"
    return lambda *flags: run("kld", base, quant, "-f", folder / "text.txt", "-c", 16, *flags)


@pytest.fixture
def compare(run, folder):
    files = folder / "tiny-Q8_0.gguf", folder / "tiny-F32.gguf"
    return lambda *flags: run("compare", *files, "-f", folder / "text.txt", "-c", 16, *flags)


def test_the_table_has_a_row_a_file(kld):
    code, out, err = kld()
    assert code == 0, err
    header, base, quant, *_ = out.splitlines()
    assert header.split()[:2] == ["file", "PPL"]
    assert base.startswith("tiny-F32.gguf (base)")
    assert re.match(r"tiny-Q8_0.gguf +\d+\.\d{4} ± \d+\.\d{4} +[+-]0\.\d{5} ± ", quant)
    assert "compared) by 2 models" in err and "all models together, in one program" in err


def test_layer_by_layer_is_the_same_and_says_so(kld):
    _, whole, _ = kld("--quiet")
    code, streamed, err = kld("--stream")
    assert code == 0 and "layer by layer" in err
    assert _numbers(streamed) == pytest.approx(_numbers(whole), abs=2e-4)


def _numbers(out):
    return [float(number) for number in re.findall(r"\d+\.\d+", out)]


def test_json_has_every_figure_and_where_it_comes_from(kld):
    found = [json.loads(kld("--json", "--quiet", *flags)[1]) for flags in ((), ("--stream",))]
    assert [each["residency"] for each in found] == ["all", "layers"]
    for each in found:
        (model,) = each["models"]
        assert 0 < model["kld"]["value"] < 0.05 and each["n_chunks"] >= 2
        assert model["count"] == each["n_chunks"] * 7
        settings = model["provenance"]["settings"]
        assert settings["n_ctx"] == 16 and settings["text_hash"].startswith("sha256:")
        assert each["base_provenance"]["weights"]["hash"] != model["provenance"]["weights"]["hash"]
    whole, streamed = (each["models"][0]["provenance"] for each in found)
    ways = [each["settings"].pop("residency") for each in (whole, streamed)]
    assert ways == ["all", "layers"] and whole == streamed


def test_minus_one_chunks_are_all(kld, compare):
    for command in (kld, lambda *flags: compare("--no-speed", *flags)):
        counts = [
            json.loads(command("--json", "-q", *flags)[1])["n_chunks"]
            for flags in ((), ("--chunks", -1), ("--chunks", 2))
        ]
        assert counts[0] == counts[1] > counts[2] == 2
        code, _, err = command("--chunks", 0)
        assert code == 2 and "chunks: got 0" in err


def test_full_statistics_are_llama_perplexity_s(run, folder, kld):
    text = folder / "long.txt"
    text.write_text((folder / "text.txt").read_text() * 4, encoding="utf-8")
    base, quant = folder / "tiny-F32.gguf", folder / "tiny-Q8_0.gguf"
    code, out, _ = run("kld", base, quant, "-f", text, "-c", 16, "--full", "-q")
    assert code == 0
    assert "tiny-Q8_0.gguf\n\n====== Perplexity statistics ======\nMean PPL(Q)" in out


def test_compare_takes_the_most_exact_file_for_the_base(compare):
    code, out, err = compare("--no-speed")
    assert code == 0, err
    assert "base: tiny-F32.gguf, which has 32.00 bits a weight" in err
    lines = out.splitlines()
    assert lines[1].startswith("*  tiny-Q8_0.gguf ")
    assert lines[2].startswith("*  tiny-F32.gguf (base)") and "0.000000 ± 0.000000" in lines[2]
    assert "tokens/s" not in lines[0]


def test_compare_with_another_base(compare, folder):
    found = json.loads(
        compare("--no-speed", "--json", "-q", "--base", folder / "tiny-Q8_0.gguf")[1]
    )
    assert found["base"].endswith("tiny-Q8_0.gguf")
    (best,) = [file for file in found["files"] if file["on_front"]]
    assert best["is_base"] and best["summary"]["kld"]["value"] == 0
    assert all(file["provenance"]["weights"]["hash"] for file in found["files"])


def test_compare_measures_speed_and_draws(compare, tmp_path, monkeypatch):
    for name, value in (("_PROMPT", 16), ("_GENERATION", 4), ("_SECONDS", 0.01)):
        monkeypatch.setattr(rfjax.cli.compare, name, value)
    png, page = tmp_path / "plot.png", tmp_path / "page.html"
    code, out, err = compare("--png", png, "--html", page)
    assert code == 0, err
    assert "generation t/s" in out and "a prompt of 16 tokens" in err
    notes = "models in float32, quantized weights dequantized, the divergence in float32"
    assert notes in err and notes in page.read_text(encoding="utf-8")
    assert "--weights packed keeps them as they are" in err
    assert "<title>tiny-F32 and tiny-Q8_0 on text.txt, " in page.read_text(encoding="utf-8")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in page.read_text(encoding="utf-8")


def test_what_cannot_be_written_is_refused_at_once(compare, tmp_path):
    code, out, err = compare("--png", tmp_path / "missing" / "plot.png")
    assert code == 2 and not out
    assert "expected a name of a file in a folder that exists" in err


def test_png_and_html_differ_and_may_be_written(compare, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to("plot")
    code, out, err = compare("--png", tmp_path / "plot", "--html", tmp_path / "link")
    assert code == 2 and not out and "expected two files" in err
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path.resolve())
    code, out, err = compare("--png", tmp_path / "plot")
    assert code == 2 and not out and "expected a place that you may write to" in err


def test_results_are_printed_though_drawing_fails(compare, tmp_path, monkeypatch):
    def failing(files, title):
        raise RequestError("no drawing today")

    monkeypatch.setattr("rfjax.evals.comparison.plot.draw_comparison", failing)
    for flags in ((), ("--json",)):
        code, out, err = compare("--no-speed", "--png", tmp_path / "plot.png", *flags)
        assert code == 2 and "no drawing today" in err
        assert "tiny-Q8_0.gguf" in out
    assert {file["is_base"] for file in json.loads(out)["files"]} == {True, False}


def test_files_of_one_name_are_told_apart(run, folder, tmp_path):
    (tmp_path / "tiny-F32.gguf").symlink_to(folder / "tiny-F32.gguf")
    files = folder / "tiny-F32.gguf", tmp_path / "tiny-F32.gguf"
    code, out, err = run(
        "compare", *files, "-f", folder / "text.txt", "-c", 16, "--no-speed", "--weights", "packed"
    )
    assert code == 0, err
    assert all(f"  {file}" in out.split("\n\n")[0] for file in files)
    assert "quantized weights dequantized" in err  # there are none


def test_packed_weights_and_other_dtypes_are_named(compare):
    code, _, err = compare("--no-speed", "--weights", "packed", "--dtype", "bfloat16")
    assert code == 0, err
    assert "models in bfloat16, quantized weights packed, the divergence in float32" in err


def test_a_text_too_short_and_a_context_too_long(kld):
    assert kld("--ctx", "512")[0] == 2
    code, _, err = kld("--ctx", "64")
    assert code == 2 and "give a longer text or a smaller n_ctx" in err
