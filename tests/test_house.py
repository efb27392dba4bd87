"""What keeps the house in order: who may import what, what is in a folder, and what no file may say."""

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("search_spaces", "trainables", "study", "analysis")
MODULES = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
MOST_IN_A_FOLDER = 20

OURS_ALLOWED = {
    "search_spaces": set(),
    "trainables": {"search_spaces"},
    "study": {"search_spaces", "trainables", "analysis"},
    "analysis": {"search_spaces"},
}
# What a room may know of its own package: other rooms, and single modules.
ROOMS_ALLOWED = {
    "analysis/evidence": {"analysis/tables.py"},
    "trainables/store": set(),
    "trainables/datasets": {"trainables/store"},
    "trainables/models": {"trainables/datasets", "trainables/store"},
    "trainables/training": {"trainables/training/methods", "trainables/models", "trainables/datasets"},
    "trainables/training/methods": set(),
    "study/search": {"study/folder.py", "study/stopping.py", "study/tracking/observers.py"},
    "study/managing": {"study/search", "study/folder.py", "study/confirm.py", "study/status.py", "study/study.py"},
    "study/tracking": {"study/search", "study/folder.py", "study/options.py", "study/results.py"},
    "study/export": {
        "study/search", "study/tracking", "study/study.py", "study/folder.py", 
    },
}  # fmt: skip
ONLY_IN = {
    "ray": {
        "trainables/halving.py",
        "trainables/stage_trainable.py",
        "trainables/team.py",
        "study/search/scheduling.py",
    },
    "optuna": {
        "study/search/database.py",
        "study/search/lease.py",
        "study/search/optimization.py",
        "study/search/sampling.py",
        "study/search/storages.py",
    },
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


@cache
def own_tree(module: Path) -> ast.Module:
    """Of a file that no test changes."""
    return ast.parse(module.read_bytes())


def trees(file: Path) -> Iterator[ast.AST]:
    """A file's syntax, a notebook's by cells, and that of the programs which it has as strings."""
    sources = [file.read_text()]
    if file.suffix == ".ipynb":
        sources = ["".join(cell["source"]) for cell in json.loads(sources[0])["cells"] if cell["cell_type"] == "code"]
    for tree in map(ast.parse, sources):
        yield tree
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "import " in node.value:
                try:
                    yield ast.parse(node.value)
                except SyntaxError:
                    continue  # words


def named_by(tree: ast.AST) -> set[str]:
    """The modules that a program imports, wherever in it; of `from a import b` it is `a.b`, module or not."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@cache
def imported(file: Path) -> set[str]:
    """The top-level packages that a module imports."""
    return {name.partition(".")[0] for name in named_by(own_tree(file))}


@cache
def known(file: Path) -> set[str]:
    """The files of ours that a module imports, from the top level: `study/folder.py`."""
    return set(filter(None, map(own_module, named_by(own_tree(file)))))


def own_module(name: str) -> str | None:
    """The file of a dotted name, or of the module that has it."""
    first, *parts = name.split(".")
    while first == "takd" and parts:
        for file in (ROOT.joinpath(*parts).with_suffix(".py"), ROOT.joinpath(*parts, "__init__.py")):
            if file.is_file():
                return place(file)
        parts.pop()
    return None


def room(module: str) -> str:
    return module.rpartition("/")[0]


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
    ours = {
        place(file): {module.partition("/")[0] for module in known(file)}
        for file in MODULES
        if place(file).startswith(f"{package}/")
    }
    assert set().union(*ours.values()), "imports are found"
    assert {name: found - valid for name, found in ours.items() if found - valid} == {}


def test_every_room_says_what_it_may_know():
    rooms = {room(place(file)) for file in MODULES} - set(PACKAGES)
    assert rooms == set(ROOMS_ALLOWED)


@pytest.mark.parametrize("own", ROOMS_ALLOWED)
def test_a_room_knows_of_its_package_what_it_may(own):
    package, valid = own.partition("/")[0], ROOMS_ALLOWED[own]
    strangers = {}
    for file in (file for file in MODULES if room(place(file)) == own):
        beside = {module for module in known(file) if module.startswith(f"{package}/") and room(module) != own}
        strangers[place(file)] = {module for module in beside if not {module, room(module)} & valid}
    assert {name: found for name, found in strangers.items() if found} == {}


def test_no_imports_go_in_a_circle():
    try:
        TopologicalSorter({place(file): known(file) for file in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(f"in a circle: {error.args[1]}")


def test_there_is_one_way_to_import_a_module():
    """By `takd`: where Python is started in the project it would find the folders by their bare names too."""
    bare = {
        place(file): found
        for file in own_files()
        if file.suffix in {".py", ".ipynb"}
        and (found := {name for tree in trees(file) for name in named_by(tree) if name.partition(".")[0] in PACKAGES})
    }
    assert bare == {}


def test_a_bare_import_would_be_noticed(tmp_path):
    """So that the test above says something."""
    module, package = tmp_path / "module.py", PACKAGES[2]
    for source in (
        f"from {package}.run import x",
        f"CODE = 'import sys, {package}.run'",
        f"def f():\n    import {package}",
    ):
        module.write_text(source)
        assert any(name.startswith(package) for tree in trees(module) for name in named_by(tree)), source


def test_no_folder_has_more_modules_than_a_person_can_survey():
    folders: dict[str, int] = {}
    for file in own_files():
        if file.suffix == ".py":
            folders[room(place(file))] = folders.get(room(place(file)), 0) + 1
    assert {folder: count for folder, count in folders.items() if count > MOST_IN_A_FOLDER} == {}


def test_takd_itself_is_a_door():
    assert {file.name for file in (ROOT / "takd").glob("*.py")} == {"__init__.py", "__main__.py"}


def test_importing_takd_imports_nothing_heavy():
    script = "import sys\nbefore = set(sys.modules)\nimport takd\nprint(*sorted(set(sys.modules) - before))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert loaded & {"torch", "ray", "optuna", "wandb", "numpy", "pandas", "pydantic", "matplotlib"} == set()


def test_every_package_is_installed():
    folders = {room(place(file)) for file in MODULES} | {"takd"}
    assert [folder for folder in sorted(folders) if not (ROOT / folder / "__init__.py").is_file()] == []
    names = {"takd" if folder == "takd" else f"takd.{folder.replace('/', '.')}" for folder in folders}
    assert set(SETUPTOOLS["packages"]) == names
    assert SETUPTOOLS["package-dir"] == {"takd": "takd"} | {f"takd.{package}": package for package in PACKAGES}


def test_every_file_that_a_package_reads_is_installed():
    named = {
        file
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for file in ROOT.joinpath(*(package.split(".")[1:] or [package])).glob(pattern)
    }
    packages = {"takd", *PACKAGES}
    there = {file for file in own_files() if place(file).partition("/")[0] in packages and file.suffix != ".py"}
    assert there == named


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
    modules = [file for file in own_files() if file.suffix == ".py"]
    assert [place(file) for file in modules if not ast.get_docstring(own_tree(file))] == []


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
    from takd.search_spaces import ALTERING, Loss, Recipe, Space
    from takd.study.search.sampling import SAMPLERS
    from takd.trainables.training.lanes import OPTIMIZERS
    from takd.trainables.training.losses import DIVERGENCES, FORMS
    from takd.trainables.training.schedules import SCHEDULES
    from takd.trainables.training.views import AUGMENTATIONS

    tables = [
        (Recipe, "optimizer", OPTIMIZERS),
        (Recipe, "schedule", SCHEDULES),
        (Loss, "form", FORMS),
        (Space, "sampler", SAMPLERS),
        (Loss, "divergence", [name for name, kind in DIVERGENCES.items() if kind.is_divergence]),
    ]
    for kind, field, table in tables:
        assert named(kind.model_fields[field].annotation) == set(table), field
    assert set(ALTERING) == set(AUGMENTATIONS)


def named(kind: Any) -> set[str]:
    """The values of a literal, or of one that may also be null."""
    parts = [get_args(part)[0] if get_origin(part) is Annotated else part for part in get_args(kind)]
    return {value for part in parts for value in get_args(part)} or set(parts)
