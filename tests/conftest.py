"""What tests share: a cache, one Ray, stages made by hand, and one small finished study of real MNIST."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from pyarrow import fs

if "PYTEST_XDIST_WORKER" in os.environ:  # two threads of each of two processes would wait for one another's cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
os.environ["WANDB_MODE"] = "offline"
os.environ.pop("TAKD_ROOT", None)
os.environ.pop("TAKD_STORAGE", None)
os.environ.pop("WANDB_API_KEY", None)
os.environ.pop("COLUMNS", None)  # pytest-xdist's

from image_folders import write_images
from in_process import train_here
from rich.console import Console

from takd.search_spaces import DatasetFingerprint, Loss, Recipe, Space, Stage, space_from
from takd.study.checks import check_space
from takd.study.cli import main
from takd.study.folder import StudyFolder, study_folder
from takd.study.options import RunOptions
from takd.study.run import RunResult, run_study
from takd.study.search.graph import Node, Proposal, StageGraph
from takd.study.search.optimization import Search, create_search
from takd.study.search.scheduling import PathSearcher, run_stages, start_ray
from takd.study.stopping import Stop
from takd.study.tracking.observers import Observer, Observers

# Of the Ray that tests share: two processes of tests have two cores, and a second worker costs seconds of both.
SLOTS = 1

# Files that take longest: first, so that two processes of tests end together.
SLOW_FILES = (
    "test_resume.py",
    "test_report.py",
    "test_apart.py",
    "test_export.py",
    "test_studies_of_own_code.py",
    "test_cluster.py",
    "test_unshared.py",
    "test_uploading.py",
    "test_api.py",
    "test_lanes.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


# Before a test module loads a dataset; the caller may have a folder to keep.
GIVEN = dict(os.environ)
CACHES = Path(GIVEN.get("TAKD_CACHE") or tempfile.mkdtemp(prefix="takd-tests-"))
CACHE = CACHES / GIVEN.get("PYTEST_XDIST_WORKER", "main")
os.environ["TAKD_CACHE"] = str(CACHE)

TINY: dict[str, Any] = {
    "dataset": "mnist",
    "teacher": {"model": "mlp-64", "recipe": {"epochs": 2, "examples": 1000}},
    "assistants": {"models": ["mlp-16"], "recipe": {"epochs": 2, "examples": 1000}},
    "student": {
        "model": "mlp-4",
        "temperature": {"choices": [1, 4]},
        "lambda": 0.7,
        "recipe": {"epochs": 3, "examples": 200, "learning_rate": 0.01},
    },
    "trials": 6,
    "coverage": 2,
    "seeds": 2,
    "confirm": None,
}


def tiny_space(**changes: Any) -> Space:
    """The arms labels, kd and takd:mlp-16 on a few hundred images; `section__key=` changes inside a section."""
    given = {name: dict(value) if isinstance(value, dict) else value for name, value in TINY.items()}
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key == "recipe":
            given[section]["recipe"] = {**given[section]["recipe"], **value}
        elif key:
            given[section][key] = value
        else:
            given[section] = value
    return space_from(given, "tiny")


def complete(search: Search, proposal: Proposal | None, accuracy: float = 0.5) -> None:
    """Tells a search that all stages of a proposal ended, with this accuracy."""
    assert proposal is not None
    outcome = {"metrics": {"validation": {"accuracy": accuracy}}, "train_seconds": 1.0}
    graph = StageGraph(Found(lambda stage: {"outcome": outcome}))
    graph.add(proposal)
    graph.close_finished()
    search.tell(proposal, graph)


def proposals(search: Search) -> list[Proposal]:
    """All that it still proposes; each ends at once."""
    found = []
    while proposal := search.ask():
        complete(search, proposal)
        found.append(proposal)
    return found


def artifacts(folder: StudyFolder) -> Path:
    """The folder of a study's artifacts, where its root is a folder."""
    return Path(folder.root) / "artifacts"


@pytest.fixture(scope="session", autouse=True)
def cache() -> Iterator[Path]:
    """One dataset cache for each process of tests: some of them hide a split or break a file in it."""
    yield CACHE
    if "TAKD_CACHE" not in GIVEN:
        shutil.rmtree(CACHES)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the test's own, empty."""
    from takd.trainables.datasets.dataset import load

    monkeypatch.setenv("TAKD_CACHE", str(tmp_path / "cache"))
    load.cache_clear()
    yield tmp_path / "cache"
    load.cache_clear()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images of three classes, not to be changed."""
    return write_images(tmp_path_factory.mktemp("made") / "trees")


@pytest.fixture
def trees(made: Path, tmp_path: Path) -> Path:
    """A copy to do with as a test likes."""
    return Path(shutil.copytree(made, tmp_path / "trees"))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real S3 server on loopback, for the whole session."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path_factory.mktemp("s3") / "log").open("w")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=log, stderr=log)
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
    until = time.monotonic() + 60
    while socket.socket().connect_ex(("127.0.0.1", port)) and time.monotonic() < until:
        time.sleep(0.1)
    yield f"127.0.0.1:{port}"
    server.terminate()
    server.wait()


@pytest.fixture
def bucket(s3_server: str) -> str:
    return new_bucket(s3_server)


def new_bucket(s3_server: str) -> str:
    """The URI of an empty place in a bucket."""
    files = fs.S3FileSystem(endpoint_override=s3_server, scheme="http", region="us-east-1", allow_bucket_creation=True)
    files.create_dir("takd")
    return f"s3://takd/{uuid.uuid4().hex}?endpoint_override={s3_server}&scheme=http&region=us-east-1"


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a real PostgreSQL server that listens on a Unix socket alone."""
    pgserver = pytest.importorskip("pgserver", reason="its wheels are for Python 3.12 and older")
    folder = tempfile.mkdtemp(prefix="takd-pg-")  # not in pytest's: PostgreSQL runs as a user of its own
    server = pgserver.get_server(folder, cleanup_mode="delete")
    for faster in ("fsync", "synchronous_commit", "full_page_writes"):  # no test takes the machine's power away
        server.psql(f"ALTER SYSTEM SET {faster} = off;")
    server.psql("SELECT pg_reload_conf();")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def database(postgres: str) -> str:
    return new_database(postgres)


def new_database(postgres: str) -> str:
    """The URL of an empty database."""
    import sqlalchemy

    name = f"takd_{uuid.uuid4().hex}"
    with sqlalchemy.create_engine(postgres, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    return postgres.replace("/postgres?", f"/{name}?")


@pytest.fixture(params=["journal", "postgres"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> StudyFolder:
    """The folder of a study named tiny, with either kind of Optuna storage, ready for use."""
    database = request.getfixturevalue("database") if request.param == "postgres" else ""
    folder = study_folder(str(tmp_path), "tiny", database)
    folder.prepare()
    return folder


@pytest.fixture(scope="session")
def ray_slots(cache: Path) -> Iterator[int]:
    """One Ray for all tests that train stages."""
    import ray

    yield start_ray(SLOTS)
    ray.shutdown()


def make_stage(model: str = "mlp-4", *, role: Any = "student", upstream: tuple[Stage, ...] = (), **given: Any) -> Stage:
    """A stage made by hand; recipe fields and seed, temperature and lambda_ by name."""
    own = {
        name: given.pop(name)
        for name in ("seed", "temperature", "lambda_", "loss", "dataset", "pretrained")
        if name in given
    }
    if upstream:
        own = {"temperature": 4.0, "lambda_": 0.7, "loss": Loss()} | own
    dataset = own.pop("dataset", DatasetFingerprint(name="mnist", digest="d", split_seed=0, sizes={"train": 50000}))
    recipe = Recipe.model_validate({"epochs": 2, "examples": 200} | given)
    return Stage(
        role=role, dataset=dataset, model=model, recipe=recipe, seed=own.pop("seed", 0), upstream=upstream, **own
    )


@pytest.fixture(scope="session")
def stage() -> Callable[..., Stage]:
    return make_stage


@dataclass(frozen=True)
class Study:
    """A study that ran, with what it left."""

    folder: StudyFolder
    space: Space
    result: RunResult
    output: str


def run(
    folder: StudyFolder, space: Space, wandb: Any = "disabled", workers: bool = False, profile: bool = False
) -> Study:
    """Runs a study as `takd run` does, on the session's Ray; its stages train in this process, or in workers.

    The figure takes longer than such a study: it is drawn where W&B gets it.
    """
    console = Console(width=200, record=True, quiet=False, file=open(os.devnull, "w"))  # noqa: SIM115
    with (
        nullcontext() if workers else patch("takd.study.search.scheduling.run_stages", train_here),
        nullcontext() if wandb != "disabled" else patch("takd.study.report.write_figure"),
    ):
        result = run_study(folder, space, "space tiny", RunOptions(wandb=wandb, slots=SLOTS, profile=profile), console)
    return Study(folder, space, result, console.export_text())


@dataclass(frozen=True)
class Found:
    """In the place of the artifact store: descriptions by a test's own function, and all soft targets."""

    artifact: Callable[[Stage], Any] = lambda stage: None

    def lacking(self, stage: Stage, description: Any, views: Any) -> list[Any]:
        return []

    def lacking_frozen(self, stage: Stage, names: Any) -> list[Any]:
        return []


class Watcher:
    """An observer that notes what starts and calls a test's own functions."""

    def __init__(
        self, started: Callable[[Node], None] = lambda node: None, reported: Callable[[Node], None] = lambda node: None
    ):
        self.started, self.reported = started, reported
        self.starts: list[Stage] = []
        self.errors: list[BaseException] = []

    def stage_started(self, node: Node) -> None:
        self.starts.append(node.stage)
        self._note(self.started, node)

    def stage_reported(self, node: Node, epochs: Sequence[dict[str, Any]]) -> None:
        self._note(self.reported, node)

    def stage_ended(self, node: Node) -> None: ...
    def graph_changed(self, graph: StageGraph, trials_left: int) -> None: ...
    def close(self) -> None: ...

    def _note(self, check: Callable[[Node], None], node: Node) -> None:
        try:
            check(node)
        except AssertionError as error:
            self.errors.append(error)


def run_watched(
    folder: StudyFolder, space: Space, *observers: Observer, stop: Stop | None = None, workers: bool = False
) -> tuple[Search, StageGraph]:
    """Runs a study's stages with observers of the test's own, as `run` does."""
    dataset, _ = check_space(space, "space tiny")
    folder.prepare()
    search = create_search(folder, space, dataset.fingerprint)
    graph = StageGraph(folder.artifacts, fixed_lanes=space.fixed_lanes)
    searcher = PathSearcher(search, graph, folder.root, Observers(observers), stop or Stop())
    (run_stages if workers else train_here)(searcher)
    return search, graph


@pytest.fixture(scope="session")
def finished(ray_slots: int, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A small study, run to its end."""
    return run_without_test_split(tmp_path_factory.mktemp("runs"))


def run_without_test_split(root: Path, workers: bool = False) -> Study:
    """A small study, run to its end while the test split was nowhere to be found."""
    space = tiny_space()
    dataset, _ = check_space(space, "space tiny")
    hidden = dataset.folder / "test.arrow"
    hidden.rename(hidden.with_suffix(".hidden"))
    try:
        return run(study_folder(str(root), "tiny"), space, wandb="offline", workers=workers)
    finally:
        hidden.with_suffix(".hidden").rename(hidden)


@dataclass(frozen=True)
class Called:
    """What a call left on the two streams."""

    code: int
    out: str
    err: str


Call = Callable[..., Called]


@pytest.fixture
def takd(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_slots: int) -> Call:
    """Runs a command in this process, in an empty folder that has a root for those that name none.

    On the Ray of all tests: a run starts one before its space is checked, which others would find with other slots.
    """
    monkeypatch.chdir(tmp_path)

    def call(*arguments: Any) -> Called:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Called(code, *capsys.readouterr())

    return call


@pytest.fixture
def root(finished: Study, tmp_path: Path) -> Path:
    """A copy of the finished study's root, to do with as a test likes."""
    return Path(shutil.copytree(finished.folder.root, tmp_path / "runs"))


def assert_bad_input(called: Called, *expected: str) -> None:
    """One line on stderr that has what is expected, exit code 2, and nothing else."""
    assert (called.code, called.out) == (2, "")
    assert called.err.startswith("takd: ")
    assert called.err.endswith("\n")
    assert len(called.err.splitlines()) == 1
    assert "Traceback" not in called.err
    for words in expected:
        assert words in called.err
