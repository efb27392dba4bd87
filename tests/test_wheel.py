"""What is installed is whole: a source archive, the wheel made of it, and a study in a folder that is full of traps."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = set(PROJECT["tool"]["setuptools"]["package-dir"].values())

SPACE = """
dataset: mnist
teacher: mlp-16
student: mlp-4
arms: [labels, kd]
trials: 2
"""
TINY = [f"{role}.recipe.{each}" for role in ("teacher", "student") for each in ("epochs=1", "examples=200")]


def call(*command: Any, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(each) for each in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_wheel(folder: Path) -> Path:
    """Of a copy of the sources, so that nothing is left beside them; by way of the source archive."""
    sources = folder / "sources"
    hidden = shutil.ignore_patterns("__pycache__")
    for name in sorted(FOLDERS):
        shutil.copytree(ROOT / name, sources / name, ignore=hidden)
    for name in ("pyproject.toml", "LICENSE", PROJECT["project"]["readme"]):
        shutil.copy(ROOT / name, sources)
    sdist = "from setuptools import build_meta; print(build_meta.build_sdist('..'))"
    archive = folder / call(sys.executable, "-c", sdist, cwd=sources).splitlines()[-1]
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    call(*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, archive, cwd=folder)
    [wheel] = folder.glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """Into an environment with the libraries of this one, and of this project the wheel alone; returns its `bin`."""
    call(sys.executable, "-m", "venv", "--without-pip", folder, cwd=wheel.parent)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    call(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=wheel.parent)
    [site] = folder.glob("lib/python*/site-packages")
    # What such a file adds is searched, but the files like it that are there, one for this project, are not read.
    (site / "libraries.pth").write_text("\n".join(each for each in sys.path if each.endswith("-packages")))
    return folder / "bin"


@pytest.mark.slow
def test_the_wheel_runs_reports_and_exports_beside_folders_of_the_same_names(cache, tmp_path):
    wheel = build_wheel(tmp_path)
    own = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert own == {"takd", f"takd-{PROJECT['project']['version']}.dist-info"}
    programs = install(wheel, tmp_path / "environment")
    home = tmp_path / "home"
    for name in FOLDERS - {"takd"}:
        (home / name).mkdir(parents=True)
        (home / name / "__init__.py").write_text("raise SystemExit('somebody else')")
    (home / "five.yaml").write_text(SPACE)
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    takd, python_m = (programs / "takd",), (programs / "python", "-m", "takd")
    where = "import takd.study, takd.analysis as analysis; print(takd.__version__, takd.__file__, analysis.__file__)"
    version, *files = call(programs / "python", "-c", where, cwd=home, env=env).split()
    assert version == PROJECT["project"]["version"]
    assert all(Path(file).is_relative_to(tmp_path / "environment") for file in files), files
    overrides = [word for each in (*TINY, "confirm.seeds=1") for word in ("--set", each)]
    shown = call(*python_m, "run", "five.yaml", "--slots", "1", "--wandb", "disabled", *overrides, cwd=home, env=env)
    assert "BLKD" in shown
    call(*takd, "report", "five", cwd=home, env=env)
    assert (home / "runs" / "five" / "report" / "report.html").is_file()
    call(*takd, "export", "five", "--out", "best", cwd=home, env=env)
    assert (home / "best" / "model_card.json").is_file()
