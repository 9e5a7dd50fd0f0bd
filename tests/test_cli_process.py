"""The command line as a process of its own: start-up, signals, pipes and terminals."""

import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
from support.tiny_model import tiny_llama

RFJAX = (sys.executable, "-m", "rfjax.cli")
TIMEOUT = 120


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The user's compilation cache is left alone."""
    folder = tmp_path_factory.mktemp("cache")
    return {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder), "COLUMNS": "200"}


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A model that generates for minutes."""
    return tiny_llama(
        tmp_path_factory.mktemp("models") / "endless.gguf", n_layers=1, context_length=2**16
    )


def start(*args, env, **streams):
    return subprocess.Popen(
        [*RFJAX, *map(str, args)],
        env=env,
        stdin=streams.get("stdin", subprocess.DEVNULL),
        stdout=streams.get("stdout", subprocess.PIPE),
        stderr=streams.get("stderr", subprocess.PIPE),
    )


def test_the_help_loads_neither_jax_nor_numpy():
    code = (
        "import sys, typer.testing, rfjax.cli.app as a\n"
        "assert typer.testing.CliRunner().invoke(a.app, ['generate', '--help']).exit_code == 0\n"
        "print(sorted({'jax', 'jaxlib', 'numpy', 'sentencepiece'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_inspect_touches_no_device_and_verbose_logs(environment, tiny_llama_path):
    env = {**environment, "JAX_PLATFORMS": "none_such"}
    process = start("inspect", tiny_llama_path, env=env)
    out, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, err) == (0, b"")
    assert b"tiny random llama" in out


def interrupt(process) -> bytes:
    """Press Ctrl-C, and again as long as nothing happens; what stands on standard error.

    Python drops an exception that is raised inside a callback of its garbage collector, and JAX
    has one: an interrupt that arrives there is lost.
    """
    for _ in range(8):
        process.send_signal(signal.SIGINT)
        try:
            return process.communicate(timeout=TIMEOUT / 8)[1]
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    _, err = process.communicate()
    pytest.fail(f"interrupts are ignored; standard error: {err!r}")


@pytest.fixture
def heard_interrupts():
    """A process in the background of a script ignores them, and those that it starts do as well."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard_interrupts")
def test_an_interrupt_ends_a_generation_quietly(environment, endless):
    args = ("generate", endless, "hello", "--ignore-eos", "-n", "60000", "-v")
    process = start(*args, env=environment)
    assert process.stdout.read(1)
    err = interrupt(process)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b"rfjax.io.load: loaded" in err


def test_a_reader_that_goes_away_ends_a_generation_quietly(environment, endless):
    args = ("generate", endless, "hello", "--ignore-eos", "-n", "60000")
    process = start(*args, env=environment)
    assert process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(TIMEOUT) == 141
    assert err == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a full device")
@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_output_that_cannot_be_written_is_an_error(environment, tiny_llama_path, flags):
    with open("/dev/full", "wb") as full:
        process = start("inspect", tiny_llama_path, *flags, env=environment, stdout=full)
        _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 2
    assert err.decode() == "error: the output cannot be written: No space left on device\n"


def test_a_closed_standard_input_is_an_error(environment, tiny_llama_path):
    line = f'exec "{sys.executable}" -m rfjax.cli generate "{tiny_llama_path}" - <&-'
    done = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, timeout=TIMEOUT)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"error: standard input is closed")


def test_text_that_the_terminal_cannot_show_does_not_fail(environment, tiny_llama_path):
    env = {**environment, "PYTHONIOENCODING": "ascii"}
    process = start("generate", tiny_llama_path, "é", "-n", "1", "--echo", "-q", env=env)
    out, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, err) == (0, b"")
    assert out.startswith(b"?")


def on_terminal(*args, env, keys=()):
    """Runs a command on a terminal of its own; each of `keys` is typed once its cue has come."""
    ours, theirs = pty.openpty()
    process = start(*args, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown, keys, deadline = b"", list(keys), time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        if keys and keys[0][0] in shown:
            os.write(ours, keys.pop(0)[1])
        if select.select([ours], [], [], 0.1)[0]:
            try:
                shown += os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    return process.wait(TIMEOUT), shown


def test_progress_on_a_terminal(environment, tiny_llama_path, tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 20)
    args = ("perplexity", tiny_llama_path, "-f", tmp_path / "text.txt", "-c", "64")
    code, shown = on_terminal(*args, env=environment)
    assert code == 0
    assert "scoring ━".encode() in shown or b"scoring \x1b" in shown
    assert shown.count(b"Final estimate: PPL = ") == shown.count(b"[1]") == 1
    assert shown.index(b"scoring") < shown.index(b"[1]") < shown.index(b"Final")


def test_chat_on_a_terminal(environment, tiny_llama_path):
    keys = [(b"> ", b"hello\n"), (b"[cut off", b"/clear\n"), (b"/clear\r\n> ", b"\x04")]
    args = ("chat", tiny_llama_path, "-n", "4", "-t", "0")
    code, shown = on_terminal(*args, env=environment, keys=keys)
    assert code == 0
    assert b"/exit or Ctrl-D" in shown
    assert shown.count(b"[cut off") == 1
