"""Studies with factors, with arms that cost as much as others, and studies that are the same whatever their timing."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import Found, Study, make_stage, run, tiny_space
from in_process import Here

from takd.analysis.arms import arms_table
from takd.analysis.cost import student_costs
from takd.analysis.tables import by_cell, confirmed, students
from takd.search_spaces import InputError, load_space
from takd.search_spaces import Path as StagePath
from takd.study.checks import check_space
from takd.study.folder import study_folder
from takd.study.search import scheduling
from takd.study.search.graph import Proposal, StageGraph
from takd.study.search.workers import Need
from takd.trainables.batch import StageBatch
from takd.trainables.datasets.dataset import load
from takd.trainables.store.artifacts import ArtifactStore

GAP = {"teacher.model": ["mlp-64", "mlp-32"], "student.model": ["mlp-4"]}


def gap_space(**changes: Any) -> Any:
    arms = ["labels", "kd", "kd@takd:mlp-16", "takd:mlp-16"]
    own: dict[str, Any] = {"arms": arms, "sampler": "grid", "trials": None, "coverage": 0}
    own |= {"confirm": {"seeds": 1}, "seeds": 3, "deterministic": True, "lanes": 2, "factors": GAP}
    short = {"epochs": 2, "examples": 200}
    return tiny_space(**own | {f"{role}__recipe": short for role in ("teacher", "assistants", "student")} | changes)


@pytest.fixture(scope="module")
def gap(ray_slots: int, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run(study_folder(str(tmp_path_factory.mktemp("runs")), "gap"), gap_space())


@pytest.fixture(scope="module")
def trials(gap: Study) -> pd.DataFrame:
    return pd.read_parquet(gap.folder.trials)


def test_every_arm_is_searched_chosen_and_confirmed_in_every_cell(gap: Study, trials: pd.DataFrame):
    cells = by_cell(trials)
    assert list(cells) == [cell.name for cell in gap.space.cells]
    for cell, rows in cells.items():
        arms = {"labels", "kd", "kd@takd:mlp-16", "takd:mlp-16"}
        assert set(students(rows)["arm"]) == set(confirmed(rows)["arm"]) == arms
        assert (rows["configuration"].str.split(" ").str[1:3].str.join(" ") == cell).all()
        teacher, student = (part.partition("=")[2] for part in cell.split(" "))
        assert set(rows.loc[rows["role"] == "teacher", "model"]) == {teacher}
        assert set(rows.loc[rows["role"] == "student", "model"]) == {student}
        assert confirmed(rows).groupby("arm")["configuration"].nunique().eq(1).all()
    table = arms_table(trials)
    assert len(table) == 8
    assert list(table["cell"].unique()) == list(cells)


def test_a_student_of_labels_is_trained_once_for_all_teachers(trials: pd.DataFrame):
    labels = trials[trials["arm"] == "labels"]
    assert labels["cell"].nunique() == 2
    assert len(labels) == 2 * labels["stage_key"].nunique() == 2 * 4  # 3 seeds of the search, 1 of the confirm phase


def test_kd_that_costs_as_much_does_so_in_the_table_of_arms(trials: pd.DataFrame):
    for rows in by_cell(trials).values():
        costs = student_costs(rows, students(rows)).groupby("arm")["path_flops"].mean()
        an_epoch = 3 * 200 * rows.loc[rows["role"] == "student", "flops_per_image"].iloc[0]
        assert costs["takd:mlp-16"] <= costs["kd@takd:mlp-16"] < costs["takd:mlp-16"] + an_epoch
        assert costs["kd"] < costs["takd:mlp-16"]


def test_what_it_costs_is_in_the_studys_space_and_a_finished_study_stays_finished(gap: Study):
    stored = gap.folder.read_space()
    assert set(stored.flops) == {"mlp-64", "mlp-32", "mlp-16", "mlp-4"}
    assert stored.flops["mlp-64"] == 2 * (784 * 64 + 64 * 64 + 64 * 10)
    assert run(gap.folder, gap.space).result.trained == 0
    assert run(gap.folder, load_space(stored)).result.trained == 0


def numbers(trials: pd.DataFrame) -> pd.DataFrame:
    """Without what the clock and the machine's processes say."""
    varying = ["train_seconds", "total_path_seconds", "finished_at", "process", "study"]
    return trials.drop(columns=varying).sort_values(["phase", "trial", "path_seed", "stage_key"], ignore_index=True)


def test_a_deterministic_study_is_the_same_to_the_last_digit_whatever_is_ready(
    trials: pd.DataFrame, gap: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Here with twice the slots, teachers that are done late, and students that are asked for one trial at a time.
    `benchmarks/faults.py` compares such a study's rows, from several workers and with faults, in the same way."""
    more = scheduling.reachable_nodes
    monkeypatch.setattr(
        scheduling, "reachable_nodes", lambda: {node: Need(2 * have.cpu, have.gpu) for node, have in more().items()}
    )
    step, slow = Here.step, {}

    def late(worker: Here) -> dict[str, Any]:
        """Every second worker idles every other time it is asked."""
        slow[worker] = slow.get(worker, len(slow)) + 1
        return (
            step(worker) if slow[worker] % 2 or not worker.introduced else {"stages": [], "width": None, "idle": False}
        )

    monkeypatch.setattr(Here, "step", late)
    again = run(study_folder(str(tmp_path), "gap"), gap.space)
    pd.testing.assert_frame_equal(numbers(pd.read_parquet(again.folder.trials)), numbers(trials), check_exact=True)


def test_who_trains_together_is_fixed_by_the_proposals_and_not_by_what_is_ready():
    teacher = make_stage("mlp-16", role="teacher")
    one, other = (
        Proposal(
            n,
            f"kd {n}",
            tuple(
                StagePath(arm="kd", student=make_stage(seed=s, upstream=(teacher,), temperature=2.0 + n))
                for s in range(5)
            ),
        )
        for n in range(2)
    )

    def batches(*proposals: Proposal, lanes: int | None) -> list[list[str]]:
        done: set[str] = set()
        graph = StageGraph(Found(lambda stage: {} if stage.key in done else None), fixed_lanes=lanes)
        for proposal in proposals:
            graph.add(proposal)
        found = []
        while group := next(graph.groups(), None):
            nodes = graph.take(group, 99)
            found.append([node.stage.key for node in nodes])
            for node in nodes:
                graph.start(node.stage.key)
                done.add(node.stage.key)
                graph.finish(node.stage.key)
        return found

    def keys(proposal: Proposal, start: int, end: int) -> list[str]:
        return [path.student.key for path in proposal.paths[start:end]]

    fixed = batches(one, other, lanes=3)
    assert fixed[1:] == [keys(one, 0, 3), keys(one, 3, 5), keys(other, 0, 3), keys(other, 3, 5)]
    assert sorted(batches(other, lanes=3)[1:]) == sorted(fixed[3:])
    assert len(batches(one, other, lanes=None)) == 2


def test_a_chunk_whose_worker_died_trains_whole_again_as_often_as_a_stage_may_fail():
    paths = tuple(StagePath(arm="labels", student=make_stage(seed=seed)) for seed in range(3))
    graph = StageGraph(Found(), fixed_lanes=3)
    graph.add(Proposal(0, "labels", paths))
    sizes = []
    for _ in range(4):
        [group] = list(graph.groups())[:1]
        taken = [node.stage.key for node in graph.take(group, 99)]
        sizes.append(len(taken))
        for key in taken:
            graph.start(key)
        graph.retry(taken, "it died", max_failures=2)
    assert sizes == [3, 3, 3, 1]


def test_lanes_that_train_together_go_on_from_the_last_epoch_that_all_have_saved(tmp_path: Path, monkeypatch):
    mnist, store = load("mnist"), ArtifactStore(str(tmp_path))
    store.prepare()
    stages = [make_stage(seed=seed, dataset=mnist.fingerprint, epochs=6) for seed in range(3)]

    def batch(whole: bool = True) -> StageBatch:
        return StageBatch(stages, store, 1, False, {each.key: {"study": "s", "use": "0"} for each in stages}, whole)

    def interrupted(going: StageBatch, saved: int) -> StageBatch:
        """It ends when the first lanes, so many, have written their checkpoints; another goes on."""
        going.run_epoch()
        written = {stage.key for stage in stages[:saved]}
        with monkeypatch.context() as patched:
            save = ArtifactStore.save_checkpoint
            patched.setattr(ArtifactStore, "save_checkpoint", lambda *given: given[1] in written and save(*given))
            going.write_checkpoints()
        return batch()

    going = interrupted(batch(), saved=3)
    assert going.epoch == 1
    for saved in (0, 1, 2):  # of the second epoch's; whose place they were in does not matter
        going = interrupted(going, saved)
        assert (going.epoch, len(going.lanes), going.ended) == (1, 3, {})
    going = interrupted(going, saved=3)
    going = interrupted(going, saved=1)
    assert going.epoch == 2
    assert len(batch(whole=False).lanes) < 3  # who may part goes on as far as it came
    while not going.done:
        going.run_epoch()
    going.publish()
    assert store.storage.names("checkpoints") == []
    assert batch().done


@pytest.mark.parametrize(
    ("changes", "learns"),
    [({"sampler": "tpe", "trials": 9}, "sampler: tpe"), ({"asha": {"grace_epochs": 1}}, "asha")],
)
def test_what_learns_from_timing_is_not_deterministic(changes: dict[str, Any], learns: str):
    with pytest.raises(InputError, match=f"deterministic is true, but {learns} learns from what has ended first"):
        gap_space(**changes)


def test_warnings_about_sizes_name_the_cell_once_each():
    space = gap_space(factors=GAP | {"student.model": ["mlp-4", "mlp-32"]})
    _, warnings = check_space(space, "space gap")
    cells = "with teacher.model=mlp-64 student.model=mlp-32, and in 1 more cells"
    assert warnings == [
        f"assistants.models: mlp-16 is no larger than the student mlp-32 ({cells}); allow_any_size: true silences this"
    ]
    line = "space gap: with student.model=mlp-0: student: model 'mlp-0' does not exist"
    with pytest.raises(InputError, match=re.escape(line)):
        check_space(tiny_space(factors={"student.model": ["mlp-4", "mlp-0"]}), "space gap")
