"""What a person sees while a study runs: plain lines in a file, a live table on a terminal."""

import io
import re
import sys
import threading
import time
from typing import Any

import pytest
from conftest import Found, make_stage
from rich.console import Console

from takd.search_spaces import Path, Stage
from takd.study.search.graph import Node, Proposal, StageGraph
from takd.study.tracking.progress import Progress, seconds_left

TRAIN_SECONDS = 3.0
SEEDS = SLOTS = 2
TEACHER = make_stage("mlp-64", role="teacher")
ASSISTANT = make_stage("mlp-16", role="assistant", upstream=(TEACHER,))


def labels(seed: int = 0) -> Path:
    return Path(arm="labels", student=make_stage(seed=seed))


def takd(seed: int = 0) -> Path:
    return Path(arm="takd:mlp-16", student=make_stage(upstream=(ASSISTANT,), seed=seed))


class Running:
    """A real graph whose stages start and end when told, after three seconds of training."""

    def __init__(self, *paths: Path) -> None:
        self.there: dict[str, dict[str, Any]] = {}
        self.graph = StageGraph(Found(lambda stage: self.there.get(stage.key)))
        for number, path in enumerate(paths):
            self.graph.add(Proposal(number, f"setting {number}", (path,)))

    def start(self) -> Node:
        group = next(self.graph.groups(), None)
        assert group is not None
        [node] = self.graph.take(group, 1)
        self.graph.start(node.stage.key)
        return node

    def end(self, stage: Stage, accuracy: float = 0.5) -> None:
        metrics = {"validation": {"accuracy": accuracy}}
        self.there[stage.key] = {"outcome": {"metrics": metrics, "train_seconds": TRAIN_SECONDS}}
        self.graph.finish(stage.key)
        self.graph.close_finished()


@pytest.fixture
def running() -> Running:
    """The teacher trains, twelve students and the assistant wait for it, of two others one has ended."""
    running = Running(*(takd(seed) for seed in range(12)), labels(0), labels(1))
    running.start()
    running.end(labels(0).student, 0.9376)
    return running


def terminal(width: int) -> Console:
    return Console(record=True, force_terminal=True, width=width, file=io.StringIO())


def shown(running: Running, console: Console, trials_left: int = 0, *reported: tuple[Node, int]) -> str:
    """All that a progress display writes about a graph until it is closed."""
    progress = Progress("tiny", SEEDS, SLOTS, console)
    for node, epoch in reported:
        progress.stage_started(node)
        progress.stage_reported(node, [{"epoch": epoch}])
    progress.graph_changed(running.graph, trials_left)
    progress.close()
    return console.file.getvalue() if not console.record else console.export_text()


def plain(running: Running, trials_left: int = 0) -> str:
    return shown(running, Console(width=200, file=io.StringIO()), trials_left)


def test_a_plain_line_has_the_counts_by_role_and_the_best_arm(running):
    line = plain(running)
    assert "teacher 1 running" in line
    assert "assistant 1 waiting" in line
    assert "student 12 waiting, 1 ready, 1 done" in line
    assert "best labels 93.76 %" in line


def test_a_plain_line_is_one_line_of_plain_text(running):
    line = plain(running)
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert "\x1b" not in line


def test_a_study_that_has_not_begun_says_that_it_starts():
    assert "starting" in plain(Running())


def test_plain_lines_come_every_so_often(running, monkeypatch):
    monkeypatch.setattr("takd.study.tracking.progress.PLAIN_SECONDS", 0.05)
    console = Console(width=200, file=io.StringIO())
    progress = Progress("tiny", SEEDS, SLOTS, console)
    progress.graph_changed(running.graph, 0)
    deadline = time.monotonic() + 10
    while console.file.getvalue().count("teacher 1 running") < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    progress.close()
    assert console.file.getvalue().count("teacher 1 running") >= 4  # the last when it is closed


def test_what_is_left_is_not_estimated_before_a_student_has_ended():
    running = Running(takd(0), labels(0))
    running.start()
    running.end(TEACHER)
    assert seconds_left(running.graph, 4, SEEDS, SLOTS) is None
    assert " left" not in plain(running, trials_left=4)


def test_what_is_left_is_estimated_from_what_ended(running):
    stages = 1 + 1 + 13 + 20 * SEEDS  # teacher, assistant, students that are known, students of trials to come
    assert seconds_left(running.graph, 20, SEEDS, SLOTS) == pytest.approx(stages * TRAIN_SECONDS / SLOTS)
    assert "about 1:22 left" in plain(running, trials_left=20)


@pytest.mark.parametrize("width", [40, 120])
def test_the_live_table_shows_counts_and_the_best_of_every_arm(running, width):
    running.graph.note("takd:mlp-16", "another setting", [0.9512])
    rows = [line.split() for line in shown(running, terminal(width)).splitlines()]
    numbers = {cells[0][:2]: [cell for cell in cells[1:] if cell.isdigit()] for cells in rows if len(cells) == 8}
    assert (numbers["te"], numbers["as"], numbers["st"]) == (["1"], ["1"], ["1", "1", "12"])
    best = [cells[3:5] for cells in rows if cells[:3] == ["best", "so", "far"]]
    assert best[:2] == [["takd:mlp-16", "95.12"], ["labels", "93.76"]]


def test_a_wide_table_names_every_role_and_state(running):
    text = shown(running, terminal(120))
    header = next(line.split() for line in text.splitlines() if line.startswith("role"))
    assert header == ["role", "done", "cached", "running", "ready", "waiting", "failed", "pruned"]
    assert {"teacher", "assistant", "student"} <= set(text.split())


def test_the_live_table_shows_what_trains_and_its_epoch(running):
    node = running.graph.nodes[TEACHER.key]
    assert "teacher mlp-64 s0  epoch 1/2" in shown(running, terminal(120), 0, (node, 1))


@pytest.mark.parametrize("width", [40, 120])
def test_no_line_of_the_live_table_is_wider_than_the_terminal(running, width):
    students = [(running.graph.nodes[takd(seed).student.key], 1) for seed in range(12)]
    assert max(len(line) for line in shown(running, terminal(width), 20, *students).splitlines()) <= width


def test_a_terminal_may_be_resized_at_any_time(running, monkeypatch):
    errors: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", errors.append)
    console = terminal(120)
    progress = Progress("tiny", SEEDS, SLOTS, console)
    progress.graph_changed(running.graph, 4)
    for width in (40, 1, 200):
        console.width = width
        time.sleep(0.6)  # it is drawn four times a second
    progress.close()
    assert errors == []
    assert "teacher" in console.export_text()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_closing_leaves_nothing_behind(running, is_terminal):
    console = terminal(80) if is_terminal else Console(width=200, file=io.StringIO())
    threads, streams = set(threading.enumerate()), (sys.stdout, sys.stderr)
    shown(running, console)
    for thread in set(threading.enumerate()) - threads:
        thread.join(2)  # rich's own takes until its next refresh
        assert not thread.is_alive()
    assert (sys.stdout, sys.stderr) == streams
    written = console.file.getvalue()
    assert written.rfind("\x1b[?25h") >= written.rfind("\x1b[?25l")  # the cursor is shown again
    assert written.endswith(("\n", "\x1b[?25h"))


@pytest.mark.parametrize("is_terminal", [True, False])
def test_what_stays_on_the_screen_is_how_it_ended(is_terminal):
    console = terminal(80) if is_terminal else Console(width=200, file=io.StringIO())
    running = Running(labels(0))
    node = running.start()
    progress = Progress("tiny", SEEDS, SLOTS, console)
    progress.stage_started(node)
    progress.graph_changed(running.graph, 0)
    running.end(node.stage, 0.9376)
    progress.stage_ended(node)
    progress.graph_changed(running.graph, 0)  # at once after the other
    progress.close()
    assert "93.76 %" in (console.export_text() if is_terminal else console.file.getvalue())


def test_a_terminal_that_can_not_be_redrawn_gets_plain_lines(running, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    console = Console(force_terminal=True, width=200, file=io.StringIO())
    text = shown(running, console)
    assert "\x1b" not in text
    assert "teacher 1 running" in text


def test_no_color_is_kept(running, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(force_terminal=True, width=100, file=io.StringIO())
    text = shown(running, console)
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", text)


def test_a_resized_terminal_is_cleared_before_it_is_drawn_again(running, monkeypatch):
    """A terminal that got narrower has folded the lines, so that the cursor would not come up far enough."""
    monkeypatch.setattr("takd.study.tracking.progress.REDRAW_SECONDS", 0.02)
    console = Console(force_terminal=True, width=120, file=io.StringIO())
    progress = Progress("tiny", SEEDS, SLOTS, console)
    progress.graph_changed(running.graph, 4)
    time.sleep(0.2)
    before = console.file.getvalue()
    console.width = 60
    time.sleep(0.3)
    progress.close()
    assert "\x1b[2J" not in before
    assert console.file.getvalue().count("\x1b[2J") == 1


def test_stages_of_a_larger_model_are_estimated_at_their_own_cost():
    students = [
        Path(arm="labels", student=make_stage(model, seed=seed)) for model in ("mlp-4", "mlp-8") for seed in (0, 1)
    ]
    running = Running(*students)
    for path, seconds in ((students[0], 1.0), (students[2], 9.0)):
        running.start()
        running.end(path.student)
        running.there[path.student.key]["outcome"]["train_seconds"] = seconds
    assert seconds_left(running.graph, 0, SEEDS, slots=1) == pytest.approx(1.0 + 9.0)
