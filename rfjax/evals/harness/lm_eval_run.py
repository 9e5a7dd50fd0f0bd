"""Evaluations by lm-eval: its flags, its tasks and its results. Importing this imports lm-eval."""

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import datasets.config
import lm_eval.evaluator
from lm_eval import simple_evaluate
from lm_eval._cli.run import Run
from lm_eval.config.evaluate_config import EvaluatorConfig
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable, make_table

from rfjax.errors import ConfigError, RequestError
from rfjax.evals.harness.lm_eval_files import task_files
from rfjax.evals.harness.lm_eval_model import OnProgress, RfjaxLM
from rfjax.evals.harness.local_tasks import LocalTask, load_local_task
from rfjax.evals.harness.task_file import is_task_file
from rfjax.evals.records.journal import Journal
from rfjax.evals.records.provenance import provenance
from rfjax.llm import LLM

logger = logging.getLogger(__name__)

# The model is ours, and what lm-eval does with these is done elsewhere or not at all.
_OURS = {
    "model": "give the GGUF file as the first argument",
    "model_args": "use rfjax's own options, such as --dtype and --max-context",
    "device": "JAX takes the device; see `rfjax doctor`",
    "wandb_args": "log the JSON that --output_path writes",
    "wandb_config_args": "log the JSON that --output_path writes",
    "trackio_args": "log the JSON that --output_path writes",
    "hf_hub_log_args": "upload the JSON that --output_path writes",
    "check_integrity": "it runs the tests of lm-eval itself",
    "show_config": "use --json, which has all configurations",
    "use_cache": "it would give another model's answers as this one's: use --journal, which "
    "notices other models",
    "cache_requests": "it would give the prompts of an older task file of the same name, and "
    "making them anew is cheap",
}
_DONE = "check done"
"""The key of a journal that says so."""
_UNUSED = ("batch_size", "max_batch_size")  # rows are packed by their sizes
_FIGURES = (
    *("num_fewshot", "limit", "samples", "gen_kwargs", "seed", "predict_only", "metadata"),
    *("system_instruction", "apply_chat_template", "fewshot_as_multiturn"),
)
"""Of lm-eval's settings, those that figures depend on."""


@dataclasses.dataclass(frozen=True)
class LmEvalSetup:
    """What is to be evaluated: tasks that are there, and lm-eval's settings.

    Attributes:
        config: lm-eval's configuration.
        manager: lm-eval's index of tasks.
        tasks: tasks of files, and names and configurations of others.
        settings: all that figures depend on, as JSON, with hashes of files in place of paths.
    """

    config: EvaluatorConfig
    manager: TaskManager
    tasks: tuple[Any, ...]
    settings: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class LmEvalRun:
    """What an evaluation gave.

    Attributes:
        results: lm-eval's own, as JSON has them.
        tables: what lm-eval prints of them: the tasks, and groups where there are any.
        path: where they were written; None where nobody asked for it.
    """

    results: dict[str, Any]
    tables: tuple[str, ...]
    path: pathlib.Path | None


def parse_flags(flags: Sequence[str]) -> dict[str, Any]:
    """lm-eval's own flags, by the names of its configuration; only what is given.

    Raises:
        ConfigError: lm-eval does not know a flag or its value, or rfjax does not offer it.
    """
    parser = argparse.ArgumentParser(add_help=False)
    commands = parser.add_subparsers()
    Run.create(commands)
    for command in commands.choices.values():
        command.error = _refuse
    given = vars(commands.choices["run"].parse_args(list(flags)))
    found = {name: value for name, value in given.items() if value is not None and name != "func"}
    for name in found.keys() & _OURS.keys():
        raise ConfigError(f"--{name} is not used with rfjax: {_OURS[name]}")
    for name in found.keys() & set(_UNUSED):
        logger.warning("--%s is not used: rfjax packs batches by the sizes of requests", name)
        del found[name]
    return found


def set_up(arguments: Mapping[str, Any], *, bootstrap_iters: int = 100_000) -> LmEvalSetup:
    """Reads task files and finds lm-eval's tasks. Needs no model.

    Args:
        arguments: fields of lm-eval's configuration, as `parse_flags` gives them. `tasks` may name
            files of `rfjax.evals.harness.task_file` beside lm-eval's tasks and YAML files.
        bootstrap_iters: resamples for the errors that lm-eval bootstraps; 0 for no errors.

    Raises:
        RequestError: no tasks, a damaged task file or one with too few documents for the examples,
            or two tasks of one name.
        ConfigError: a task that is not known, or arguments that make no sense or contradict each
            other.
    """
    config = _configured(arguments)
    asked = [config.tasks] if isinstance(config.tasks, str) else config.tasks
    names = [name for part in asked for name in part.split(",") if name]
    local = [load_local_task(name) for name in dict.fromkeys(names) if is_task_file(name)]
    _check_examples(config.num_fewshot, local)
    config.tasks = known = [name for name in names if not is_task_file(name)]
    manager = _found(config)
    tasks = (*local, *config.tasks)
    _check_names(tasks)
    files: list[Any] = [{task.file.name: task.file.sha256} for task in local]
    files += [_described(name, manager) for name in known]
    settings = {
        "tasks": files,
        "bootstrap_iters": bootstrap_iters,
        **{name: getattr(config, name) for name in _FIGURES},
    }
    return LmEvalSetup(config, manager, tasks, json.loads(json.dumps(settings, default=str)))


def evaluate(
    llm: LLM,
    setup: LmEvalSetup,
    *,
    max_length: int | None = None,
    batch_invariant: bool = True,
    journal: str | os.PathLike[str] | None = None,
    on_progress: OnProgress | None = None,
    extra: Mapping[str, Any] | None = None,
    checked: str | None = None,
) -> LmEvalRun:
    """Evaluates tasks with lm-eval, and writes what it writes where `output_path` says.

    Args:
        llm: the model.
        setup: what `set_up` gave.
        max_length, batch_invariant, on_progress: as of `RfjaxLM`.
        journal: a file that results are kept in as they come: after an interruption the same call
            goes on where it stopped.
        extra: what else stands in the results under "rfjax".
        checked: the hash of a result that this run checks. Its journal is then that check's alone,
            so that nothing is taken over from the run that gave the result.

    Returns:
        lm-eval's results, to which are added `n_truncated` (by task, the documents of which
        something did not fit in the context), `provenance` and `rfjax`.

    Raises:
        RequestError: a task's data are not to be had, the journal is another model's or of a check
            that came to its end, or as the model's methods.
        OSError: the results could not be written.
    """
    about = provenance(llm.model, {"batch_invariant": batch_invariant}, packages=["lm-eval"])
    with contextlib.ExitStack() as stack:
        kept = stack.enter_context(_journal(journal, about, checked)) if journal else None
        lm = RfjaxLM(
            llm,
            max_length=max_length,
            batch_invariant=batch_invariant,
            journal=kept,
            on_progress=on_progress,
        )
        settings = {
            "batch_invariant": batch_invariant,
            "max_length": lm.max_length,
            "lm_eval": setup.settings,
        }
        added = {"provenance": {**about, "settings": settings}, "rfjax": dict(extra or {})}
        found = _evaluated(lm, setup, added)
        if kept is not None and checked is not None:
            kept.add(_DONE, True)
        return found


def _journal(
    path: str | os.PathLike[str], about: Mapping[str, Any], checked: str | None
) -> Journal:
    """A run's journal, or that of a check, of which only an interrupted one goes on."""
    if checked is None:
        return Journal.open(path, about)
    journal = Journal.open(path, {**about, "check": checked})
    if _DONE in journal:
        journal.close()
        raise RequestError(
            f"the journal {journal.path} is that of a check that came to its end: with it, nothing "
            "would be computed. Name another file, or remove this one"
        )
    return journal


def _evaluated(lm: RfjaxLM, setup: LmEvalSetup, added: Mapping[str, Any]) -> LmEvalRun:
    config = setup.config
    tracker = EvaluationTracker(output_path=config.output_path)
    chosen = {
        "num_fewshot": config.num_fewshot,
        "limit": config.limit,
        "samples": config.samples,
        "bootstrap_iters": setup.settings["bootstrap_iters"],
        "write_out": config.write_out,
        "log_samples": config.log_samples,
        "evaluation_tracker": tracker,
        "system_instruction": config.system_instruction,
        "apply_chat_template": config.apply_chat_template,
        "fewshot_as_multiturn": bool(config.fewshot_as_multiturn),
        "gen_kwargs": config.gen_kwargs or None,
        "task_manager": setup.manager,
        "predict_only": config.predict_only,
        "confirm_run_unsafe_code": config.confirm_run_unsafe_code,
        "metadata": config.metadata,
        **_seeds(config.seed),
    }
    named = {"pretrained": os.path.basename(lm.path)}
    with _by_itself():
        try:
            # Typed as what its decorator returns, which is another function.
            run: Any = simple_evaluate
            results: dict[str, Any] = run(
                model=lm, model_args=named, tasks=list(setup.tasks), **chosen
            )
        except (ConnectionError, FileNotFoundError) as error:
            raise RequestError(
                f"lm-eval cannot load a task's data: {error}. Named tasks take theirs from the "
                "Hugging Face hub: connect to it, fill its cache elsewhere, or give a task file"
            ) from error
    samples = results.pop("samples", None)
    results["n_truncated"] = {task: lm.n_truncated.get(task, 0) for task in results["configs"]}
    results.update(added)
    tables = [make_table(results)]
    if "groups" in results:
        tables.append(make_table(results, "groups"))
    path = _save(tracker, results, samples)
    whole = json.loads(json.dumps(results, default=handle_non_serializable))
    return LmEvalRun(whole, tuple(tables), path)


def comparable(results: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's results, the figures, counts and versions of each task or group, and `provenance`.

    This is what `rfjax.evals.records.result_file.compare_results` takes; times, hosts and the like
    are left out.
    """
    kinds = ("versions", "n-shot", "n-samples", "n_truncated")
    found: dict[str, Any] = {"provenance": results.get("provenance")}
    for name, figures in {**results["results"], **results.get("groups", {})}.items():
        own = {kind: results[kind][name] for kind in kinds if name in results.get(kind, {})}
        found[f"task {name}"] = {**figures, **own}
    return found


def _configured(arguments: Mapping[str, Any]) -> EvaluatorConfig:
    try:
        config = EvaluatorConfig.from_cli(argparse.Namespace(**{**arguments, "model": "rfjax"}))
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise ConfigError(f"lm-eval: {error}") from error
    # A configuration file, or whoever calls this, may say what flags may not.
    for name in ("model_args", "use_cache", "cache_requests"):
        if getattr(config, name):
            raise ConfigError(f"{name} is not used with rfjax: {_OURS[name]}")
    return config


def _found(config: EvaluatorConfig) -> TaskManager:
    """lm-eval's own tasks, if any are asked for: finding them takes seconds."""
    if not config.tasks:
        return TaskManager(include_path=config.include_path, include_defaults=False)
    try:
        return config.process_tasks(config.metadata)
    except ValueError as error:
        raise ConfigError(f"lm-eval: {error}. `lm-eval ls tasks` lists them") from error


def _seeds(seeds: Any) -> dict[str, int | None]:
    """Of lm-eval's four generators; None leaves one as it is."""
    names = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    return dict(zip(names, seeds or (None,) * len(names), strict=True))


def _described(name: str, manager: TaskManager) -> Any:
    """A task as settings have it: with hashes of its files, unless they are lm-eval's own."""
    own = task_files(name, manager)
    last = os.path.basename(os.path.normpath(name))
    return {last: own} if own else last


def _check_examples(number: int | None, tasks: Sequence[LocalTask]) -> None:
    if number is not None and (not isinstance(number, int) or number < 0):
        raise ConfigError(f"num_fewshot: got {number!r}, expected an integer of at least 0")
    for task in tasks:
        task.check_examples(number or 0)


def _check_names(tasks: Sequence[Any]) -> None:
    if not tasks:
        raise RequestError(
            "got no tasks, expected --tasks with names or files, such as --tasks hellaswag or "
            "--tasks questions.jsonl"
        )
    seen = set()
    for task in tasks:
        name = task.config.task if isinstance(task, LocalTask) else task
        if isinstance(name, str) and name in seen:
            raise RequestError(f"two tasks are named {name}: rename a file")
        seen.add(str(name))


def _save(
    tracker: EvaluationTracker, results: dict[str, Any], samples: Mapping[str, Any] | None
) -> pathlib.Path | None:
    """Let lm-eval write its files; the path of the one with the results."""
    tracker.save_results_aggregated(results=results, samples=dict(samples or {}))
    for task, own in (samples or {}).items():
        tracker.save_results_samples(task_name=task, samples=own)
    if tracker.output_path is None:
        return None
    asked = pathlib.Path(tracker.output_path)
    folder = asked.parent if asked.suffix == ".json" else asked
    for path in folder.rglob(f"*_{tracker.date_id}.json"):
        return path
    raise OSError(None, "lm-eval wrote no results", str(asked))  # it only logs why


@contextlib.contextmanager
def _by_itself() -> Iterator[None]:
    """Keep lm-eval from forking, `datasets` from counting downloads, and git from complaining.

    A pool of forked processes, which lm-eval bootstraps errors with, may deadlock beside JAX's
    threads; one process gives the same numbers. And local files are nobody's download: without a
    network, the attempt to count one would wait for it. And lm-eval asks git for a commit, also
    where there is no repository.
    """
    before = os.environ.get("DISABLE_MULTIPROC")
    counting = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    os.environ["DISABLE_MULTIPROC"] = "1"
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    commit = lm_eval.evaluator.get_git_commit_hash
    lm_eval.evaluator.get_git_commit_hash = _commit
    try:
        yield
    finally:
        lm_eval.evaluator.get_git_commit_hash = commit
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counting
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before


def _commit() -> str | None:
    """What lm-eval writes as `git_hash`; None outside of repositories."""
    try:
        told = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True)
    except OSError:
        return None
    return told.stdout.strip() or None


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"lm-eval's flags: {message}. `lm-eval run --help` lists them")
