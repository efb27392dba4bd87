"""Runs studies under random faults and says what was lost: nothing, or this exits 1.

    .venv/bin/python benchmarks/faults.py [--faults 20] [--seed 0]

A study of 43 stages runs on a local Ray cluster of three nodes with a made-up GPU each, while at random moments from a
printed seed one of these happens: kill -9 of the driver, kill -9 of a worker that trains, a node goes at once (another
comes). The same command runs again after each fault of the driver's, until the study is done; then a new study starts,
until all faults are injected. Each final table is compared with that of a study nobody disturbed. 20 faults take about
7 minutes on 2 cores, 100 about half an hour.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import yaml

from takd.analysis.tables import read_trials
from takd.study.folder import study_folder

NODES = 3
PACE = (3.0, 12.0)  # seconds between two faults
TAKD = str(Path(sys.executable).with_name("takd"))
SPACE: dict[str, Any] = {
    "dataset": "mnist",
    "teacher": {"model": "mlp-64", "recipe": {"epochs": 40, "examples": 10_000}},
    "assistants": {"models": ["mlp-32", "mlp-16"], "recipe": {"epochs": 30, "examples": 5_000}},
    "student": {"model": "mlp-8", "recipe": {"epochs": 20, "examples": 2_000, "learning_rate": 3e-3}},
    "trials": 10,
    "coverage": 2,
    "seeds": 4,
    "sampler": "random",  # TPE's choices depend on which trials happen to have ended
    "checkpoint_every": {"epochs": 1},
    "max_failures": 100,  # so that chance alone fails no stage
    "confirm": None,  # rows are compared with the search's alone
    "resources": {role: {"cpu": 1, "gpu": 0.5} for role in ("teacher", "assistant", "student")},
}
COMPARED = ["trial", "path_seed", "role", "stage_key", "arm", "temperature", "lambda", "status", "epochs"]

CLUSTER = f"""
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 0, "include_dashboard": False}})
nodes = [cluster.add_node(num_cpus=1, num_gpus=1) for _ in range({NODES})]
print(cluster.address, flush=True)
for line in sys.stdin:
    cluster.remove_node(nodes.pop(int(line)), allow_graceful=False)
    nodes.append(cluster.add_node(num_cpus=1, num_gpus=1))
    print("done", flush=True)
"""


class LocalCluster:
    """Three nodes in a process of its own, from which one can be taken away."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", CLUSTER]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.address = self._answer()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def lose_a_node(self, number: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        self._answer()

    def workers(self) -> list[psutil.Process]:
        """The processes that train."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::StageTrainable"):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def close(self) -> None:
        own = psutil.Process(self.process.pid)
        for process in (*own.children(recursive=True), own):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


@dataclass
class Account:
    """What happened, over all studies."""

    faults: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    studies: int = 0
    finished: int = 0
    retrained: int = 0
    lost: int = 0
    repeated: int = 0
    different: int = 0


class Watch:
    """What is durable below a root, seen from outside while a study runs there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.artifacts: dict[str, tuple[int, int]] = {}  # key -> when written, inode of stage.json
        self.retrained: set[str] = set()
        self.epochs: dict[str, list[Any]] = {}  # key -> the epochs of its last checkpoint before a fault

    def look(self) -> None:
        for file in self.root.glob("artifacts/[0-9a-f]*/stage.json"):
            seen = self.artifacts.setdefault(file.parent.name, _identity(file))
            if seen != _identity(file):
                self.retrained.add(file.parent.name)
        for file in self.root.glob("checkpoints/[0-9a-f]*"):
            done = self.artifacts.get(file.name)
            written = _identity(file)
            if done and written and written[0] > done[0]:
                self.retrained.add(file.name)

    def note_checkpoints(self) -> int:
        """Takes down what each stage in flight has saved; returns how many there are."""
        found = 0
        for file in self.root.glob("checkpoints/[0-9a-f]*"):
            try:
                content = file.read_bytes()
            except FileNotFoundError:
                continue
            self.epochs[file.name] = json.loads(content[64:].partition(b"\n")[0])["epochs"]
            found += 1
        return found

    def repeated(self) -> int:
        """Epochs that a checkpoint had and that were trained again all the same: each has its seconds in it."""
        total = 0
        for key, epochs in self.epochs.items():
            final = json.loads((self.root / "artifacts" / key / "stage.json").read_bytes())["outcome"]["epochs"]
            total += sum(one != other for one, other in zip(epochs, final, strict=False))
        return total


def _identity(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except FileNotFoundError:
        return (0, 0)
    return status.st_mtime_ns, status.st_ino


def start(space: Path, root: Path, *options: str) -> "subprocess.Popen[str]":
    command = [TAKD, "run", str(space), "--root", str(root), "--wandb", "disabled", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def disturbed_study(
    space: Path, root: Path, cluster: LocalCluster, dice: random.Random, wanted: int, account: Account
) -> Watch:
    """Runs one study to its end, with as many of the wanted faults as it lasts."""
    watch = Watch(root)
    driver, next_fault = start(space, root, "--address", cluster.address), time.monotonic() + dice.uniform(*PACE)
    while True:
        time.sleep(0.02)
        watch.look()
        if driver.poll() is not None:
            if driver.returncode == 0:
                return watch
            print(driver.communicate()[0])
            raise SystemExit(f"a driver that nobody killed ended with {driver.returncode}")
        if account.faults.total() >= wanted or time.monotonic() < next_fault:
            continue
        kind = dice.choice(["driver", "worker", "node"])
        workers = cluster.workers()
        if kind == "worker" and not workers:
            continue
        account.in_flight += watch.note_checkpoints()
        if kind == "driver":
            driver.kill()
            driver.wait()
            driver = start(space, root, "--address", cluster.address)
        elif kind == "worker":
            dice.choice(workers).kill()
        else:
            cluster.lose_a_node(dice.randrange(NODES))
        account.faults[kind] += 1
        print(f"fault {account.faults.total():3} {kind:<7} {len(watch.artifacts):3} stages finished", flush=True)
        next_fault = time.monotonic() + dice.uniform(*PACE)


def table(root: Path) -> pd.DataFrame:
    return read_trials(study_folder(str(root), "faults").trials)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dice, account = random.Random(options.seed), Account()
    print(f"{options.faults} faults from seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="takd-faults-") as folder:
        space = Path(folder) / "faults.yaml"
        space.write_text(yaml.safe_dump(SPACE))
        started = time.monotonic()
        no_gpus = [f"--set=resources.{role}.gpu=0" for role in SPACE["resources"]]
        undisturbed = start(space, Path(folder) / "undisturbed", "--slots", "2", *no_gpus)
        output, _ = undisturbed.communicate()
        if undisturbed.returncode != 0:
            raise SystemExit(output)
        expected = table(Path(folder) / "undisturbed")
        print(
            f"undisturbed: {expected['stage_key'].nunique()} stages in {time.monotonic() - started:.0f} s", flush=True
        )
        cluster = LocalCluster()
        try:
            while account.faults.total() < options.faults:
                root = Path(folder) / f"disturbed-{account.studies}"
                watch = disturbed_study(space, root, cluster, dice, options.faults, account)
                settle(account, watch, table(root), expected)
        finally:
            cluster.close()
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(account.faults.items()))
    print(f"faults injected               {account.faults.total()} ({kinds})")
    print(f"stages finished               {account.finished} in {account.studies} studies")
    print(f"finished stages trained twice {account.retrained}")
    print(f"results lost                  {account.lost}")
    print(
        f"saved epochs trained again    {account.repeated}; stages in flight at a fault: {account.in_flight}, each of"
    )
    print("                              which may repeat the one epoch it was in")
    print(f"rows unlike the undisturbed   {account.different}")
    return int(any((account.retrained, account.lost, account.repeated, account.different)))


def settle(account: Account, watch: Watch, rows: pd.DataFrame, expected: pd.DataFrame) -> None:
    watch.look()
    account.studies += 1
    account.finished += rows["stage_key"].nunique()
    account.retrained += len(watch.retrained)
    account.lost += len(set(expected["stage_key"]) - set(rows[rows["status"] == "done"]["stage_key"]))
    account.repeated += watch.repeated()
    both_null = rows[COMPARED].isna() & expected[COMPARED].isna()
    same = ((rows[COMPARED] == expected[COMPARED]) | both_null).all(axis=1)
    close = (rows["val_accuracy"] - expected["val_accuracy"]).abs() <= 1e-3
    account.different += int((~(same & close)).sum())
    shown = ["val_accuracy", *COMPARED[:-2]]
    for number in rows.index[~(same & close)][:5]:
        print(f"unlike: {rows.loc[number, shown].to_dict()}\nnot     {expected.loc[number, shown].to_dict()}")


if __name__ == "__main__":
    sys.exit(main())
