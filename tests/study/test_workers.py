"""Workers: as many as there are slots once there is work, on one machine or several; and how busy they were."""

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Found, tiny_space

from takd.search_spaces import InputError
from takd.study.checks import check_space
from takd.study.folder import study_folder
from takd.study.search.graph import Find, Group, StageGraph
from takd.study.search.optimization import create_search
from takd.study.search.scheduling import PathSearcher, _wait_for_answer
from takd.study.search.workers import ELSEWHERE, Batch, Need, Use, Workers, fitted
from takd.study.stopping import Stop
from takd.study.tracking.observers import Observers
from takd.trainables.stage_trainable import StageTrainable

STUDENT, TEACHER, QUARTER = Need(1, 0), Need(2, 0), Need(1, 0.25)


# Each student trains alone, and for long enough to be killed at it.
def workers(nodes: dict[str, Need], *living: tuple[Need, str | None, bool]) -> Workers:
    """Those on a node have started; the last says whether one trains."""
    made = Workers(nodes)
    for number, (need, node, trains) in enumerate(living):
        made.start(str(number), need)
        if node:
            made.living[str(number)].introduce(node, None, now=0.0)
        if trains:
            made.living[str(number)].begin(Batch(Group("student", "search", "shape", None), {"key"}, began=0.0))
    return made


@pytest.mark.parametrize(
    ("made", "need", "room"),
    [
        (workers({"a": Need(4, 0)}), STUDENT, 4),
        (workers({"a": Need(4, 0)}), TEACHER, 2),
        (workers({"a": Need(1, 0), "b": Need(1, 0)}), TEACHER, 0),  # no node has two
        (workers({"a": Need(4, 0)}, (STUDENT, "a", True), (STUDENT, None, False)), STUDENT, 2),
        (workers({"a": Need(2, 0), "b": Need(2, 0)}, (STUDENT, "a", True), (STUDENT, "b", True)), TEACHER, 0),
        (workers({"a": Need(8, 1)}, (QUARTER, "a", True), (QUARTER, None, False)), QUARTER, 2),
        (workers({"a": Need(2, 0), ELSEWHERE: Need(6, 0)}), TEACHER, 4),
        (workers({"b": Need(2, 0)}, (STUDENT, "a", True)), STUDENT, 2),  # the worker's node is gone
    ],
)
def test_a_worker_starts_where_a_node_has_room_for_it(made, need, room):
    assert made.room(need) == room


def test_no_other_kind_takes_the_room_that_is_kept_for_what_comes_first():
    made = workers({"a": Need(2, 0), "b": Need(2, 0)}, (STUDENT, "a", True), (STUDENT, "a", True), (STUDENT, "b", True))
    assert made.room(STUDENT) == 1
    assert made.kept_for(TEACHER) == {"b"}  # the one nearest to having room
    assert made.room(STUDENT, besides={"b"}) == 0


def test_what_no_node_could_hold_has_no_node_kept_for_it():
    assert workers({"a": Need(1, 0), ELSEWHERE: Need(8, 0)}).kept_for(TEACHER) == set()


BIG, SMALL = Need(8, 0), Need(2, 1)


@pytest.mark.parametrize(
    ("given", "nodes", "teacher", "warning"),
    [
        ({"cpu": 64}, [Need(2, 0)], Need(2, 0), "resources.teacher.cpu is 64; no node has more than 2, which it gets"),
        ({"cpu": 2}, [Need(1, 0), Need(1, 0)], Need(1, 0), "resources.teacher.cpu is 2; no node has more than 1,"),
        ({"gpu": 2}, [Need(4, 1), Need(4, 1)], Need(1, 1, 2), None),  # a rank on each of two nodes
        (
            {"gpu": 4},
            [Need(4, 2), Need(4, 1)],
            Need(1, 1, 3),
            "teacher.gpu is 4; GPUs for 3 are there, which it gets",
        ),
        ({"gpu": 4}, [Need(2, 4)], Need(1, 1, 2), "resources.teacher.gpu is 4; GPUs for 2 are there, which it gets"),
        ({"ranks": 3, "cpu": 2}, [Need(5, 0)], Need(2, 0, 2), "resources.teacher.ranks is 3; CPUs for 2 are there"),
        ({"ranks": 2}, [Need(4, 2)], Need(1, 0, 2), None),  # on CPUs, although there are GPUs
        ({"cpu": 4}, [BIG, SMALL], Need(2, 1), "teacher.cpu is 4; no node with 1 GPU has more than 2, which it gets"),
        ({"cpu": 4, "gpu": 0}, [BIG, SMALL], Need(4, 0), None),
        ({"cpu": 2}, [Need(0, 0), SMALL], Need(2, 1), None),  # a head that trains nothing
        ({}, [BIG], Need(1, 0), None),
    ],
)
def test_a_worker_gets_what_one_node_can_give_and_less_than_asked_is_said(given, nodes, teacher, warning):
    found = fitted(tiny_space(resources={"teacher": given}), nodes)
    assert (found.needs["teacher"], found.lacking) == (teacher, None)
    assert len(found.warnings) == (warning is not None)
    assert all(warning in each for each in found.warnings)


def test_what_no_node_has_at_all_is_said():
    lacking = fitted(tiny_space(resources={"student": {"gpu": 0.5}}), [Need(2, 0)]).lacking
    assert lacking == "resources.student.gpu is 0.5; Ray has 0 GPUs"
    assert fitted(tiny_space(), [Need(0, 0)]).lacking == "Ray has no node with a CPU"


@pytest.mark.parametrize(
    ("answer", "reason"), [(None, "timed out"), (b"HTTP/1.1 400 Bad Request\r\n", "no Ray"), (b"", "no Ray")]
)
def test_an_address_where_something_else_listens_is_refused(answer, reason, monkeypatch):
    monkeypatch.setattr("takd.study.search.scheduling.ANSWER_SECONDS", 1.5)
    with socket.create_server(("", 0)) as server:

        def reply() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                if answer is None:
                    time.sleep(2)
                else:
                    connection.sendall(answer)

        threading.Thread(target=reply, daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(InputError, match=rf"--address {address}: no Ray cluster answers \(.*{reason}"):
            _wait_for_answer(address, Stop())


def test_an_address_of_nobody_is_refused_at_once():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    for address, reason in (
        (f"127.0.0.1:{port}", "refused"),
        ("nohost.invalid:6379", "resolution|not known"),
        ("nonsense", "."),
    ):
        started = time.monotonic()
        with pytest.raises(InputError, match=rf"--address {address}: no Ray cluster answers \(.*({reason})"):
            _wait_for_answer(address, Stop())
        assert time.monotonic() - started < 20


def test_who_waits_for_a_cluster_can_be_interrupted():
    stop = Stop()
    with socket.create_server(("", 0)) as server:  # it accepts, and says nothing
        threading.Timer(0.3, stop.request, ["SIGINT received", True]).start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt, match="SIGINT received"):
            _wait_for_answer(f"127.0.0.1:{server.getsockname()[1]}", stop)
    assert time.monotonic() - started < 2


def test_a_worker_that_derives_something_of_a_stage_trains_none_by_that():
    there = workers({"a": Need(4, 0)}, (STUDENT, "a", True))
    worker = there.living["0"]
    assert worker.stages == 1
    worker.batch.keys.clear()  # it came to an end
    worker.end(2.0)
    worker.begin(Batch(Group("teacher", "search", "shape", None, "derive"), {"key"}, began=2.0))
    worker.batch.keys.clear()
    worker.end(3.0)
    assert (worker.stages, worker.busy_seconds) == (1, 3.0)


def test_use_is_counted_from_the_first_stage_on():
    use = Use()
    use.note(0.0, part=0.0, ready=True)  # workers start
    use.note(10.0, part=0.5, ready=True)
    use.note(20.0, part=1.0, ready=False)
    use.note(30.0, part=0.5, ready=False)
    use.note(40.0, part=0.0, ready=False)
    assert (use.seconds, use.busy, use.unused) == (30.0, 5.0 + 10.0 + 5.0, 5.0)


class Actor:
    """In the place of Ray's handle of a worker: remembers what it was assigned."""

    def __init__(self) -> None:
        self.given: list[dict[str, Any]] = []
        self.assign = self  # `assign.remote`

    def remote(self, given: dict[str, Any]) -> None:
        self.given.append(given)


NOTHING: dict[str, Any] = {"stages": [], "width": None, "idle": True}


@pytest.fixture
def searcher(ray_slots: int, tmp_path: Path) -> PathSearcher:
    """Of a study whose teacher needs two CPUs, on whatever nodes a test says."""
    return searcher_of(tmp_path)


def searcher_of(tmp_path: Path, find: Find | None = None, **changes: Any) -> PathSearcher:
    folder = study_folder(str(tmp_path), "tiny")
    space = tiny_space(**{"lanes": 1, "resources": {"teacher": {"cpu": 2}}, "sampler": "random"} | changes)
    dataset, _ = check_space(space, "space tiny")
    folder.prepare()
    graph = StageGraph(find or folder.artifacts)
    made = PathSearcher(create_search(folder, space, dataset.fingerprint), graph, folder.root, Observers([]), Stop())
    made.looked = float("inf")  # not at Ray's own nodes, of which there is one with one CPU
    made.needs = fitted(space, [Need(2, 0)]).needs
    while proposal := made.search.ask():  # all arms at once
        graph.add(proposal)
    made._close_finished()
    return made


def started(searcher: PathSearcher, name: str, node: str) -> Actor:
    """A worker that Tune was asked to start and that has reported."""
    assert isinstance(searcher.suggest(name), dict)
    actor = Actor()
    searcher.shared_root.seen.add(node)
    assert not searcher.report(name, NOTHING | {"node": node, "actor": actor})
    return actor


def ends(searcher: PathSearcher, name: str) -> bool:
    """What a worker trains fails; whether the worker goes."""
    batch = searcher.workers.living[name].batch
    assert batch
    states = [{"key": key, "state": "failed", "reason": "told to", "epochs": []} for key in batch.keys]
    return searcher.report(name, NOTHING | {"stages": states})


def roles(actor: Actor) -> list[str]:
    return [stage["role"] for given in actor.given for stage in given["stages"]]


def test_workers_make_room_on_one_node_for_what_comes_first(searcher):
    """No node has the two CPUs of the teacher. When one gets them, its worker goes, and the other's goes on."""
    searcher.workers.nodes = {"a": Need(1, 0), "b": Need(1, 0)}
    on_a, on_b = started(searcher, "1", "a"), started(searcher, "2", "b")
    assert searcher.suggest("3") is None
    assert roles(on_a) == roles(on_b) == ["student"]
    searcher.workers.nodes = {"a": Need(2, 0), "b": Need(1, 0)}
    assert searcher.suggest("3") is None  # no second student on what is kept for the teacher
    assert not ends(searcher, "2")
    assert roles(on_b) == ["student"] * 2
    assert ends(searcher, "1")
    teacher = started(searcher, "3", "a")
    assert roles(teacher) == ["teacher"]


def test_tune_is_asked_for_what_a_worker_holds(searcher):
    searcher.workers.nodes = {"a": Need(2, 0)}
    given = searcher.suggest("1")
    asked = StageTrainable.default_resource_request(given).required_resources
    assert {name: number for name, number in asked.items() if number} == {"CPU": 2}


def test_four_slots_have_four_workers_that_train_a_quarter_each(ray_slots, tmp_path):
    searcher = searcher_of(tmp_path, arms=["labels"], trials=2, coverage=1, seeds=10)
    searcher.workers.nodes = {"a": Need(3, 0), "b": Need(1, 0)}
    actors = {name: started(searcher, name, "b" if name == "4" else "a") for name in "1234"}
    assert searcher.suggest("5") is None
    while any(worker.batch for worker in searcher.workers.living.values()):
        for name in [name for name, worker in searcher.workers.living.items() if worker.batch]:
            ends(searcher, name)
    assert [len(roles(actor)) for actor in actors.values()] == [5] * 4


@pytest.mark.parametrize(("arms", "together"), [(["labels", "label_smoothing"], [8, 4]), (["labels"], [4, 2])])
def test_a_group_is_divided_only_where_other_workers_would_have_nothing(ray_slots, tmp_path, arms, together):
    """The second worker takes half of what is left: the other half is for the first, should it end before."""
    searcher = searcher_of(tmp_path, arms=arms, trials=len(arms), coverage=1, seeds=8, lanes=8)
    searcher.workers.nodes = {"a": Need(2, 0)}
    assert [len(roles(started(searcher, name, "a"))) for name in "12"] == together


def test_a_path_that_waits_holds_no_cpu(ray_slots, tmp_path):
    """Twelve students wait for a teacher that trains on two CPUs of four."""
    searcher = searcher_of(tmp_path, arms=["kd"])
    searcher.workers.nodes = {"a": Need(4, 0)}
    assert roles(started(searcher, "1", "a")) == ["teacher"]
    assert searcher.graph.counts["student"]["waiting"] == 12
    assert searcher.suggest("2") is None


def test_a_worker_with_nothing_to_train_is_kept_for_a_while(searcher, monkeypatch):
    searcher.workers.nodes = {"a": Need(2, 0)}
    assert roles(started(searcher, "1", "a")) == ["teacher"]
    searcher.workers.nodes = {"a": Need(3, 0)}
    students = started(searcher, "2", "a")
    while searcher.workers.living["2"].batch:  # those on labels alone, then others wait for the teacher
        assert not ends(searcher, "2")
    assert set(roles(students)) == {"student"}
    assert not searcher.report("2", NOTHING)
    monkeypatch.setattr("takd.study.search.scheduling.KEPT_SECONDS", 0.0)
    assert searcher.report("2", NOTHING)
    assert list(searcher.workers.living) == ["1"]


def test_a_study_is_not_over_while_a_stage_trains_that_no_open_path_needs(ray_slots, tmp_path):
    """All but the teacher is found; its artifact was damaged, say."""
    metrics = {"validation": {"accuracy": 0.5, "loss": 1.0}}
    found = {"outcome": {"metrics": metrics, "epochs": [], "train_seconds": 1.0}}
    searcher = searcher_of(tmp_path, Found(lambda stage: None if stage.role == "teacher" else found))
    searcher.workers.nodes = {"a": Need(2, 0)}
    assert roles(started(searcher, "1", "a")) == ["teacher"]
    assert searcher.suggest("2") is None
    assert not searcher.graph.open
    assert not searcher.over
    assert ends(searcher, "1")
    assert searcher.over


def test_a_study_no_worker_of_which_starts_stops_and_says_why(searcher):
    searcher.workers.nodes = {"a": Need(2, 0)}
    for number in range(searcher.search.space.max_failures + 1):
        assert not searcher.stop.requested
        assert isinstance(searcher.suggest(str(number)), dict)
        searcher.worker_failed(str(number), "ImportError: no torch here")
    assert searcher.stop.reason == "no worker starts: ImportError: no torch here"
    assert searcher.graph.counts["teacher"]["failed"] == 0  # it is none of its fault
