"""How long `takd run` takes on a finished study of 1,000 trials: it must find out that there is nothing to do.

    .venv/bin/python benchmarks/resume.py [--trials 1000]

Trials and artifacts are written without training (2 epochs a stage, made-up accuracies); half a minute. What is timed
is the command itself, in a process of its own, tables and figure included. At most 10 s wanted.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from takd.search_spaces import Stage, space_from
from takd.study.checks import check_space
from takd.study.folder import study_folder
from takd.study.search.graph import StageGraph
from takd.study.search.optimization import create_search
from takd.trainables.store.artifacts import SOFT_TARGETS, WEIGHTS

SPACE: dict[str, Any] = {
    "dataset": "mnist",
    "teacher": "mlp-64",
    "assistants": ["mlp-16"],
    "student": {"model": "mlp-8", "temperature": {"low": 1, "high": 20}},
    "sampler": "random",
    "confirm": None,  # nothing is left to train
}


def outcome(stage: Stage) -> dict[str, Any]:
    epoch = {"learning_rate": 1e-3, "train_loss": 0.5, "val_loss": 0.5, "val_accuracy": 0.5, "seconds": 0.1}
    return {
        "name": stage.name,
        "role": stage.role,
        "metrics": {"validation": {"accuracy": 0.5 + int(stage.key[:4], 16) / 200_000, "loss": 0.5}},
        "selected_epoch": 2,
        "epochs": [{"epoch": number, **epoch} for number in (1, 2)],
        "train_seconds": 0.2,
        "parameters": 6442,
        "flops_per_image": 12832,
        "origin": {"study": "big", "use": "0.0"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="takd-resume-") as root:
        given = SPACE | {"trials": options.trials}
        file = Path(root) / "big.yaml"
        file.write_text(yaml.safe_dump(given))
        space, folder = space_from(given, "benchmark"), study_folder(root, "big")
        dataset, _ = check_space(space, "benchmark")
        folder.prepare()
        search = create_search(folder, space, dataset.fingerprint)
        graph = StageGraph(folder.artifacts)
        while proposal := search.ask():
            for stage in proposal.paths[0].stages:
                description = {"input": stage.key_input(), "outcome": outcome(stage)}
                folder.artifacts.publish(stage.key, description, {WEIGHTS: b"none", SOFT_TARGETS: b"none"})
            graph.add(proposal)
            graph.close_finished()
            search.tell(proposal, graph)
        command = [str(Path(sys.executable).with_name("takd")), "run", str(file), "--root", root]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        assert done.returncode == 0, done.stderr
        assert "0 stages trained in this run; the study is complete" in done.stdout
        print(f"resume of a finished study of {options.trials:,} trials: {seconds:.1f} s, at most 10 wanted")


if __name__ == "__main__":
    main()
