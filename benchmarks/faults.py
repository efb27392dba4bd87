"""Runs studies under random faults and says what was lost: nothing, or this exits 1.

    .venv/bin/python benchmarks/faults.py [--faults 20] [--seed 0]

A study of 43 stages on images of a user's own runs on a local Ray cluster of three nodes with a made-up GPU and a cache
each, with its trials in a PostgreSQL, while at random moments from a printed seed one of these happens; each kind comes
equally often:

    driver    kill -9 of the study's process; the same command runs again
    worker    kill -9 of a process that trains
    node      a node goes at once; another comes, which has no data set
    reclaim   a node is told to end, as a spot instance is (SIGTERM), while others train; another comes
    data      the nodes' caches are emptied, and a worker is killed: the next has no data set
    storage   PostgreSQL is stopped, and comes back after some seconds
    disk      the disk that the root is on is full, and has room again when the study has stopped
    stopped   a worker stands still for 30 s (SIGSTOP), and then goes on
    two       the study's process is killed, and two are started at once: one must refuse
    damage    bytes of what others learn from are overwritten, and the study's process is killed

Then a new study starts, until all faults are injected. Each final table is compared with that of a study nobody
disturbed. 20 faults take about 4 minutes on 2 cores. Without root there is no disk to fill, without the package
`pgserver` no PostgreSQL: these kinds are left out, which is said.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import yaml

from takd.analysis.tables import read_trials
from takd.study.data import import_files
from takd.study.folder import study_folder
from takd.trainables.datasets.built_in import OWN
from takd.trainables.datasets.mnist import read_shipped_mnist

NODES = 3
PACE = (0.5, 3.0)  # seconds between two faults, from when something was trained after the first
AWAY = (1.0, 4.0)  # seconds that the storage is away
STOPPED = 30.0  # seconds that a worker stands still
ANSWER = 90.0  # seconds in which of two drivers one refuses, or one stops whose disk is full
KINDS = ("driver", "worker", "node", "reclaim", "data", "storage", "disk", "stopped", "two", "damage")
DISK = "256m"
TAKD = str(Path(sys.executable).with_name("takd"))
SPACE: dict[str, Any] = {
    "dataset": "digits",
    "teacher": {"model": "mlp-64", "recipe": {"epochs": 40, "examples": 8_000}},
    "assistants": {"models": ["mlp-32", "mlp-16"], "recipe": {"epochs": 30, "examples": 4_000}},
    "student": {"model": "mlp-8", "recipe": {"epochs": 20, "examples": 2_000, "learning_rate": 3e-3}},
    "trials": 10,
    "coverage": 2,
    "seeds": 4,
    "sampler": "random",  # TPE's choices depend on which trials happen to have ended
    "deterministic": True,  # so that rows are equal to the last digit, whoever trained beside whom, and again
    "checkpoint_every": {"epochs": 1},
    "max_failures": 100,  # so that chance alone fails no stage
    "confirm": None,  # rows are compared with the search's alone
    "resources": {role: {"cpu": 1, "gpu": 0.5} for role in ("teacher", "assistant", "student")},
}
COMPARED = [
    "trial",
    "path_seed",
    "role",
    "stage_key",
    "arm",
    "temperature",
    "lambda",
    "val_accuracy",
    "status",
    "epochs",
]

CLUSTER = f"""
import itertools, os, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 0, "include_dashboard": False}})
numbers = itertools.count()

def node():
    os.environ["TAKD_CACHE"] = os.path.join(sys.argv[1], str(next(numbers)))  # of its own, and empty
    return cluster.add_node(num_cpus=1, num_gpus=1)

nodes = [node() for _ in range({NODES})]
print(cluster.address, flush=True)
for line in sys.stdin:
    how, number = line.split()
    cluster.remove_node(nodes.pop(int(number)), allow_graceful=how == "reclaim")
    nodes.append(node())
    print("done", flush=True)
"""


class LocalCluster:
    """Three nodes in a process of its own, from which one can be taken away. Each has its cache below a folder."""

    def __init__(self, caches: Path) -> None:
        self.caches = caches
        command = [sys.executable, "-c", CLUSTER, str(caches)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.address = self._answer()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def lose_a_node(self, number: int, how: str) -> None:
        """`how`: it is gone at once (`node`), or ends by itself when it is told to (`reclaim`)."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{how} {number}\n")
        self.process.stdin.flush()
        self._answer()

    def empty_caches(self) -> None:
        for cache in self.caches.glob("*"):
            shutil.rmtree(cache, ignore_errors=True)

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
    unrefused: int = 0  # of two drivers at once


class Watch:
    """What is durable below a root, seen from outside while a study runs there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.artifacts: dict[str, tuple[int, int]] = {}  # key -> when written, inode of stage.json
        self.retrained: set[str] = set()
        self.epochs: dict[str, list[Any]] = {}  # key -> the epochs of its last checkpoint before a fault
        self.newest = 0  # when a checkpoint was last written
        self.damaged: set[str] = set()  # what must be trained again

    @property
    def progress(self) -> tuple[int, int]:
        """Changes when a stage is finished, or an epoch."""
        return len(self.artifacts), self.newest

    def look(self) -> None:
        for file in self.root.glob("artifacts/[0-9a-f]*/stage.json"):
            seen = self.artifacts.setdefault(file.parent.name, _identity(file))
            if seen != _identity(file):
                self.retrained.add(file.parent.name)
        for file in self.root.glob("checkpoints/[0-9a-f]*"):
            done = self.artifacts.get(file.stem)
            written = _identity(file)
            self.newest = max(self.newest, written[0])
            if done and written and written[0] > done[0]:
                self.retrained.add(file.stem)
        self.retrained -= self.damaged

    def note_checkpoints(self) -> int:
        """Takes down what each stage in flight has saved; returns how many there are.

        Of two checkpoints the earlier: of stages that train together the later one counts where all have it.
        """
        found: dict[str, list[Any]] = {}
        for file in self.root.glob("checkpoints/[0-9a-f]*"):
            try:
                content = file.read_bytes()
            except FileNotFoundError:
                continue
            epochs = json.loads(content[64:].partition(b"\n")[0])["epochs"]
            found[file.stem] = min(found.get(file.stem, epochs), epochs, key=len)
        self.epochs |= found
        return len(found)

    def repeated(self) -> int:
        """Epochs that a checkpoint had and that were trained again all the same: each has its seconds in it."""
        total = 0
        for key, epochs in self.epochs.items():
            if key in self.damaged:
                continue
            final = json.loads((self.root / "artifacts" / key / "stage.json").read_bytes())["outcome"]["epochs"]
            again = sum(one != other for one, other in zip(epochs, final, strict=False))
            if again:
                print(f"stage {key[:12]} had saved {len(epochs)} epochs; {again} were trained again", flush=True)
            total += again
        return total


def _identity(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except FileNotFoundError:
        return (0, 0)
    return status.st_mtime_ns, status.st_ino


class Database:
    """A PostgreSQL of our own, with a database for each study."""

    def __init__(self, folder: Path) -> None:
        from pgserver.postgres_server import get_server

        self.server = get_server(folder, cleanup_mode="delete")

    def new(self, name: str) -> str:
        self.server.psql(f"CREATE DATABASE {name};")
        return str(self.server.get_uri(name))

    def stop(self) -> None:
        from pgserver import _commands

        pg_ctl: Callable[..., str] = vars(_commands)["pg_ctl"]  # made by name there
        pg_ctl(["-w", "-m", "immediate", "stop"], pgdata=self.server.pgdata, user=self.server.system_user)

    def start(self) -> None:
        self.server.ensure_postgres_running()

    def close(self) -> None:
        self.start()
        self.server.cleanup()


def start(space: Path, root: Path, *options: str) -> "subprocess.Popen[str]":
    command = [TAKD, "run", str(space), "--root", str(root), "--wandb", "disabled", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@dataclass
class Disturbed:
    """One study that runs, with what may happen to it. A fault returns whether it could be injected now."""

    space: Path
    root: Path
    cluster: LocalCluster
    database: Database | None
    storage: str
    dice: random.Random
    account: Account

    def __post_init__(self) -> None:
        self.watch = Watch(self.root)
        self.stopped: list[tuple[float, psutil.Process]] = []  # workers that stand still, and until when
        self.driver = self.start()

    def start(self) -> "subprocess.Popen[str]":
        options = ("--storage", self.storage) if self.storage else ()
        return start(self.space, self.root, "--address", self.cluster.address, *options)

    def run(self, next_kind: Callable[[], str | None]) -> Watch:
        """To its end, with as many of the wanted faults as it lasts."""
        kind: str | None = None
        next_fault: float | None = None
        progress = self.watch.progress
        while True:
            time.sleep(0.02)
            self.watch.look()
            self.wake(time.monotonic())
            if self.driver.poll() is not None:
                if self.driver.returncode == 0:
                    self.wake(float("inf"))
                    return self.watch
                print(self.driver.communicate()[0])
                raise SystemExit(f"a driver that nobody killed ended with {self.driver.returncode}")
            if next_fault is None and self.watch.progress != progress:
                next_fault = time.monotonic() + self.dice.uniform(*PACE)
            if next_fault is None or time.monotonic() < next_fault or (kind := kind or next_kind()) is None:
                continue
            in_flight = self.watch.note_checkpoints()
            if not getattr(self, f"inject_{kind}")():
                continue
            self.account.faults[kind] += 1
            self.account.in_flight += in_flight
            number, there = self.account.faults.total(), len(self.watch.artifacts)
            print(f"fault {number:3} {kind:<7} {there:3} stages finished", flush=True)
            kind, next_fault, progress = None, None, self.watch.progress

    def wake(self, now: float) -> None:
        for until, process in [each for each in self.stopped if each[0] <= now]:
            with suppress(psutil.NoSuchProcess):
                process.resume()
            self.stopped.remove((until, process))

    def kill_driver(self) -> None:
        self.driver.kill()
        self.driver.communicate()

    def awake(self) -> list[psutil.Process]:
        still = {process.pid for _, process in self.stopped}
        return [each for each in self.cluster.workers() if each.pid not in still]

    def inject_driver(self) -> bool:
        self.kill_driver()
        self.driver = self.start()
        return True

    def inject_worker(self) -> bool:
        if workers := self.awake():
            self.dice.choice(workers).kill()
        return bool(workers)

    def inject_node(self) -> bool:
        self.cluster.lose_a_node(self.dice.randrange(NODES), "node")
        return True

    def inject_reclaim(self) -> bool:
        self.cluster.lose_a_node(self.dice.randrange(NODES), "reclaim")
        return True

    def inject_data(self) -> bool:
        if done := self.inject_worker():
            self.cluster.empty_caches()
        return done

    def inject_storage(self) -> bool:
        assert self.database
        self.database.stop()
        time.sleep(self.dice.uniform(*AWAY))
        self.database.start()
        return True

    def inject_disk(self) -> bool:
        """Waits until the study has stopped, unless it ends before it needs the room."""
        ballast = self.root.parent / "ballast"
        with ballast.open("wb") as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
                file.flush()
        self.ended_with((0, 1), [self.driver])
        ballast.unlink()
        if self.driver.returncode:
            self.driver = self.start()
        return True

    def inject_stopped(self) -> bool:
        if workers := self.awake():
            process = self.dice.choice(workers)
            with suppress(psutil.NoSuchProcess):
                process.suspend()
                self.stopped.append((time.monotonic() + STOPPED, process))
        return bool(workers)

    def inject_two(self) -> bool:
        self.kill_driver()
        drivers = [self.start(), self.start()]
        ended = self.ended_with((0, 2), drivers)
        self.driver = next(each for each in drivers if each is not ended)
        if ended is None or ended.returncode != 2 or "runs it" not in ended.communicate()[0]:
            self.account.unrefused += 1
        return True

    def inject_damage(self) -> bool:
        """Of what others learn from: a finished student is looked at again by nobody but an export."""
        whole = [each for each in self.taught() if each not in self.watch.damaged]
        if whole:
            key = self.dice.choice(sorted(whole))
            with (self.root / "artifacts" / key / "model.safetensors").open("r+b") as weights:
                weights.seek(-16, 2)
                weights.write(bytes(self.dice.randrange(256) for _ in range(16)))
            self.watch.damaged.add(key)
            self.inject_driver()
        return bool(whole)

    def taught(self) -> Iterator[str]:
        for key in self.watch.artifacts:
            with suppress(FileNotFoundError):
                described = json.loads((self.root / "artifacts" / key / "stage.json").read_bytes())
                if described["outcome"]["role"] != "student":
                    yield key

    def ended_with(
        self, codes: Sequence[int], drivers: Sequence["subprocess.Popen[str]"]
    ) -> "subprocess.Popen[str] | None":
        """The first of them that has ended; None where none does for long."""
        until = time.monotonic() + ANSWER
        while time.monotonic() < until:
            for driver in drivers:
                if driver.poll() in codes:
                    return driver
                if driver.returncode is not None:
                    raise SystemExit(f"{driver.communicate()[0]}a driver ended with {driver.returncode}")
            self.watch.look()
            self.wake(time.monotonic())
            time.sleep(0.05)
        return None


def table(root: Path) -> pd.DataFrame:
    return read_trials(study_folder(str(root), "faults").trials)


def import_digits(folder: Path) -> None:
    """A data set of a user's own, which a node has only if it is given it: a part of MNIST."""
    parts = read_shipped_mnist()
    arrays = {}
    for name, rows in (("train", slice(0, 12_000)), ("val", slice(12_000, 14_000)), ("test", slice(14_000, 15_000))):
        arrays[f"{name}_images"] = np.asarray(parts["train"].images[rows])[:, 0]
        arrays[f"{name}_labels"] = np.asarray(parts["train"].labels[rows])[:, None]
    np.savez(str(folder / "digits.npz"), allow_pickle=False, **arrays)
    import_files(OWN, folder / "digits.npz", "digits", None, False)


@contextmanager
def disk(folder: Path) -> Iterator[bool]:
    """A small disk at a folder; whether this machine gives one."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)], capture_output=True)
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)])


@contextmanager
def database() -> Iterator[Database | None]:
    if find_spec("pgserver") is None:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="takd-pg-"))  # PostgreSQL runs as a user of its own
    found = Database(folder)
    try:
        yield found
    finally:
        found.close()
        shutil.rmtree(folder, ignore_errors=True)


def dealt(kinds: Sequence[str], number: int, dice: random.Random) -> list[str]:
    """So many, in a random order, each kind as often as the others."""
    found: list[str] = []
    while len(found) < number:
        found += dice.sample(kinds, len(kinds))
    return found[:number]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dice, account = random.Random(options.seed), Account()
    with tempfile.TemporaryDirectory(prefix="takd-faults-") as name, database() as server:
        folder = Path(name)
        with disk(folder / "disk") as has_disk:
            lacking = [*(["storage"] if server is None else []), *([] if has_disk else ["disk"])]
            kinds = dealt([kind for kind in KINDS if kind not in lacking], options.faults, dice)
            without = f", without {' and '.join(lacking)}" if lacking else ""
            print(f"{options.faults} faults from seed {options.seed}{without}", flush=True)
            os.environ["TAKD_CACHE"] = str(folder / "cache")
            import_digits(folder)
            space = folder / "faults.yaml"
            space.write_text(yaml.safe_dump(SPACE))
            expected = undisturbed(space, folder / "undisturbed")
            cluster = LocalCluster(folder / "caches")
            try:
                while kinds:
                    root = folder / "disk" / f"disturbed-{account.studies}"
                    storage = server.new(f"study_{account.studies}") if server else ""
                    study = Disturbed(space, root, cluster, server, storage, dice, account)
                    watch = study.run(lambda: kinds.pop(0) if kinds else None)
                    settle(account, watch, table(root), expected)
                    shutil.rmtree(root)
            finally:
                cluster.close()
    counted = ", ".join(f"{number} {kind}" for kind, number in sorted(account.faults.items()))
    print(f"faults injected               {account.faults.total()} ({counted})")
    print(f"stages finished               {account.finished} in {account.studies} studies")
    print(f"finished stages trained twice {account.retrained}")
    print(f"results lost                  {account.lost}")
    print(
        f"saved epochs trained again    {account.repeated}; stages in flight at a fault: {account.in_flight}, each of"
    )
    print("                              which may repeat the one epoch it was in")
    print(f"rows unlike the undisturbed   {account.different}")
    print(f"second drivers not refused    {account.unrefused}")
    wrong = (account.retrained, account.lost, account.repeated, account.different, account.unrefused)
    return int(any(wrong) or account.faults.total() < options.faults)


def undisturbed(space: Path, root: Path) -> pd.DataFrame:
    started = time.monotonic()
    no_gpus = [f"--set=resources.{role}.gpu=0" for role in SPACE["resources"]]
    study = start(space, root, "--slots", "2", *no_gpus)
    output, _ = study.communicate()
    if study.returncode != 0:
        raise SystemExit(output)
    expected = table(root)
    print(f"undisturbed: {expected['stage_key'].nunique()} stages in {time.monotonic() - started:.0f} s", flush=True)
    return expected


def settle(account: Account, watch: Watch, rows: pd.DataFrame, expected: pd.DataFrame) -> None:
    watch.look()
    account.studies += 1
    account.finished += rows["stage_key"].nunique()
    account.retrained += len(watch.retrained)
    account.lost += len(set(expected["stage_key"]) - set(rows[rows["status"] == "done"]["stage_key"]))
    account.repeated += watch.repeated()
    both_null = rows[COMPARED].isna() & expected[COMPARED].isna()
    same = ((rows[COMPARED] == expected[COMPARED]) | both_null).all(axis=1)
    account.different += int((~same).sum())
    shown = COMPARED[:-2]
    for number in rows.index[~same][:5]:
        print(f"unlike: {rows.loc[number, shown].to_dict()}\nnot     {expected.loc[number, shown].to_dict()}")


if __name__ == "__main__":
    sys.exit(main())
