"""Imports inside rfjax point down only, and never in a circle.

A new module needs no change here when its package already has a row; a module with a place of its
own gets a row, and the longest matching name wins. Imports inside functions count as well.
"""

import ast
import graphlib
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "rfjax"

# From the top to the bottom: a module imports from its own row and from the rows below it.
LAYERS = (
    ("rfjax.cli",),
    ("rfjax",),  # the facade, rfjax/__init__.py alone
    ("rfjax.server", "rfjax.bench", "rfjax.evals.harness.lm_eval_*"),  # what runs a whole LLM
    ("rfjax.llm", "rfjax.doctor", "rfjax.inspection", "rfjax.placement"),
    ("rfjax.evals",),
    ("rfjax.engine",),
    ("rfjax.io",),
    ("rfjax.selfcheck",),
    ("rfjax.models",),
    ("rfjax.ops", "rfjax.cache"),
    ("rfjax.pallas",),
    ("rfjax.ops.mask", "rfjax.ops.scores"),  # data that kernels read
    ("rfjax.tokenizer", "rfjax.sharding", "rfjax.quant"),
    ("rfjax.io.gguf", "rfjax.io.gguf_*"),
    ("rfjax.quant.types",),
    (
        *("rfjax.errors", "rfjax.typing", "rfjax.config", "rfjax.user_files"),
        *("rfjax.compile_threads", "rfjax.processor", "rfjax.progress"),
    ),
)

# The host side of the engine, like what reads files and text, starts and is tested without JAX.
WITHOUT_JAX = (
    "rfjax.config",
    "rfjax.io.gguf",
    "rfjax.io.model_hash",
    "rfjax.quant.types",
    "rfjax.engine.async_engine",
    "rfjax.engine.book",
    "rfjax.engine.burst_result",
    "rfjax.engine.chat_stream",
    "rfjax.engine.device",
    "rfjax.engine.effects",
    "rfjax.engine.engine",
    "rfjax.engine.finish",
    "rfjax.engine.handle",
    "rfjax.engine.metrics",
    "rfjax.engine.output",
    "rfjax.engine.page_keys",
    "rfjax.engine.page_pool",
    "rfjax.engine.page_table",
    "rfjax.engine.persistent",
    "rfjax.engine.plan",
    "rfjax.engine.planner",
    "rfjax.engine.prometheus",
    "rfjax.engine.request",
    "rfjax.engine.sampling_params",
    "rfjax.engine.scheduler",
    "rfjax.engine.scheduler_config",
    "rfjax.engine.scheduler_state",
    "rfjax.engine.sequence",
    "rfjax.engine.stop",
    "rfjax.engine.warm_up",
    "rfjax.evals.tasks.choice_task",
    "rfjax.evals.records.chunk_journal",
    "rfjax.evals.records.difference",
    "rfjax.evals.tasks.hellaswag",
    "rfjax.evals.records.journal",
    "rfjax.evals.harness.lm_eval_result",
    "rfjax.evals.kl.kl_base_file",
    "rfjax.evals.kl.kl_report",
    "rfjax.evals.kl.kl_statistics",
    "rfjax.evals.tasks.multiple_choice",
    "rfjax.evals.tasks.multiple_choice_file",
    "rfjax.evals.tasks.task_sampling",
    "rfjax.evals.tasks.winogrande",
)


def row_of(module: str) -> int | None:
    """Index of the module's row; None for a module that no row covers."""
    best, length = None, 0
    for index, row in enumerate(LAYERS):
        for name in row:
            stem = name.removesuffix("*")
            inside = module.startswith(stem) if name.endswith("*") else module == name
            if name != "rfjax":
                inside = inside or module.startswith(f"{name}.")
            if inside and len(stem) > length:
                best, length = index, len(stem)
    return best


def find_modules(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Dotted name to file of every module of the package at `root`."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(module: str, path: pathlib.Path, modules: dict[str, pathlib.Path]) -> set[str]:
    """The modules of the package that this one imports, anywhere in its text."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative import; name it whole"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                names.add(whole if whole in modules else node.module or "")
    return (names & modules.keys()) - {module}


def violations(root: pathlib.Path) -> list[str]:
    """Every broken rule of the package at `root`, as a sentence."""
    modules = find_modules(root)
    graph = {name: imports_of(name, path, modules) for name, path in modules.items()}
    unplaced = [name for name in modules if row_of(name) is None]
    found = [f"{name}: no row in LAYERS of tests/test_layering.py" for name in unplaced]
    for name, imported in graph.items():
        here = row_of(name)
        for other in sorted(imported):
            there = row_of(other)
            if here is not None and there is not None and there < here:
                found.append(
                    f"{name} (row {here}) imports {other} (row {there}), which is above it"
                )
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append(f"circular import: {' -> '.join(error.args[1])}")
    return found


def reaching_jax(root: pathlib.Path, names: tuple[str, ...]) -> dict[str, str]:
    """Of these modules, those that import JAX or what needs it, with the module that does."""
    modules = find_modules(root)
    graph = {name: imports_of(name, path, modules) for name, path in modules.items()}
    outside = {
        name: packages_of(path) & {"jax", "flax", "jaxtyping"} for name, path in modules.items()
    }
    found = {}
    for name in names:
        reached, todo = set(), [name]
        while todo:
            module = todo.pop()
            reached.add(module)
            todo += graph[module] - reached
        culprits = sorted(module for module in reached if outside[module])
        if culprits:
            found[name] = culprits[0]
    return found


def packages_of(path: pathlib.Path) -> set[str]:
    """Top-level names that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


def test_imports_point_down():
    assert not violations(PACKAGE)


def test_the_host_side_imports_no_jax():
    assert not reaching_jax(PACKAGE, WITHOUT_JAX)


def test_an_import_of_jax_is_seen_through_others(tmp_path):
    root = tmp_path / "rfjax"
    root.mkdir()
    (root / "a.py").write_text("import rfjax.b", encoding="utf-8")
    (root / "b.py").write_text("def f():\n    import jax.numpy", encoding="utf-8")
    assert reaching_jax(root, ("rfjax.a",)) == {"rfjax.a": "rfjax.b"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"models/a.py": "from rfjax.engine import b", "engine/b.py": "x = 1"},
            "above it",
        ),
        ({"ops/a.py": "def f():\n    import rfjax.cli", "cli.py": "x = 1"}, "above it"),
        ({"quant/types.py": "import rfjax.io.gguf_x", "io/gguf_x.py": ""}, "above it"),
        ({"io/gguf.py": "import rfjax.io.load", "io/load.py": ""}, "above it"),
        ({"ops/a.py": "import rfjax.cache.b", "cache/b.py": "import rfjax.ops.a"}, "circular"),
        ({"other.py": "x = 1"}, "no row in LAYERS"),
    ],
)
def test_the_check_can_fail(tmp_path, files, message):
    for name, text in files.items():
        path = tmp_path / "rfjax" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    found = violations(tmp_path / "rfjax")
    assert len(found) == 1
    assert message in found[0]
