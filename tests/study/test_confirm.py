"""The confirm phase: what the search chose, from fresh seeds, and the one look at the test split."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from conftest import Found, Study, artifacts, make_stage, run, tiny_space

from takd.analysis.arms import arms_table
from takd.analysis.evidence.chosen import best_configurations
from takd.search_spaces import InputError
from takd.search_spaces import Path as StagePath
from takd.search_spaces.stage import BINS, FRESH_SEED
from takd.study.confirm import best_so_far, keep
from takd.study.folder import PREDICTIONS, study_folder
from takd.study.results import read_test
from takd.study.search.graph import Proposal, StageGraph
from takd.study.search.optimization import open_search
from takd.study.study import open_study
from takd.study.tracking.events import EVENTS
from takd.trainables.datasets.dataset import load
from takd.trainables.measuring import measure_logits, measure_on_test, predict_stages
from takd.trainables.models.families import build
from takd.trainables.store.artifacts import WEIGHTS
from takd.trainables.training.inputs import Pixels
from takd.trainables.training.loop import train


@pytest.fixture(scope="module")
def confirmed(ray_slots: int, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run(study_folder(str(tmp_path_factory.mktemp("runs")), "tiny"), tiny_space(confirm={"seeds": 3}))


def rows(study: Study, phase: str = "confirm") -> pd.DataFrame:
    return pd.read_parquet(study.folder.trials).query(f"phase == '{phase}'")


def test_each_arms_best_configuration_is_trained_from_fresh_seeds_the_same_for_every_arm(confirmed):
    students = rows(confirmed).query("role == 'student'")
    best = best_configurations(rows(confirmed, "search"))
    assert dict(students.groupby("arm")["configuration"].first()) == best
    seeds = {tuple(sorted(group["seed"])) for _, group in students.groupby("arm")}
    assert seeds == {tuple(range(FRESH_SEED, FRESH_SEED + 3))}
    assert set(students["status"]) == {"done"}
    assert set(rows(confirmed, "search")["seed"]) & set(students["seed"]) == set()


def test_an_arm_whose_search_is_complete_is_confirmed_while_others_are_searched(confirmed):
    confirming = set(rows(confirmed).query("role == 'student'")["stage_key"])
    events = [json.loads(line) for line in (confirmed.folder.local / EVENTS).read_text().splitlines()]
    running = [each for each in events if (each["role"], each["state"]) == ("student", "running")]
    confirms = [each["stage_key"] in confirming for each in running]
    assert confirms != sorted(confirms)


def test_what_an_arm_is_confirmed_by_early_is_what_the_tables_choose(confirmed):
    search, best = open_search(confirmed.folder), best_configurations(rows(confirmed, "search"))
    for arm, name in best.items():
        assert best_so_far(search, {("", arm)}) == [name]
    assert sorted(best_so_far(search, {("", arm) for arm in best})) == sorted(best.values())
    assert best_so_far(search, {("", "no arm")}) == []


def test_only_confirmed_students_and_those_who_taught_them_have_test_numbers(confirmed):
    everything = pd.read_parquet(confirmed.folder.trials)
    tested = everything[everything["test_accuracy"].notna()]
    assert (tested["phase"] == "confirm").all()
    assert len(tested) == len(rows(confirmed))
    assert tested.groupby("role")["stage_key"].nunique().to_dict() == {"student": 9, "teacher": 1, "assistant": 1}
    assert tested["test_agreement"].isna().equals((tested["arm"] == "labels") | (tested["role"] == "teacher"))
    table = arms_table(everything).set_index("arm")
    [teacher] = tested.query("role == 'teacher'")["test_accuracy"].unique()
    assert table.loc["kd", "teacher_test_accuracy"] == pytest.approx(100 * teacher)
    assert table.loc["takd:mlp-16", "teacher_test_accuracy"] == table.loc["kd", "teacher_test_accuracy"]
    counts = load("mnist").class_counts["validation"]
    assert set(everything["val_majority"]) == {max(counts) / sum(counts)}


def test_what_an_older_version_did_not_measure_is_said_and_measured_when_it_runs_again(confirmed, tmp_path, takd):
    root = Path(shutil.copytree(confirmed.folder.root, tmp_path / "runs"))
    file, students = (
        root / "tiny" / "results" / "test.json",
        set(rows(confirmed).query("role == 'student'")["stage_key"]),
    )
    measured = json.loads(file.read_text())
    old = {key: each for key, each in measured.items() if key in students}
    file.write_text(json.dumps(old))
    called = takd("results", "tiny", "--root", root)
    assert called.code == 0
    assert called.out.count("not measured") == 3  # kd's teacher, takd's teacher and assistant
    assert json.loads(file.read_text()) == old
    folder = study_folder(str(root), "tiny")
    assert open_study("tiny", root).is_finished
    assert run(folder, confirmed.space).result.trained == 0
    again = json.loads(file.read_text())
    assert {key: each["test_accuracy"] for key, each in again.items()} == {
        key: each["test_accuracy"] for key, each in measured.items()
    }


def test_a_teacher_that_nobody_has_the_weights_of_is_not_measured_and_stops_nothing(tmp_path):
    mnist, folder = load("mnist"), study_folder(str(tmp_path), "tiny")
    teacher = make_stage("mlp-16", role="teacher", dataset=mnist.fingerprint)
    student = make_stage("mlp-4", upstream=(teacher,), dataset=mnist.fingerprint)
    weights = build("mlp-4", mnist.image_shape, 10).state_dict()
    folder.artifacts.publish(student.key, {}, {WEIGHTS: safetensors.torch.save(weights)})
    keep(folder, measure_on_test(folder.artifacts, [student]))
    [measured] = read_test(folder).values()
    assert "test_accuracy" in measured
    assert "test_agreement" not in measured


def test_the_test_accuracy_is_the_one_anyone_computes_from_the_artifact(confirmed):
    mnist, row = load("mnist"), rows(confirmed).query("arm == 'kd' and role == 'student'").iloc[0]
    model = build("mlp-4", mnist.image_shape, 10).eval()
    model.load_state_dict(safetensors.torch.load(confirmed.folder.artifacts.read(row["stage_key"], WEIGHTS)))
    mean, std = mnist.normalization
    test = mnist.test()
    with torch.no_grad():
        logits = model((test.images.float() / 255 - mean[0]) / std[0])
    assert (logits.argmax(dim=1) == test.labels).float().mean().item() == pytest.approx(row["test_accuracy"], abs=1e-4)
    loss = torch.nn.functional.cross_entropy(logits, test.labels).item()
    assert loss == pytest.approx(row["test_loss"], rel=1e-4)
    assert sum(bin["count"] for bin in row["test_reliability"]) == 10_000


def test_a_confirmed_study_run_again_trains_nothing_and_what_is_missing_is_trained(confirmed, tmp_path):
    assert run(confirmed.folder, confirmed.space).result.trained == 0
    key = rows(confirmed).query("role == 'student'")["stage_key"].iloc[0]
    shutil.move(artifacts(confirmed.folder) / key, tmp_path / key)
    assert run(confirmed.folder, confirmed.space).result.trained == 1
    assert (artifacts(confirmed.folder) / key).is_dir()


def test_what_an_older_version_chose_is_kept_while_a_student_confirms_it(confirmed, tmp_path):
    """Here it chose nothing for one arm."""
    folder = study_folder(shutil.copytree(confirmed.folder.root, tmp_path / "runs"), "tiny")
    search = open_search(folder)
    chosen = search.study.user_attrs["confirmed"][1:]
    search.study.set_user_attr("confirmed", chosen)
    search.study.set_user_attr("confirmed_from", None)
    assert open_study("tiny", folder.root).is_finished
    again = run(folder, confirmed.space)
    assert again.result.trained == 0
    assert rows(again)["arm"].nunique() == 2
    assert open_search(folder).study.user_attrs["confirmed"] == chosen
    assert open_search(folder).choice_stands


def test_reseed_path_trains_teacher_and_assistants_again(confirmed, tmp_path):
    space = tiny_space(confirm={"seeds": 2, "reseed_path": True}, arms=["takd:mlp-16"], trials=2)
    found = rows(run(study_folder(str(tmp_path), "tiny"), space))
    assert (found["seed"] == found["path_seed"]).all()
    assert found.query("role == 'teacher'")["stage_key"].nunique() == 2


def test_each_path_of_the_confirm_phase_has_teacher_assistants_transfer_set_and_order_of_its_own(confirmed, tmp_path):
    nested = {"confirm": {"paths": 2, "seeds": 2}, "arms": ["labels", "takd:mlp-16"], "coverage": 1, "trials": 2}
    space = tiny_space(**nested, student__recipe={"epochs": 1, "examples": 500})
    study = run(study_folder(str(tmp_path), "tiny"), space)
    found = rows(study)
    assert found.groupby(["arm", "replicate"])["path_seed"].nunique().tolist() == [2] * 4  # the same ones for every arm
    for role in ("teacher", "assistant"):
        assert found[found["role"] == role].groupby("replicate")["stage_key"].nunique().tolist() == [1, 1]
    assert found.query("role != 'student'")["stage_key"].nunique() == 4
    assert set(found["redrawn"]) == {"teacher, assistants, transfer set, order of examples"}
    more = space.model_copy(update={"confirm": space.confirm.model_copy(update={"paths": 3, "seeds": 3})})
    search = open_search(study.folder)
    [proposal] = [each for each in search.confirming() if each.arm == "takd:mlp-16"]
    [trial] = [each for each in search.proposed() if each.user_attrs["arm"] == proposal.arm]
    wider = more.confirming_paths(more.suggest(trial), search.dataset)
    assert {path.student.key for path in proposal.paths} < {path.student.key for path in wider}
    recipes = {path.replicate: path.student.recipe for path in proposal.paths}
    assert recipes[0].order_seed != recipes[1].order_seed
    assert recipes[0].examples_seed != recipes[1].examples_seed


def test_each_confirmed_students_class_on_each_test_image_is_kept(confirmed):
    predictions = pd.read_parquet(confirmed.folder.place(PREDICTIONS))
    measured = rows(confirmed).drop_duplicates("stage_key").set_index("stage_key")
    assert set(predictions) == {"name", "label", *measured.index}
    assert predictions["label"].tolist() == load("mnist").test().labels.tolist()
    for key, row in measured.iterrows():
        right = np.unpackbits(np.frombuffer(row["test_right"], np.uint8), count=row["test_images"])
        assert (right == (predictions[key] == predictions["label"])).all()
        assert right.mean() == pytest.approx(row["test_accuracy"])


def test_a_study_that_was_measured_without_predictions_gets_them_when_it_is_run_again(confirmed):
    before = rows(confirmed)
    Path(confirmed.folder.place(PREDICTIONS)).unlink()
    assert run(confirmed.folder, confirmed.space).result.trained == 0
    pd.testing.assert_frame_equal(rows(confirmed), before)


def test_a_smallest_effect_that_was_changed_after_the_choice_is_told(confirmed):
    assert rows(confirmed)["smallest_effect_before"].isna().all()
    run(confirmed.folder, confirmed.space.model_copy(update={"smallest_effect": 0.5}))
    assert set(rows(confirmed)["smallest_effect"]) == {0.5}
    assert set(rows(confirmed)["smallest_effect_before"]) == {0.0}
    run(confirmed.folder, confirmed.space)
    assert rows(confirmed)["smallest_effect_before"].isna().all()


def test_without_the_test_split_the_search_and_its_tables_are_there_all_the_same(ray_slots, tmp_path):
    hidden = load("mnist").folder / "test.arrow"
    hidden.rename(hidden.with_suffix(".hidden"))
    folder, space = study_folder(str(tmp_path), "tiny"), tiny_space(confirm={"seeds": 1}, arms=["labels"], trials=2)
    try:
        with pytest.raises(InputError, match="the test split can't be read"):
            run(folder, space)
    finally:
        hidden.with_suffix(".hidden").rename(hidden)
    assert set(pd.read_parquet(folder.trials)["status"]) == {"done"}
    assert run(folder, space).result.trained == 0
    assert pd.read_parquet(folder.trials)["test_accuracy"].notna().sum() == 1


def test_a_failure_while_confirming_is_kept_with_its_reason(confirmed):
    search = open_search(confirmed.folder)
    student = make_stage(seed=FRESH_SEED)
    graph = StageGraph(Found())
    proposal = Proposal(-1, "labels", (StagePath(arm="labels", student=student),), "confirm")
    graph.add(proposal)
    graph.fail(student.key, "its worker died")
    search.tell(proposal, graph)
    assert open_search(confirmed.folder).confirm_failures == {student.key: "its worker died"}


def by_hand(confidence: "np.ndarray[Any, Any]", right: "np.ndarray[Any, Any]") -> float:
    """Guo et al. 2017, equation 3."""
    error, edges = 0.0, np.linspace(0, 1, BINS + 1)
    for low, high in pairwise(edges):
        inside = (confidence >= low) & ((confidence < high) | (high == 1))
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


def test_the_calibration_error_is_the_published_one():
    generator = torch.Generator().manual_seed(0)
    logits, labels = 3 * torch.randn(500, 7, generator=generator), torch.randint(7, (500,), generator=generator)
    confidence, chosen = logits.double().softmax(dim=1).max(dim=1)
    expected = by_hand(confidence.numpy(), (chosen == labels).numpy())
    assert measure_logits(logits.t(), labels)["test_ece"] == pytest.approx(expected, abs=1e-6)


def test_a_space_that_wants_no_confirmation_reads_no_test_split(finished: Study):
    """The fixture's test split was away while it ran."""
    assert finished.result.finished
    assert not (Path(finished.folder.root) / "tiny" / "results" / "test.json").exists()


def test_students_that_differ_in_dropout_are_measured_each_as_it_is(tmp_path):
    """Their layers differ, so they can't be one stacked model."""
    mnist, folder = load("mnist"), study_folder(str(tmp_path), "tiny")
    stages = [make_stage("mlp-8", dataset=mnist.fingerprint, dropout=dropout) for dropout in (None, 0.2, 0.4)]
    trained = [train([stage], mnist, [[]])[0] for stage in stages]
    for stage, each in zip(stages, trained, strict=True):
        folder.artifacts.publish(stage.key, {}, {WEIGHTS: safetensors.torch.save(each.weights)})
    images = mnist.validation.images[:50]
    found = predict_stages(folder.artifacts, stages, mnist, images)
    for stage, each in zip(stages, trained, strict=True):
        model = build("mlp-8", mnist.image_shape, 10, stage.recipe.dropout).eval()
        model.load_state_dict(each.weights)
        pixels = Pixels(images, mnist, torch.device("cpu"), torch.contiguous_format)
        with torch.no_grad():
            torch.testing.assert_close(found[stage.key].t(), model(pixels[slice(None)]), rtol=1e-4, atol=1e-4)
