"""What keeps the house in order: who may import what, and what no file may say."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("search_spaces", "trainables", "study", "analysis")
MODULES = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]

OURS_ALLOWED = {
    "search_spaces": set(),
    "trainables": {"search_spaces"},
    "study": {"search_spaces", "trainables", "analysis"},
    "analysis": {"search_spaces"},
}
ONLY_IN = {
    "ray": {"trainables/halving.py", "trainables/stage_trainable.py", "study/search/scheduling.py"},
    "optuna": {"study/search/optimization.py", "study/search/lease.py"},
    "wandb": {"study/tracking/wandb_runs.py", "study/tracking/wandb_log.py"},
}
FOREIGN_TO = {
    "search_spaces": {"torch", "torchvision", "ray", "optuna", "wandb"},
    "analysis": {"torch", "torchvision", "ray", "optuna", "wandb"},
}
NAMES_THAT_SAY_NOTHING = {"utils", "util", "common", "misc", "helpers", "helper", "core"}
# In halves, so that this file names none either.
REGISTRIES = ["pypi" + ".org", "files." + "pythonhosted", "deb." + "debian.org", "registry." + "npmjs.org"]


def place(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def imported(file: Path) -> set[str]:
    """The top-level packages a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(place(file).partition("/")[0] if node.level else str(node.module).partition(".")[0])
    return found


def own_files() -> Iterator[Path]:
    """Every file of the project that is not made by a tool."""
    for folder, names, files in os.walk(ROOT):
        top = Path(folder) == ROOT
        names[:] = [name for name in names if not _made(name, top)]
        yield from (Path(folder) / name for name in files)


def _made(name: str, top: bool) -> bool:
    hidden = name.startswith(".") and name not in {".ci", ".github"}
    return hidden or name == "__pycache__" or name.endswith(".egg-info") or (top and name in {"runs", "dist", "build"})


def test_there_are_modules_in_every_package():
    assert {place(file).partition("/")[0] for file in MODULES} == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_imports_upwards(package):
    valid = OURS_ALLOWED[package] | {package}
    ours = {place(file): imported(file) & set(PACKAGES) for file in MODULES if place(file).startswith(f"{package}/")}
    assert {name: found - valid for name, found in ours.items() if found - valid} == {}


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_of_the_study_is_known_to_its_own_modules_only(library):
    assert {place(file) for file in MODULES if library in imported(file)} <= ONLY_IN[library]


@pytest.mark.parametrize("package", FOREIGN_TO)
def test_what_describes_and_what_analyses_needs_no_framework(package):
    found = set().union(*(imported(file) for file in MODULES if place(file).startswith(f"{package}/")))
    assert found & FOREIGN_TO[package] == set()


def test_no_folder_and_no_module_has_a_name_that_says_nothing():
    names = {part.removesuffix(".py"): place(file) for file in own_files() for part in file.relative_to(ROOT).parts}
    assert {where for name, where in names.items() if name in NAMES_THAT_SAY_NOTHING} == set()


def test_every_module_says_what_it_is_for():
    silent = [
        file for file in MODULES if file.read_text().strip() and not ast.get_docstring(ast.parse(file.read_bytes()))
    ]
    assert [place(file) for file in silent] == []
    assert [place(file) for file in MODULES if not file.read_text().strip() and file.name != "__init__.py"] == []


def test_no_file_names_a_package_registry():
    hosts = [host.encode() for host in REGISTRIES]
    naming = [place(file) for file in own_files() if any(host in file.read_bytes() for host in hosts)]
    assert naming == []


def test_the_command_line_needs_neither_torch_nor_ray_to_explain_itself():
    script = """
import sys
import takd.study.cli
try:
    takd.study.cli.main(["--help"])
finally:
    assert not {"torch", "ray"} & set(sys.modules), "imported"
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")
    assert "usage: takd" in run.stdout


def test_what_a_space_may_ask_for_is_what_there_is():
    """Literals of `search_spaces`, which imports no torch and no Optuna, and the tables they name."""
    from takd.search_spaces import Loss, Recipe, Space
    from takd.study.search.optimization import SAMPLERS
    from takd.trainables.training.lanes import OPTIMIZERS
    from takd.trainables.training.loop import SCHEDULES
    from takd.trainables.training.losses import DIVERGENCES, FORMS
    from takd.trainables.training.views import AUGMENTATIONS

    tables = [
        (Recipe, "optimizer", OPTIMIZERS),
        (Recipe, "schedule", SCHEDULES),
        (Loss, "form", FORMS),
        (Space, "sampler", SAMPLERS),
        (Recipe, "augment", AUGMENTATIONS),
        (Loss, "divergence", DIVERGENCES),
    ]
    for kind, field, table in tables:
        assert named(kind.model_fields[field].annotation) == set(table), field


def named(kind: Any) -> set[str]:
    """The values of a literal, or of one that may also be null."""
    parts = get_args(kind)
    return {value for part in parts for value in get_args(part)} or set(parts)
