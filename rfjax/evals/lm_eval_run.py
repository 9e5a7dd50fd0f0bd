"""Evaluations by lm-eval: its flags, its tasks and its results. Importing this imports lm-eval."""

import argparse
import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import datasets.config
from lm_eval import simple_evaluate
from lm_eval._cli.run import Run
from lm_eval.config.evaluate_config import EvaluatorConfig
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable, make_table

from rfjax.errors import ConfigError, RequestError
from rfjax.evals.lm_eval_model import RfjaxLM
from rfjax.evals.local_tasks import LocalTask, load_local_task
from rfjax.evals.task_file import is_task_file

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
}
_UNUSED = ("batch_size", "max_batch_size")  # rows are packed by their sizes
_OUTPUT = ("output_path", "log_samples", "write_out", "show_config", "use_cache", "cache_requests")
"""Of lm-eval's flags, those that no figure depends on."""


@dataclasses.dataclass(frozen=True)
class LmEvalRun:
    """What an evaluation gave.

    Attributes:
        results: lm-eval's own, as JSON has them.
        tables: what lm-eval prints of them: the tasks, and groups where there are any.
    """

    results: dict[str, Any]
    tables: tuple[str, ...]


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


def settings_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that results depend on, as JSON."""
    chosen = {name: value for name, value in arguments.items() if name not in _OUTPUT}
    return json.loads(json.dumps(chosen, default=str))


def run_lm_eval(
    lm: RfjaxLM,
    arguments: Mapping[str, Any],
    *,
    bootstrap_iters: int = 100_000,
    extra: Mapping[str, Any] | None = None,
) -> LmEvalRun:
    """Evaluates tasks with lm-eval, and writes what it writes where `output_path` says.

    Args:
        lm: the model.
        arguments: fields of lm-eval's configuration, as `parse_flags` gives them. `tasks` may name
            files of `rfjax.evals.task_file` beside lm-eval's tasks and YAML files.
        bootstrap_iters: resamples for the errors that lm-eval bootstraps; 0 for no errors.
        extra: what stands under "rfjax" in the results, beside `n_truncated`: by task, the
            documents of which something did not fit in the context.

    Raises:
        RequestError: a task file is damaged, a task is not known or its data are not to be had.
        ConfigError: arguments that contradict each other.
    """
    names = [name for part in arguments.get("tasks") or () for name in part.split(",") if name]
    local = [load_local_task(name) for name in dict.fromkeys(names) if is_task_file(name)]
    known = [name for name in names if not is_task_file(name)]
    config, manager = _configured(arguments, known)
    tasks = [*local, *(config.tasks if known else ())]
    _check_names(tasks)
    tracker = EvaluationTracker(output_path=config.output_path)
    requests = config.cache_requests
    chosen = {
        "num_fewshot": config.num_fewshot,
        "use_cache": config.use_cache,
        "cache_requests": requests.get("cache_requests", False),
        "rewrite_requests_cache": requests.get("rewrite_requests_cache", False),
        "delete_requests_cache": requests.get("delete_requests_cache", False),
        "limit": config.limit,
        "samples": config.samples,
        "bootstrap_iters": bootstrap_iters,
        "write_out": config.write_out,
        "log_samples": config.log_samples,
        "evaluation_tracker": tracker,
        "system_instruction": config.system_instruction,
        "apply_chat_template": config.apply_chat_template,
        "fewshot_as_multiturn": bool(config.fewshot_as_multiturn),
        "gen_kwargs": config.gen_kwargs or None,
        "task_manager": manager,
        "predict_only": config.predict_only,
        "confirm_run_unsafe_code": config.confirm_run_unsafe_code,
        "metadata": config.metadata,
        **_seeds(config.seed),
    }
    named = {"pretrained": os.path.basename(lm.path)}
    with _by_itself():
        try:
            # Typed as what its decorator returns, which is another function.
            evaluate: Any = simple_evaluate
            results: dict[str, Any] = evaluate(model=lm, model_args=named, tasks=tasks, **chosen)
        except (ConnectionError, FileNotFoundError) as error:
            raise RequestError(
                f"lm-eval cannot load a task's data: {error}. Named tasks take theirs from the "
                "Hugging Face hub: connect to it, fill its cache elsewhere, or give a task file"
            ) from error
    samples = results.pop("samples", None)
    counted = {task: lm.n_truncated.get(task, 0) for task in results["configs"]}
    results["rfjax"] = {**(extra or {}), "n_truncated": counted}
    tables = [make_table(results)]
    if "groups" in results:
        tables.append(make_table(results, "groups"))
    _save(tracker, results, samples)
    whole = json.loads(json.dumps(results, default=handle_non_serializable))
    return LmEvalRun(whole, tuple(tables))


def _configured(
    arguments: Mapping[str, Any], known: Sequence[str]
) -> tuple[EvaluatorConfig, TaskManager]:
    """lm-eval's configuration, and its tasks if any are asked for: finding them takes seconds."""
    try:
        config = EvaluatorConfig.from_cli(
            argparse.Namespace(**{**arguments, "tasks": list(known), "model": "rfjax"})
        )
        if known:
            return config, config.process_tasks(config.metadata)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"lm-eval: {error}") from error
    include = config.include_path
    return config, TaskManager(include_path=include, include_defaults=False)


def _seeds(seeds: Any) -> dict[str, int | None]:
    """Of lm-eval's four generators; None leaves one as it is."""
    names = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    return dict(zip(names, seeds or (None,) * len(names), strict=True))


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
) -> None:
    tracker.save_results_aggregated(results=results, samples=dict(samples or {}))
    for task, own in (samples or {}).items():
        tracker.save_results_samples(task_name=task, samples=own)


@contextlib.contextmanager
def _by_itself() -> Iterator[None]:
    """Keep lm-eval from forking and `datasets` from counting downloads.

    A pool of forked processes, which lm-eval bootstraps errors with, may deadlock beside JAX's
    threads; one process gives the same numbers. And local files are nobody's download: without a
    network, the attempt to count one would wait for it.
    """
    before = os.environ.get("DISABLE_MULTIPROC")
    counting = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    os.environ["DISABLE_MULTIPROC"] = "1"
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counting
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"lm-eval's flags: {message}. `lm-eval run --help` lists them")
