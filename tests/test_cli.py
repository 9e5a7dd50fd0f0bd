"""The commands in this process, with one model loaded once."""

import json

import numpy as np
import pytest
from support.command_line import loading_once, runner
from support.gguf_files import write_gguf
from support.tiny_model import tiny_llama
from typer.testing import CliRunner

import rfjax
import rfjax.cli.demo
import rfjax.cli.model
import rfjax.config
from rfjax.cli.app import app
from rfjax.errors import ConfigError
from rfjax.ops.dispatch import OPS, KernelPolicy

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


@pytest.fixture(scope="module")
def greedy(open_model, tiny_llama_path):
    """What the model makes of "hello" in 12 greedy steps."""
    from rfjax.cli.preset import StreamingEngine

    llm = open_model(tiny_llama_path, None, StreamingEngine())
    (output,) = llm.generate("hello", rfjax.SamplingParams(max_tokens=12, temperature=0.0))
    return output


GREEDY = ("-n", "12", "-t", "0")


def test_help_names_every_command(run):
    code, out, _ = run("--help")
    assert code == 0
    for command in ("generate", "chat", "perplexity", "inspect", "doctor", "selfcheck"):
        assert command in out
        assert run(command, "-h")[0] == 0
    for command in ("bench", "tune", "demo"):
        assert command in out
        assert run(command, "-h")[0] == 0
    assert run("--version") == (0, f"rfjax {rfjax.__version__}\n", "")


def test_flags_choose_kernels_and_their_check(tiny_llama_path, text_file, monkeypatch):
    asked = []

    def refuse(*args, kernels, selfcheck, **others):
        asked.append((kernels, selfcheck))
        raise ConfigError("not now")

    monkeypatch.setattr(rfjax.cli.model, "open_model", refuse)
    for command in (
        ["generate", "hello"],
        ["chat", "-m", "hello"],
        ["perplexity", "-f", text_file],
    ):
        name, *rest = map(str, command)
        for flags in ([], ["--implementation", "xla", "--no-selfcheck"], ["--selfcheck"]):
            assert (
                CliRunner().invoke(app, [name, str(tiny_llama_path), *rest, *flags]).exit_code == 2
            )
    choices = [(KernelPolicy(), None), (KernelPolicy("xla"), False), (KernelPolicy(), True)]
    assert asked == choices * 3
    wrong = CliRunner().invoke(app, ["generate", "m", "x", "--implementation", "cuda"])
    assert wrong.exit_code == 2 and "'auto', 'xla', 'pallas'" in wrong.stderr


def test_generate_prints_the_text_alone(run, tiny_llama_path, greedy):
    code, out, err = run("generate", tiny_llama_path, "hello", *GREEDY)
    assert (code, out) == (0, greedy.text + "\n")
    assert "prompt tokens" in err
    assert "tokens/s" in err
    assert run("generate", tiny_llama_path, "hello", *GREEDY, "-q") == (0, out, "")


def test_generate_takes_the_prompt_from_a_file_or_standard_input(
    run, tiny_llama_path, tmp_path, greedy
):
    file = tmp_path / "prompt.txt"
    file.write_text("hello\n")
    expected = (0, f"hello{greedy.text}\n", "")
    flags = (*GREEDY, "--echo", "-q")
    assert run("generate", tiny_llama_path, "-f", file, *flags) == expected
    assert run("generate", tiny_llama_path, "-", *flags, stdin="hello\n") == expected
    assert run("generate", tiny_llama_path, "-f", "-", *flags, stdin="hello") == expected


def test_generate_as_json(run, tiny_llama_path, greedy):
    code, out, err = run("generate", tiny_llama_path, "hello", *GREEDY, "--json", "-q")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["text"], found["finish_reason"]) == (greedy.text, greedy.finish_reason)
    assert found["prompt_token_ids"] == greedy.prompt_token_ids
    assert found["token_ids"] == greedy.token_ids
    np.testing.assert_allclose(found["logprobs"], greedy.logprobs, rtol=1e-6)
    timing = found["timing"]
    assert (timing["prompt_tokens"], timing["generated_tokens"]) == (
        len(greedy.prompt_token_ids),
        len(greedy.token_ids),
    )
    assert timing["first_token_s"] > 0
    assert timing["decode_tokens_per_s"] > 0


def test_a_seed_gives_the_same_text_again(run, tiny_llama_path):
    args = ("generate", tiny_llama_path, "hello", "-n", "20", "-q", "--top-k", "40", "--min-p")
    first = run(*args, "0.01", "--seed", "5")
    assert run(*args, "0.01", "--seed", "5") == first
    assert run(*args, "0.01", "--seed", "6") != first


def test_stop_tokens_end_the_output(run, tiny_llama_path, greedy):
    stop = greedy.token_ids[5]
    ids = greedy.token_ids[: greedy.token_ids.index(stop) + 1]
    flags = (*GREEDY, "--stop-token-ids", f"0,{stop}", "--json", "-q")
    found = json.loads(run("generate", tiny_llama_path, "hello", *flags)[1])
    assert (found["token_ids"], found["finish_reason"]) == (ids, "stop")


def test_stop_texts_end_the_output(run, tiny_llama_path, greedy):
    stop = greedy.text[3:5]
    flags = (*GREEDY, "--stop", "nowhere in it", "--stop", stop, "-q")
    wanted = greedy.text[: greedy.text.index(stop)]
    assert run("generate", tiny_llama_path, "hello", *flags) == (0, f"{wanted}\n", "")
    found = json.loads(run("generate", tiny_llama_path, "hello", *flags, "--json")[1])
    assert (found["text"], found["stop_reason"]) == (wanted, stop)


def test_several_samples_come_below_each_other(run, tiny_llama_path):
    flags = (
        "generate",
        tiny_llama_path,
        "hello",
        "-n",
        "12",
        "--seed",
        "3",
        "--samples",
        "2",
        "-q",
    )
    code, out, err = run(*flags)
    reports = ("--logprobs", "2", "--prompt-logprobs", "1", "--json")
    found = json.loads(run(*flags, *reports)[1])
    texts = [sample["text"] for sample in found["samples"]]
    assert (code, err) == (0, "")
    assert out == f"[1]\n{texts[0]}\n[2]\n{texts[1]}\n"
    assert found["text"] == texts[0] != texts[1]
    assert [len(top) for top in found["top_logprobs"]] == [2] * len(found["token_ids"])
    assert found["prompt_logprobs"][0] is None
    assert len(found["prompt_logprobs"]) == len(found["prompt_token_ids"])


def test_flags_win_over_a_preset_and_a_preset_over_defaults(run, tiny_llama_path, tmp_path):
    preset = tmp_path / "preset.toml"
    preset.write_text("[sampling]\ntemperature = 0\nmax_tokens = 3\n[engine]\nburst = 4\n")
    args = ("generate", tiny_llama_path, "hello", "--config", preset, "--json", "-q")
    assert len(json.loads(run(*args)[1])["token_ids"]) == 3
    assert len(json.loads(run(*args, "-n", "2")[1])["token_ids"]) == 2


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_every_flag_of_a_preset_arrives(run, tiny_llama_path, monkeypatch, command):
    class Arrived(Exception):
        pass

    def from_toml(kind, path, overrides):
        raise Arrived(overrides)

    monkeypatch.setattr(rfjax.config, "from_toml", from_toml)
    expected = {
        "max_tokens": 7,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.25,
        "min_p": 0.125,
        "repetition_penalty": 1.5,
        "seed": 11,
    }
    flags = []
    for name, value in expected.items():
        flags += [f"--{name.replace('_', '-')}", value]
    if command == "generate":
        flags += ["hello", "--stop-token-ids", "2,13", "--heed-eos", "--stop", "a b", "--stop", "c"]
        expected |= {"stop_token_ids": (2, 13), "ignore_eos": False, "stop": ("a b", "c")}
        others = {
            "typical_p": 0.5,
            "presence_penalty": 0.25,
            "frequency_penalty": 0.75,
            "min_tokens": 2,
            "samples": 3,
            "logprobs": 4,
            "prompt_logprobs": 5,
        }
        for name, value in others.items():
            flags += [f"--{name.replace('_', '-')}", value]
        expected |= others
        expected["n"] = expected.pop("samples")
    with pytest.raises(Arrived) as caught:
        run(command, tiny_llama_path, "--max-context", "99", *flags)
    assert caught.value.args == ({"engine": {"max_context": 99}, "sampling": expected},)


@pytest.mark.parametrize(
    "args", [("hello", "-f", "file"), (), ("hello", "--stop-token-ids", "1,x"), ("a", "-n", "many")]
)
def test_wrong_usage(run, tiny_llama_path, args):
    code, out, err = run("generate", tiny_llama_path, *args)
    assert (code, out) == (2, "")
    assert "Usage:" in err


def failures(folder):
    """Command lines that must fail, and what the message must say; `{model}` is filled in."""
    bad = {
        "latin1.txt": "caf\xe9".encode("latin1"),
        "short.txt": b"too short",
        "not.gguf": b"something else",
        "hot.toml": b"[sampling]\ntemperature = -1\n",
        "typo.toml": b"[sampling]\ntemprature = 1\n",
        "syntax.toml": b"[sampling\n",
    }
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    write_gguf(folder / "quern.gguf", {"general.architecture": "quern"})
    tiny_llama(folder / "plain.gguf", chat_template=None)
    generate = ("generate", "{model}", "hello")
    return {
        "no such file": (("generate", folder / "none.gguf", "hello"), "there is no such file"),
        "no GGUF": (("generate", folder / "not.gguf", "hello"), "GGUF"),
        "a folder": (("inspect", folder), str(folder)),
        "architecture": (("generate", folder / "quern.gguf", "x"), "'quern' is not supported"),
        "empty prompt": (("generate", "{model}", ""), "the prompt is empty"),
        "long prompt": (("generate", "{model}", "x" * 999), "the context holds 256"),
        "temperature": ((*generate, "-t", "-1"), "temperature: got -1.0"),
        "tokens": ((*generate, "-n", "0"), "max_tokens: got 0"),
        "token id": ((*generate, "--stop-token-ids", "9999"), "outside the vocabulary"),
        "dtype": ((*generate, "--dtype", "float8"), "'float8', expected one of float32"),
        "context": ((*generate, "--max-context", "300"), "the model's context holds 256"),
        "prompt file": (("generate", "{model}", "-f", folder / "none"), "cannot be read"),
        "encoding": (("generate", "{model}", "-f", folder / "latin1.txt"), "byte 0xe9 at offset 3"),
        "no preset": ((*generate, "--config", folder / "none"), "expected a TOML file"),
        "preset key": ((*generate, "--config", folder / "typo.toml"), "mean 'temperature'"),
        "preset value": (
            (*generate, "--config", folder / "hot.toml"),
            "hot.toml: sampling: temperature: got -1",
        ),
        "preset syntax": ((*generate, "--config", folder / "syntax.toml"), "not a TOML file"),
        "short text": (
            ("perplexity", "{model}", "-f", folder / "short.txt", "-c", "64"),
            "needs at least 128",
        ),
        "text encoding": (("perplexity", "{model}", "-f", folder / "latin1.txt"), "not UTF-8"),
        "chunk": (("perplexity", "{model}", "-f", folder / "short.txt", "-c", "2"), "n_ctx: got 2"),
        "no template": (
            ("chat", folder / "plain.gguf", "-m", "hi"),
            "name the one that the model was",
        ),
        "no model": (("demo",), "no bundled model there"),
        "no such model": (("demo", "--model", folder / "none.gguf"), "there is no such file"),
        "no text": (("demo", "--model", folder / "plain.gguf"), "no held-out text beside"),
    }


@pytest.fixture(scope="module")
def failing(tmp_path_factory):
    return failures(tmp_path_factory.mktemp("failures"))


def test_errors_are_messages_with_exit_code_2(run, failing, tiny_llama_path, tmp_path, monkeypatch):
    monkeypatch.setattr(rfjax.cli.demo, "_FOLDER", tmp_path)
    for name, (args, message) in failing.items():
        code, out, err = run(*(tiny_llama_path if arg == "{model}" else arg for arg in args))
        assert (code, out) == (2, ""), name
        assert err.startswith("error: "), name
        assert message in err, name
        assert "Traceback" not in err, name


def test_debug_shows_the_traceback_before_or_after_the_command(run, tmp_path):
    args = ("inspect", tmp_path / "none.gguf")
    for line in (("--debug", *args), (*args, "--debug")):
        code, out, err = run(*line)
        assert (code, out) == (2, "")
        assert err.startswith("Traceback")
        assert err.splitlines()[-1].startswith("error: ")


def test_a_flag_behind_two_dashes_is_a_prompt(run, tiny_llama_path):
    flags = ("-n", "1", "-q", "--echo")
    _, out, _ = run("generate", *flags, tiny_llama_path, "--", "--debug")
    assert out.startswith("--debug")


def test_no_device_is_an_error_as_well(tiny_llama_path, monkeypatch):
    import jax

    def fail():
        raise RuntimeError("Unable to initialize backend")

    monkeypatch.setattr(jax, "devices", fail)
    result = CliRunner().invoke(app, ["generate", str(tiny_llama_path), "hello"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Unable to initialize backend. See `rfjax doctor`" in result.stderr


def test_inspect_shows_what_is_asked(run, tiny_llama_path):
    code, out, err = run("inspect", tiny_llama_path)
    assert (code, err) == (0, "")
    assert "llama.block_count" in out
    assert "... (365 in all)]" in out
    assert "blk.0.attn_k.weight" not in out
    assert all(line == line.rstrip() for line in out.splitlines())
    out = run("inspect", tiny_llama_path, "--tensors")[1]
    assert any(
        line.split() == ["blk.0.attn_k.weight", "32", "x", "64", "F32", "8192", "32", "plain"]
        for line in out.splitlines()
    )
    assert "in all)" not in run("inspect", tiny_llama_path, "--metadata")[1]


def test_inspect_as_json(run, tiny_llama_path):
    found = json.loads(run("inspect", tiny_llama_path, "--json")[1])
    assert found["supported"] is True
    assert found["metadata"]["general.architecture"]["value"] == "llama"
    assert found["tensors"][0]["shape"] == [365, 64]
    assert found["types"][0]["type"] == "F32"


def test_inspect_shows_hostile_text_as_text(run, tmp_path):
    metadata = {"general.architecture": "\x1b[31mred", "a": "[bold]b[/bold]", "b": float("nan")}
    path = write_gguf(tmp_path / "model.gguf", metadata)
    code, out, _ = run("inspect", path)
    assert code == 0
    assert "\\x1b[31mred" in out
    assert "\x1b" not in out
    assert "[bold]b[/bold]" in out
    found = json.loads(run("inspect", path, "--json")[1])
    assert found["metadata"]["b"]["value"] is None
    assert found["supported"] is False


def test_doctor(run):
    code, out, err = run("doctor")
    assert (code, err) == (0, "")
    for word in ("jaxlib", "cpu:0", "compilation cache", "attention", "no Pallas kernel"):
        assert word in out
    assert out.endswith("models can run here\n")
    found = json.loads(run("doctor", "--json")[1])
    assert found["usable"] is True
    assert [choice["op"] for choice in found["ops"]] == list(OPS)


def test_doctor_fails_where_nothing_can_run(run, monkeypatch):
    import jax

    def fail():
        raise RuntimeError("no backend")

    monkeypatch.setattr(jax, "devices", fail)
    code, out, _ = run("doctor")
    assert code == 1
    assert "problem: JAX finds no usable device: no backend" in out


def test_demo(run, tmp_path, monkeypatch):
    monkeypatch.setattr(rfjax.cli.demo, "_FOLDER", tmp_path)
    tiny_llama(tmp_path / "shakespeare.gguf")
    (tmp_path / "shakespeare-heldout.txt").write_text(TEXT * 2)
    code, out, _ = run("demo", "--max-tokens", "20")
    assert code == 0
    assert "KING RICHARD:" in out
    assert "20 tokens at " in out
    assert "Final estimate: PPL = " in out
    assert run("demo", "--max-tokens", "20")[1].splitlines()[:4] == out.splitlines()[:4]
