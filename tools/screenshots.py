"""Makes the README's pictures of a study that runs: python tools/screenshots.py [OUT]

A small study of real MNIST runs for half a minute; meanwhile the terminal display is drawn into `terminal.svg`, and
Chromium, which has to be there, takes `dashboard.png` of `takd dashboard`.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from takd.search_spaces import space_from
from takd.study.checks import check_space
from takd.study.folder import study_folder
from takd.study.search.graph import Node, StageGraph
from takd.study.search.optimization import create_search
from takd.study.search.scheduling import PathSearcher, run_stages, start_ray
from takd.study.stopping import Stop
from takd.study.tracking.observers import Observers
from takd.study.tracking.progress import Progress

TAKD = Path(sys.executable).with_name("takd")
WIDTH, SLOTS = 100, 2  # columns; of CPUs
SPACE: dict[str, Any] = {
    "dataset": "mnist",
    "teacher": {"model": "mlp-400", "recipe": {"epochs": 2}},
    "assistants": {"models": ["mlp-64", "mlp-16"], "recipe": {"epochs": 1}},
    "student": {
        "model": "mlp-8",
        "temperature": {"low": 1, "high": 16, "log": True},
        "lambda": {"low": 0.3, "high": 0.9},
        "recipe": {"epochs": 15, "examples": 1000, "learning_rate": 1e-2},
    },
    "trials": 40,
    "coverage": 6,
}


class Picture:
    """An observer that draws the display once, when some students have ended."""

    def __init__(self, progress: Progress, after: int, file: Path) -> None:
        self.progress, self.after, self.file = progress, after, file

    def stage_started(self, node: Node) -> None: ...
    def stage_reported(self, node: Node, epochs: Sequence[dict[str, Any]]) -> None: ...
    def stage_ended(self, node: Node) -> None: ...

    def graph_changed(self, graph: StageGraph, trials_left: int) -> None:
        if graph.counts["student"]["done"] >= self.after and not self.file.exists():
            console = Console(record=True, force_terminal=True, width=WIDTH, file=open(os.devnull, "w"))  # noqa: SIM115
            console.print(self.progress.picture())
            console.save_svg(str(self.file), title="takd run gap")

    def close(self) -> None: ...


def take_dashboard(root: str, chromium: str, file: Path) -> None:
    command = [str(TAKD), "dashboard", "gap", "--root", root, "--port", "0"]
    dashboard = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert dashboard.stdout
    page = dashboard.stdout.readline().split()[0]
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1400,1100"]
    options += ["--virtual-time-budget=20000", f"--screenshot={file}"]
    subprocess.run([chromium, *options, page], check=True, capture_output=True, timeout=120)
    dashboard.terminate()
    dashboard.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path(__file__).parents[1] / "docs")
    out = parser.parse_args().out.absolute()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no chromium and no google-chrome on this machine")
    (out / "terminal.svg").unlink(missing_ok=True)
    space = space_from(SPACE, "gap")
    with tempfile.TemporaryDirectory(prefix="takd-pictures-") as root:
        folder = study_folder(root, "gap")
        dataset, _ = check_space(space, "gap")
        folder.prepare()
        search = create_search(folder, space, dataset.fingerprint)
        start_ray(SLOTS)
        progress = Progress("gap", space.seeds, SLOTS, Console(width=WIDTH, file=open(os.devnull, "w")))  # noqa: SIM115
        observers = Observers([progress, Picture(progress, 20, out / "terminal.svg")])
        run_stages(PathSearcher(search, StageGraph(folder.artifacts), root, observers, Stop()))
        observers.close()
        take_dashboard(root, chromium, out / "dashboard.png")
    for name in ("terminal.svg", "dashboard.png"):
        print(f"{out / name}: {(out / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
