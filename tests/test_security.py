"""Secrets come from the environment and go nowhere else. What is read back runs no code: see test_artifacts.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import TINY

KEY, PASSWORD, TOKEN = "d15ea5e" * 5 + "d15ea", "plantedpassword", "plantedtoken"


@pytest.mark.slow
def test_planted_secrets_are_nowhere_in_what_a_study_leaves(bucket, database, takd, tmp_path, monkeypatch):
    """A study with everything that needs a secret: a bucket, a database with a password, a W&B key."""
    space = tmp_path / "tiny.yaml"
    space.write_text(yaml.safe_dump({**TINY, "arms": ["kd"], "trials": 1, "coverage": 0}))
    environment = {
        **os.environ,
        "TAKD_STORAGE": database.replace("postgres:@", f"postgres:{PASSWORD}@"),
        "WANDB_API_KEY": KEY,
        "AWS_SESSION_TOKEN": TOKEN,
        "TAKD_CACHE": str(tmp_path / "cache"),
    }
    program = str(Path(sys.executable).parent / "takd")
    options = ["--root", bucket, "--wandb", "offline", "--slots", "1"]
    command = [program, "run", str(space), *options]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    for name in environment.keys() - os.environ.keys():
        monkeypatch.setenv(name, environment[name])
    for command in ("status", "results"):
        again = takd(command, "tiny", "--root", bucket)
        assert again.code == 0, again.err
        done.stdout += again.out + again.err
    left = {str(file): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    left |= {"output": done.stdout.encode(), "errors": done.stderr.encode()} | contents(bucket)
    assert len(left) > 15
    assert any(name.endswith(".wandb") for name in left)
    assert any(name.endswith("stage.json") for name in left)
    for secret in (KEY, PASSWORD, TOKEN):
        assert [name for name, content in left.items() if secret.encode() in content] == []


def contents(root: str) -> dict[str, bytes]:
    from pyarrow import fs

    files, path = fs.FileSystem.from_uri(root)
    entries = files.get_file_info(fs.FileSelector(path, recursive=True))
    return {entry.path: files.open_input_file(entry.path).read() for entry in entries if entry.is_file}
