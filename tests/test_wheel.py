"""What is installed is whole: a source archive, its wheel, and the study of the README in a folder full of traps."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = set(PROJECT["tool"]["setuptools"]["package-dir"].values())


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
def test_the_wheel_runs_the_readmes_three_commands_and_reports_beside_folders_of_the_same_names(cache, tmp_path):
    """Exactly its files and commands, with workers; what was exported runs where neither takd nor the code is."""
    wheel = build_wheel(tmp_path)
    own = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert own == {"takd", f"takd-{PROJECT['project']['version']}.dist-info"}
    programs = install(wheel, tmp_path / "environment")
    home = tmp_path / "home"
    for name in FOLDERS - {"takd"}:
        (home / name).mkdir(parents=True)
        (home / name / "__init__.py").write_text("raise SystemExit('somebody else')")
    about = (ROOT / PROJECT["project"]["readme"]).read_text()
    _, _, about = about.partition("A network of your own, from an empty folder.")
    nets, space, commands = re.findall(r"```(?:python|yaml)?\n(.*?)```", about, re.DOTALL)[:3]
    (home / "nets.py").write_text(nets)
    (home / "small.yaml").write_text(space)
    assert (len(space.splitlines()), len(commands.splitlines())) == (6, 3)
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env["PATH"] = f"{programs}{os.pathsep}{env['PATH']}"

    where = "import takd.study, takd.analysis as analysis; print(takd.__version__, takd.__file__, analysis.__file__)"
    version, *files = call(programs / "python", "-c", where, cwd=home, env=env).split()
    assert version == PROJECT["project"]["version"]
    assert all(Path(file).is_relative_to(tmp_path / "environment") for file in files), files
    shown = call("bash", "-ec", commands, cwd=home, env=env)
    assert "small-8 trains alone" in shown
    assert "BLKD" in shown
    session = onnxruntime.InferenceSession(home / "student" / "student.onnx")
    [logits] = session.run(None, {"images": np.zeros((3, 1, 28, 28), np.float32)})
    assert logits.shape == (3, 10)
    call(programs / "python", "-m", "takd", "report", "small", cwd=home, env=env)
    assert (home / "runs" / "small" / "report" / "report.html").is_file()
