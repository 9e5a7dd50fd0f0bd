"""`rfjax eval`: lm-evaluation-harness on a GGUF model, with its own tasks and flags."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rfjax.cli import options
from rfjax.cli.output import note, write, write_json
from rfjax.errors import ConfigError, RequestError
from rfjax.progress import progress_bar

if TYPE_CHECKING:
    from rfjax.evals.harness.lm_eval_run import LmEvalRun

_WRITING = ("output_path", "log_samples")
"""Of lm-eval's flags, those that write files."""

PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Settings of the command, for flags that are lm-eval's."""

_MODEL_OPTIONS = (
    *("dtype", "weights", "tensor_parallel", "data_parallel", "implementation", "selfcheck"),
    "max_context",
)
_CHOSEN = (*_MODEL_OPTIONS, "tasks", "bootstrap_iters", "batch_invariant", "json")
"""What a result that is checked has chosen."""


def evaluate(
    context: typer.Context,
    model: Annotated[
        Path | None,
        typer.Argument(
            help="A GGUF file, or any part of a split one; before all flags. With --check by "
            "default the one that the result names.",
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks",
            metavar="TASK,TASK...",
            help="Names of lm-eval's tasks, its YAML files, or task files of your own (.jsonl, "
            ".json; see docs/evaluation.md).",
            show_default=False,
        ),
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(
            help="Keep results in this file as they come: after an interruption the same command "
            "goes on where it stopped.",
            show_default=False,
        ),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            help="Run again what this result of --output_path tells of, and name every "
            "difference; the exit code is 1 if there are any.",
            show_default=False,
        ),
    ] = None,
    bootstrap_iters: Annotated[
        int,
        typer.Option(min=0, help="Resamples for errors that have no formula; 0 for no errors."),
    ] = 100_000,
    batch_invariant: Annotated[
        bool,
        typer.Option(
            "--batch-invariant/--no-batch-invariant",
            help="Whether likelihoods have the same bits whatever is scored beside them.",
        ),
    ] = True,
    dtype: options.Dtype = None,
    weights: options.Weights = None,
    tensor_parallel: options.TensorParallel = 1,
    data_parallel: options.DataParallel = 1,
    implementation: options.Kernels = options.Implementation.auto,
    selfcheck: options.Selfcheck = None,
    max_context: options.MaxContext = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Evaluate a model with lm-evaluation-harness.

    All other flags are lm-eval's own and stand behind the model:
    --num_fewshot, --limit, --output_path, --log_samples, --apply_chat_template,
    --gen_kwargs, --include_path, --seed and so on.
    `lm-eval run --help` lists them. lm-eval comes with the extra `eval`.
    """
    given = {name: context.params[name] for name in _MODEL_OPTIONS}
    run = {
        "model": None if model is None else str(model),
        "options": {**given, "implementation": implementation.value},
        "batch_invariant": batch_invariant,
        "bootstrap_iters": bootstrap_iters,
    }
    _need_lm_eval()
    misplaced = model is not None and str(model).startswith("-")
    if check is not None:
        beside = [f"--{name.replace('_', '-')}" for name in _CHOSEN if _is_given(context, name)]
        _check(check, run, [*beside, *([str(model)] if misplaced else ()), *context.args], journal)
        return
    if misplaced:
        raise typer.BadParameter("the model stands before all flags", param_hint="MODEL")
    if model is None:
        raise typer.BadParameter("give a GGUF file, or --check", param_hint="MODEL")
    from rfjax.evals.harness.lm_eval_run import parse_flags

    named = ["--tasks", ",".join(tasks)] if tasks else []  # of several, lm-eval takes the last
    run["arguments"] = parse_flags([*named, *context.args])
    start = time.perf_counter()
    result = _run(run, journal)
    seconds = time.perf_counter() - start
    if json:
        write_json(result.results)
    else:
        write(_heading(run) + "\n" + "\n".join(result.tables))
    if not quiet:
        _tell(result, seconds)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _need_lm_eval() -> None:
    try:
        import rfjax.evals.harness.lm_eval_run  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"rfjax eval needs lm-eval 0.4.13 or newer, and importing it says: {error}. Install it "
            'with: pip install "rfjax[eval]"'
        ) from error


def _run(run: Mapping[str, Any], journal: Path | None, checked: str | None = None) -> "LmEvalRun":
    """Run; what is interrupted says what it leaves behind."""
    from rfjax.evals.records.journal import count_results

    try:
        return _evaluated(run, journal, checked)
    except KeyboardInterrupt:
        if journal is not None and journal.is_file():
            note(
                f"interrupted: the journal {journal} holds {count_results(journal)} results, from "
                "which the same command goes on"
            )
        raise


def _evaluated(run: Mapping[str, Any], journal: Path | None, checked: str | None) -> "LmEvalRun":
    """Set up, load, evaluate. What needs no model is found out before it is loaded."""
    from rfjax.cli.model import open_model
    from rfjax.engine.config import EngineConfig
    from rfjax.evals.harness.lm_eval_run import evaluate, set_up

    with contextlib.redirect_stdout(sys.stderr):  # what lm-eval prints on its way is no result
        setup = set_up(run["arguments"], bootstrap_iters=run["bootstrap_iters"])
    chosen = run["options"]
    llm = open_model(
        Path(run["model"]),
        chosen["dtype"],
        EngineConfig(max_context=chosen["max_context"]),
        weights=chosen["weights"],
        tensor_parallel=chosen["tensor_parallel"],
        data_parallel=chosen["data_parallel"],
        kernels=options.Implementation(chosen["implementation"]).policy(),
        selfcheck=chosen["selfcheck"],
    )
    with _progress() as on_progress, contextlib.redirect_stdout(sys.stderr):
        return evaluate(
            llm,
            setup,
            max_length=chosen["max_context"],
            batch_invariant=run["batch_invariant"],
            journal=journal,
            on_progress=on_progress,
            extra=run,
            checked=checked,
        )


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each kind of request, once there are any."""
    with progress_bar() as bar:
        rows: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in rows:
                rows[what] = bar.add_task(what, total=total)
            bar.update(rows[what], completed=done, total=total)

        yield report


def _check(path: Path, given: Mapping[str, Any], flags: list[str], journal: Path | None) -> None:
    """Run what a result tells of, and say what is not the same.

    Raises:
        RequestError: the file is no result of `rfjax eval`, or a damaged one.
        ConfigError: flags beside it.
    """
    from rfjax.evals.harness.lm_eval_result import read_lm_eval_result
    from rfjax.evals.harness.lm_eval_run import comparable
    from rfjax.evals.records.result_file import compare_results

    if flags:
        raise ConfigError(
            f"--check: got {' '.join(flags)} besides, expected at most a model, --journal and "
            "--quiet: all is run as the result says"
        )
    old = read_lm_eval_result(path)
    implementation = old.run["options"]["implementation"]
    if implementation not in (known := [one.value for one in options.Implementation]):
        raise RequestError(
            f"{path} is damaged: rfjax.options.implementation is {implementation!r}, expected one "
            f"of {', '.join(known)}"
        )
    quiet = {k: v for k, v in old.run["arguments"].items() if k not in _WRITING}
    run = {**old.run, "arguments": quiet, "model": given["model"] or old.run["model"]}
    new = _run(run, journal, checked=old.sha256)
    found = compare_results(comparable(old.results), comparable(new.results))
    for difference in found:
        write(f"{difference.kind}: {difference}\n")
    if found:
        raise typer.Exit(1)
    write(f"reproduced: {', '.join(old.results['results'])}\n")


def _heading(run: Mapping[str, Any]) -> str:
    """As lm-eval's own."""
    arguments = run["arguments"]
    return (
        f"rfjax ({run['model']}), gen_kwargs: ({arguments.get('gen_kwargs') or {}}), limit: "
        f"{arguments.get('limit')}, num_fewshot: {arguments.get('num_fewshot')}"
    )


def _tell(result: "LmEvalRun", seconds: float) -> None:
    for task, count in result.results["n_truncated"].items():
        if count:
            note(
                f"{task}: {count} documents did not fit in the context and lost their beginning; "
                "they are counted all the same"
            )
    if result.path is not None:
        note(f"written to {result.path}")
    note(f"{seconds:.2f} s, loading and compilation included")
