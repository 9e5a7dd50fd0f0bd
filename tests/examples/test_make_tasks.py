"""The task files beside the examples: what the script makes, in the forms that are read."""

import make_tasks
from lm_eval.api.task import ConfigurableTask

from rfjax.evals.harness.lm_eval_run import set_up
from rfjax.evals.harness.task_file import FORMS, read_task_file


def test_the_files_are_what_the_script_makes(tmp_path):
    make_tasks.main(tmp_path)
    shipped = make_tasks.HERE / "tasks"
    names = sorted(path.name for path in shipped.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        assert (shipped / name).read_bytes() == (tmp_path / name).read_bytes()


def test_each_is_a_task_of_another_kind():
    paths = [make_tasks.HERE / "tasks" / f"{name}.jsonl" for name in make_tasks.FORMS]
    kinds = {read_task_file(path).form.output_type for path in paths}
    assert kinds == {form.output_type for form in FORMS}
    setup = set_up({"tasks": [str(path) for path in paths]})
    assert all(isinstance(task, ConfigurableTask) for task in setup.tasks)
    assert len(setup.settings["tasks"]) == len(paths)
