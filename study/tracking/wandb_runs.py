"""W&B: one run a stage and one for the study, written as files by a thread of the driver.

A run is written whole when its stage has ended, from the stage's description where it has one: what a killed driver
did not write is written by the next, and nothing twice. `wandb_log` writes the files; in online mode
`uploading` sends them.
"""

import hashlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from takd.analysis.files import without_secret
from takd.search_spaces import Stage
from takd.search_spaces.arms import Arm, is_called
from takd.study.folder import StudyFolder
from takd.study.options import Mode
from takd.study.search.graph import Description, Node, StageGraph
from takd.study.tracking.wandb_log import Artifact, Entry, Run, Written, md5, write_run, written_runs
from takd.study.tracking.wandb_names import LONGEST_NAME, LONGEST_TAG, MODES, artifact_name, shortened

PROJECT = "takd"
CLOSE_SECONDS = 60.0
LIVE_SECONDS = 30.0  # online, a stage that trains longer shows its epochs this often

log = logging.getLogger("takd")


def wandb_mode(asked: Mode | None) -> Mode:
    """What was asked for, else what WANDB_MODE says, else online where a key is found."""
    return asked or MODES.get(os.environ.get("WANDB_MODE", "")) or ("online" if _finds_key() else "offline")


def _finds_key() -> bool:
    import wandb

    try:
        return wandb.login(prompt=False, verify=False)
    except Exception as error:  # whatever is wrong with the key, the study goes on
        log.warning("W&B: %s; runs are kept offline", _in_a_line(error))
        return False


def _in_a_line(error: Exception) -> str:
    """Of several lines the first; of what W&B's settings refuse, which variable it is and why."""
    refused = error.errors() if isinstance(error, ValidationError) else []
    said = [f"WANDB_{'_'.join(map(str, each['loc'])).upper()} is {each['input']!r}: {each['msg']}" for each in refused]
    return "; ".join(said) or str(error).splitlines()[0]


def run_id(study: str, key: str) -> str:
    """Of a stage's run: a stage that goes on after a crash goes on in its run."""
    return hashlib.sha256(f"{study}/{key}".encode()).hexdigest()[:16]


def arms_of(stage: Stage, arms: Sequence[Arm]) -> list[str]:
    """The arms whose paths may have a teacher or an assistant, whether they were proposed yet or not."""
    ancestors = _ancestors(stage)
    chain = tuple(each.model for each in (*ancestors, stage) if each.role == "assistant")
    teachers = [each for each in (*ancestors, stage) if each.role == "teacher"]
    if chain and not teachers:  # an assistant that exists, whoever taught it: paths begin there
        found = [arm for arm in arms if any(_begins(arm.assistants[at:], chain) for at in range(len(arm.assistants)))]
    else:
        found = [arm for arm in arms if arm.distilled is bool(teachers) and _begins(arm.assistants, chain)]
    if len({each.role for each in stage.upstream}) > 1:
        found = [arm for arm in found if arm.dense]
    elif len(chain) > 1:  # the first assistant is the same in chains and in dense arms
        found = [arm for arm in found if not arm.dense]
    if stage.role != "teacher":
        return [arm.name for arm in found if arm.ensemble is (len(teachers) > 1)]
    return [arm.name for arm in found if arm.ensemble or stage.member == 0]


def _begins(assistants: Sequence[str], chain: Sequence[str]) -> bool:
    """Whether the first assistants of an arm may be of these models."""
    return len(assistants) >= len(chain) and all(map(is_called, assistants, chain))


def _ancestors(stage: Stage) -> list[Stage]:
    """All it learned from, directly or not, each once and after its own."""
    found: dict[str, Stage] = {}
    for upstream in stage.upstream:
        found |= {each.key: each for each in (*_ancestors(upstream), upstream)}
    return list(found.values())


class RunWriter:
    """Turns stages into W&B runs in the study's folder: group = study, job type = role, a row an epoch."""

    def __init__(self, folder: StudyFolder, arms: Sequence[Arm]) -> None:
        self.folder, self.arms = folder, arms
        self.written = written_runs(folder.local)
        self._artifacts: dict[str, Artifact] = {}  # of what others learn from, by stage key
        self._told = False  # that something was shortened

    def has(self, key: str) -> bool:
        """Whether it is there whole; that of a stage that failed is so once more when the stage is finished."""
        written = self.written.get(run_id(self.folder.name, key), Written())
        return written.ended and not written.failed

    def write(
        self,
        node: Node,
        upstream: Mapping[str, Description],
        epochs: Sequence[Mapping[str, Any]] = (),
        started: float = 0.0,
        open: bool = False,
    ) -> None:
        """What is not written yet of a stage; one without description has `epochs` and `started`. Raises OSError."""
        id = run_id(self.folder.name, node.stage.key)
        before = self.written.get(id, Written())
        if before.ended and not (before.failed and node.description):
            return
        outcome = node.description["outcome"] if node.description else {}
        ended = datetime.fromisoformat(outcome["finished_at"]).timestamp() if "finished_at" in outcome else time.time()
        started = ended - outcome["train_seconds"] if outcome else started or ended
        rows = [row for row in _rows(outcome.get("epochs", epochs), started) if row[0] > before.last_step]
        if open and not rows:
            return
        is_student = node.stage.role == "student"
        arms = sorted(node.arms) if is_student else arms_of(node.stage, self.arms)
        run = Run(
            id=id,
            project=project(),
            group=self.folder.name,
            job_type=node.stage.role,
            name=self._short(node.stage.name, LONGEST_NAME),
            config=self._config(node.stage, upstream, arms),
            tags=[node.stage.phase, *(self._short(arm, LONGEST_TAG) for arm in arms if is_student)],
            rows=rows,
            summary={} if open else _summary(node),
            artifacts=() if open else tuple(self._lineage(node, upstream)),
            started=started,
            ended=ended,
            failed=node.state == "failed",
            open=open,
        )
        write_run(self.folder.local, run)
        last = rows[-1][0] if rows else before.last_step
        self.written[id] = Written(last, ended=not open, failed=node.state == "failed")

    def _short(self, text: str, longest: int) -> str:
        if len(text) > longest and not self._told:
            self._told = True
            log.warning(
                "W&B takes tags of %d characters and names of %d: longer ones are shortened; a run's config has its "
                "arms and its path whole",
                LONGEST_TAG,
                LONGEST_NAME,
            )
        return shortened(text, longest)

    def _config(self, stage: Stage, upstream: Mapping[str, Description], arms: Sequence[str]) -> dict[str, Any]:
        """The key's input, and beside it what people filter and plot by."""
        studies = {each.key: self._origin(upstream.get(each.key)) for each in stage.upstream}
        config: dict[str, Any] = stage.key_input() | {
            "stage_key": stage.key,
            "arms": list(arms),
            "phase": stage.phase,
            "path": " > ".join(each.model for each in (*_ancestors(stage), stage)),
            "upstream_models": [each.model for each in stage.upstream],
            "upstream_runs": [run_id(studies[each.key], each.key) for each in stage.upstream],
        }
        sizes = [upstream[each.key]["outcome"]["parameters"] for each in stage.upstream if each.key in upstream]
        if known := [size for size in sizes if size is not None]:  # of logits none is
            config["upstream_parameters"] = max(known)
        if links := [link(id) for id in config["upstream_runs"]] if "WANDB_ENTITY" in os.environ else []:
            config["upstream_links"] = links
        return config

    def _origin(self, description: Description | None) -> str:
        """The study that trained a stage, and so has its run."""
        return str(description["outcome"].get("origin", {}).get("study", "")) if description else self.folder.name

    def _lineage(self, node: Node, upstream: Mapping[str, Description]) -> Iterator[Artifact]:
        """What the stage learned from, as used, and what it left."""
        for stage in node.stage.upstream:
            if description := upstream.get(stage.key):
                if stage.key not in self._artifacts:
                    self._artifacts[stage.key] = stage_artifact(self.folder, stage, description)
                learned = self._artifacts[stage.key]
                yield Artifact(learned.name, learned.type, learned.entries, learned.metadata, used=True)
        if node.description:
            yield stage_artifact(self.folder, node.stage, node.description)


def project() -> str:
    return os.environ.get("WANDB_PROJECT") or PROJECT


def link(id: str) -> str:
    """Of a run's page, where WANDB_ENTITY tells whose."""
    server = os.environ.get("WANDB_BASE_URL", "https://wandb.ai").rstrip("/").replace("//api.", "//")
    return f"{server}/{os.environ['WANDB_ENTITY']}/{project()}/runs/{id}"


def stage_artifact(folder: StudyFolder, stage: Stage, description: Description) -> Artifact:
    """A stage's artifact as W&B's, which refers to the files in the store."""
    storage, entries = folder.storage, []
    for name, digest in description["files"].items():
        place = storage.place(f"artifacts/{stage.key}", name, digest)
        uri = storage.uri(place)
        if "://" in uri:  # nothing is fetched from a bucket for its MD5: as W&B does without a checksum
            ref = without_secret(uri)
            entries.append(Entry(name, ref, 0, ref=ref))
        else:
            content = storage.read(place)
            entries.append(Entry(name, md5(content), len(content), ref=Path(uri).as_uri()))
    metadata = {"stage_key": stage.key, "model": stage.model, "val_accuracy": _accuracy(description)}
    return Artifact(artifact_name(f"{stage.role}-{stage.model}", stage.key), stage.role, tuple(entries), metadata)


def _accuracy(description: Description) -> float | None:
    return description["outcome"]["metrics"]["validation"]["accuracy"]


def _rows(epochs: Sequence[Mapping[str, Any]], started: float) -> Iterator[tuple[int, dict[str, Any]]]:
    seconds = 0.0
    for epoch in epochs:
        seconds += epoch.get("seconds") or 0.0
        given = {name: value for name, value in epoch.items() if value is not None}
        yield epoch["epoch"], given | {"_timestamp": started + seconds, "_runtime": seconds}


def _summary(node: Node) -> dict[str, Any]:
    """How the stage ended: the metrics of the selected epoch, as `val_METRIC`, and the best and the last accuracy."""
    summary: dict[str, Any] = {"status": "done" if node.description else node.state}
    if node.reason:
        summary["error"] = node.reason
    if node.description:
        outcome = node.description["outcome"]
        accuracies = [each["val_accuracy"] for each in outcome["epochs"] if each.get("val_accuracy") is not None]
        measured = outcome["metrics"]["validation"] or {}  # a metric of the user's own also says by what code
        summary |= {f"val_{name.partition('@')[0]}": value for name, value in measured.items() if value is not None}
        if accuracies:
            summary |= {"best_val_accuracy": max(accuracies), "last_val_accuracy": accuracies[-1]}
        if test := outcome["metrics"].get("test"):
            summary["test_accuracy"] = test["accuracy"]
        own = {name: outcome[name] for name in ("train_seconds", "parameters", "selected_epoch")}
        summary |= {name: each for name, each in own.items() if each is not None}
    return summary


class WandbTracker:
    """The observer that writes runs, from a thread of its own: the study never waits for it."""

    def __init__(self, folder: StudyFolder, arms: Sequence[Arm], mode: Literal["online", "offline"]) -> None:
        self.folder, self.arms, self.mode = folder, arms, mode
        self.failed = False
        self._graph: StageGraph | None = None
        self._epochs: dict[str, list[dict[str, Any]]] = {}  # of stages in training
        self._started: dict[str, float] = {}
        self._shown: dict[str, float] = {}  # when their epochs were last written
        self._work: queue.SimpleQueue[Callable[[RunWriter], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="wandb", daemon=True)
        self._thread.start()

    def stage_started(self, node: Node) -> None:
        key = node.stage.key
        self._epochs.setdefault(key, [])  # started again after its worker died: it goes on in its run
        self._started.setdefault(key, time.time())
        self._shown.setdefault(key, time.monotonic())

    def stage_reported(self, node: Node, epochs: Sequence[dict[str, Any]]) -> None:
        key = node.stage.key
        self._epochs[key] += epochs
        if self.mode == "online" and time.monotonic() - self._shown[key] > LIVE_SECONDS:
            self._shown[key] = time.monotonic()
            self._put(node, list(self._epochs[key]), self._started[key], open=True)

    def stage_ended(self, node: Node) -> None:
        key = node.stage.key
        self._shown.pop(key, None)
        epochs, started = self._epochs.pop(key, []), self._started.pop(key, 0.0)
        if not node.cached:  # else it was derived from, and another run of a study's has trained it
            self._put(node, epochs, started, open=False)

    def _put(self, node: Node, epochs: list[dict[str, Any]], started: float, open: bool) -> None:
        nodes = self._graph.nodes if self._graph else {}
        known = {each.key: nodes[each.key].description for each in node.stage.upstream if each.key in nodes}
        upstream = {key: description for key, description in known.items() if description}
        now = replace(node)  # as it is: the study goes on with it
        self._work.put(lambda writer: writer.write(now, upstream, epochs, started, open))

    def graph_changed(self, graph: StageGraph, trials_left: int) -> None:
        self._graph = graph

    def close(self) -> None:
        """Waits a while for what is not written yet."""
        self._work.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            log.warning("W&B: not all runs were written after %.0f s; `takd sync` writes the rest", CLOSE_SECONDS)

    def _write(self) -> None:
        try:
            writer = RunWriter(self.folder, self.arms)
            while (write := self._work.get()) is not None:
                write(writer)
        except Exception as error:  # whatever it is, the study goes on
            log.warning("W&B stopped: %s; the study goes on without it", str(error).splitlines()[0])
            self.failed = True
            while self._work.get() is not None:
                pass  # so that nothing is kept
