"""The command line in this process, with each model loaded once."""

import functools

from typer.testing import CliRunner

import rfjax
import rfjax.cli.model
from rfjax.cli.app import app
from rfjax.ops.dispatch import KernelPolicy

DEFAULTS = {
    "tensor_parallel": 1,
    "data_parallel": 1,
    "kernels": KernelPolicy(),
    "selfcheck": None,
}


def loading_once():
    """Takes the place of `rfjax.cli.model.open_model`: loads a model once for the same arguments,
    and leaves the user's compilation cache alone."""

    @functools.cache
    def load(path, dtype, engine, weights):
        return rfjax.LLM(path, dtype=dtype, weights=weights, engine=engine, compilation_cache=False)

    def open_model(path, dtype, engine=None, *, weights=None, **others):
        assert others in ({}, DEFAULTS)
        return load(path, dtype, engine, weights)

    return open_model


def runner(open_model, monkeypatch):
    """Runs a command line; gives exit code, stdout and stderr."""
    monkeypatch.setattr(rfjax.cli.model, "open_model", open_model)
    command_line = CliRunner()

    def run(*args, stdin=None):
        result = command_line.invoke(app, [str(arg) for arg in args], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return run
