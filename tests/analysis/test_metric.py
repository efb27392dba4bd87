"""What a search goes by: another metric than the accuracy, from the look at the validation images to the choice."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from conftest import Study, make_stage, run, tiny_space
from optuna.distributions import CategoricalDistribution
from optuna.trial import create_trial

from takd.analysis.arms import accuracy_table, arms_table, comparisons
from takd.analysis.cost import networks_of, on_front
from takd.analysis.evidence.chosen import best_configurations, note
from takd.analysis.evidence.measured import Measured
from takd.analysis.figures import accuracy_by_assistant, image
from takd.analysis.finding import finding
from takd.analysis.gap import front_table, students_front
from takd.analysis.metrics import COLUMNS, value_text
from takd.analysis.tables import Missing, students
from takd.search_spaces import InputError
from takd.search_spaces.metrics import METRICS
from takd.search_spaces.registry import COLUMNS as RESERVED
from takd.search_spaces.registry import TABLES, metric_named
from takd.search_spaces.stage import SearchMetric
from takd.study.checks import check_space
from takd.study.export.candidates import Candidate
from takd.study.export.pareto import front_of, tables
from takd.study.folder import study_folder
from takd.study.results import EPOCHS, TRIALS
from takd.study.search.optimization import open_search
from takd.study.search.sampling import History
from takd.study.status import best_by_arm
from takd.trainables.datasets import dataset as datasets
from takd.trainables.halving import Halving
from takd.trainables.own_code import NO_CODE, use
from takd.trainables.training.lanes import EpochMetrics


def space(**changes: Any) -> Any:
    return tiny_space(**{"trials": 4, "coverage": 1, "arms": ["labels", "kd"], "seeds": 2, **changes})


def table_of(study: Study) -> pd.DataFrame:
    return study.folder.trials and pd.read_parquet(study.folder.trials)


@pytest.mark.usefixtures("ray_slots", "cache")
def test_a_search_by_another_metric_chooses_tells_and_shows_it_and_trains_no_student_twice(tmp_path: Path):
    plain = run(study_folder(str(tmp_path), "plain"), space())
    by_auc = run(study_folder(str(tmp_path), "auc"), space(metric="auc", confirm={"seeds": 2}))
    trials, search = table_of(by_auc), open_search(by_auc.folder)
    shared = set(table_of(plain)["stage_key"]) & set(trials["stage_key"])
    assert len(shared) > 4  # those of the guaranteed trials at least: they are measured, and not trained again
    origins = {key: by_auc.folder.artifacts.describe(key)["outcome"]["origin"]["study"] for key in shared}
    assert set(origins.values()) == {"plain"}

    done = students(trials)
    assert done["val_auc"].between(0, 1).all()
    assert search.study.metric_names == ["mean validation auc"]
    for trial in search.proposed():
        own = done[done["trial"] == trial.number]
        assert trial.value == pytest.approx(own["val_auc"].mean())
    means = done.groupby(["arm", "configuration"])["val_auc"].mean()
    errors = done.groupby(["arm", "configuration"])["val_auc"].sem()
    for arm, name in best_configurations(trials).items():
        assert means[arm][name] >= means[arm].max() - errors[arm][means[arm].idxmax()] - 1e-9

    assert "test AUC %" in accuracy_table(trials).columns
    assert any("The search went by the AUC: highest is the mean test AUC of" in each for each in finding(trials))
    assert "The search went by the validation AUC" in note(trials)
    assert "% validation AUC" in by_auc.output  # of the progress lines' best
    best = best_by_arm(trials).iloc[0]
    assert value_text(best["value"] / 100, METRICS["auc"]).endswith("% validation AUC")
    assert best["value"] == pytest.approx(100 * means.max())


@pytest.mark.usefixtures("ray_slots", "cache")
def test_a_loss_is_minimised_also_by_pruning_and_by_the_epoch_whose_weights_are_kept(tmp_path: Path):
    changes: dict[str, Any] = {"metric": "loss", "asha": {"grace_epochs": 1, "reduction_factor": 2}}
    recipe = {"epochs": 4, "select": "best", "learning_rate": 0.3}
    study = run(study_folder(str(tmp_path), "loss"), space(**changes, student__recipe=recipe))
    search = open_search(study.folder)
    assert search.study.direction.name == "MINIMIZE"
    epochs = pd.read_parquet(study.folder.trials.replace("trials.parquet", "epochs.parquet"))
    done = students(table_of(study))
    assert len(done)
    for row in done.to_dict("records"):
        own = epochs[epochs["stage_key"] == row["stage_key"]].set_index("epoch")["val_loss"]
        assert row["val_loss"] == own.min()
        assert row["selected_epoch"] == own.idxmin()
    for trial in search.proposed():
        losses = [epochs.loc[epochs["stage_key"] == path.student.key] for path in search.paths_of(trial)]
        for epoch, value in trial.intermediate_values.items():
            at = pd.concat(losses)
            assert value == pytest.approx(at.loc[at["epoch"] == epoch, "val_loss"].mean())
    arms = done.assign(loss=done["val_loss"]).groupby(["arm", "configuration"])["loss"].mean()
    assert best_by_arm(table_of(study)).iloc[0]["value"] == pytest.approx(arms.min())


def test_the_stages_key_has_the_metric_where_the_weights_depend_on_it_and_nowhere_else():
    def student(**changes: Any) -> str:
        own = space(**changes)
        fingerprint = make_stage().dataset
        return own.path(own.all_arms[0], {}, fingerprint, 0).student.key

    assert student(metric="auc") == student()
    best = {"student__recipe": {"select": "best"}}
    assert student(metric="accuracy", **best) == student(**best)
    assert len({student(**best), student(metric="auc", **best), student(metric="loss", **best)}) == 3


def test_halving_ends_those_with_the_higher_loss():
    for metric, ended in (("loss", "b"), ("accuracy", "a")):
        halving = Halving(1, 2, METRICS[metric])
        assert halving.stop(1, {"a": 0.1}) == []
        assert halving.stop(1, {"b": 0.9, "c": 0.5 if metric == "loss" else 0.05})[0] == ("b" if ended == "b" else "c")


def test_the_best_of_a_long_history_are_those_with_the_lowest_loss():
    trials = [
        create_trial(params={"arm": "kd"}, distributions={"arm": CategoricalDistribution(["kd"])}, value=float(n))
        for n in range(500)
    ]
    for number, trial in enumerate(trials):
        trial.number = number

    def seen(lowest: bool) -> set[int]:
        return {each.number for each in History(lowest=lowest).seen(range(500), trials)}

    assert seen(lowest=True) >= set(range(50))
    assert seen(lowest=False) >= set(range(300, 350))


def test_what_is_not_defined_on_a_split_is_refused(monkeypatch: pytest.MonkeyPatch):
    there = datasets.load("mnist")
    counts = {split: [*counts[:-1], 0] for split, counts in there.class_counts.items()}
    monkeypatch.setattr("takd.study.checks._dataset", lambda *_: replace(there, class_counts=counts))
    with pytest.raises(
        InputError, match="metric is auc, but the validation split of mnist has no image of the class 9"
    ):
        check_space(space(metric="auc"), "tiny")
    check_space(space(metric="loss"), "tiny")


# What students of several sizes reach and cost


def test_on_the_front_is_who_no_other_beats_at_a_lower_cost():
    costs, values = np.array([1.0, 2, 2, 3, 4, np.nan]), np.array([80.0, 85, 84, 85, 90, 99])
    assert on_front(costs, values).tolist() == [True, True, False, False, True, False]
    assert on_front(np.array([1.0, 1.0]), np.array([5.0, 5.0])).all()


def candidate(model: str, mean: float, parameters: int, metric: str = "auc") -> Candidate:
    row = {"model": model, "parameters": parameters, "flops_per_image": 2 * parameters, "arm": "kd"}
    row |= {"configuration": f"kd student.model={model}"}
    reached = Measured("kd", pd.DataFrame({"chosen_by": [mean], "test": [mean]}))
    return Candidate(row, METRICS[metric], "confirm", reached, "test", pd.DataFrame(), pd.DataFrame())


MILLISECONDS = {"mlp-4": 0.3, "mlp-8": 0.2, "mlp-16": 0.4, "mlp-32": 0.5}


def test_an_export_of_a_front_has_the_best_of_each_size_that_no_other_size_beats_everywhere():
    ordered = [candidate(*each) for each in (("mlp-16", 0.9, 160), ("mlp-16", 0.89, 160), ("mlp-32", 0.88, 320))]
    ordered += [candidate("mlp-8", 0.85, 80), candidate("mlp-4", 0.8, 40)]
    front = front_of(ordered, lambda each: MILLISECONDS[each.row["model"]])
    assert [(each.folder, each.candidate.mean) for each in front] == [("mlp-4", 0.8), ("mlp-8", 0.85), ("mlp-16", 0.9)]
    assert [each.fronts for each in front] == [
        ("parameters", "flops_per_image"),  # slower than the better mlp-8
        ("parameters", "flops_per_image", "milliseconds"),
        ("parameters", "flops_per_image", "milliseconds"),
    ]
    files = tables(front, [{"study": "sizes", "metrics": {"test": {"accuracy": {"value": 0.7}}}}] * 3)
    text = files["PARETO.md"].decode()
    assert "# The Pareto front of sizes" in text
    assert "| mlp-8 | kd | 85.00 % | 70.00 % | 80 | 160 | 0.2 | parameters, FLOPs an image, ms an image |" in text
    rows = pd.read_csv(io.BytesIO(files["pareto.csv"]))
    assert rows["milliseconds"].tolist() == [0.3, 0.2, 0.4]
    # One that ends in its teacher's head is larger than its model, and no student of that model's own size.
    projecting = front_of(
        [candidate("mlp-8", 0.9, 200), candidate("mlp-8", 0.85, 80), candidate("mlp-4", 0.8, 40)], lambda _: 1.0
    )
    assert [each.folder for each in projecting] == ["mlp-4", "mlp-8-80", "mlp-8-200"]
    losses = [
        candidate("mlp-8", 0.3, 80, "loss"),
        candidate("mlp-4", 0.4, 40, "loss"),
        candidate("cnn", 0.4, 99, "loss"),
    ]
    assert [each.folder for each in front_of(losses, lambda each: 1.0)] == ["mlp-4", "mlp-8"]
    with pytest.raises(InputError, match="--pareto: all students are mlp-8; a front needs students of several sizes"):
        front_of([candidate("mlp-8", 0.9, 80)], lambda each: 1.0)


def sized_students() -> pd.DataFrame:
    """Confirmed students of four sizes, taught in two ways."""
    rows = []
    for place, model in enumerate(MILLISECONDS):
        for arm in ("labels", "kd"):
            for seed in range(3):
                value = 0.6 + 0.05 * place + 0.02 * (arm == "kd") + 0.003 * seed
                cell, size = f"student.model={model}", int(model[4:])
                about = {"study": "sizes", "phase": "confirm", "trial": place, "configuration": f"{arm} {cell}"}
                about |= {"cell": cell, "arm": arm, "path": model, "path_seed": seed, "seed": seed, "role": "student"}
                about |= {"model": model, "parameters": 790.0 * size, "flops_per_image": 1580.0 * size}
                about |= {"status": "done", "stage_key": f"{model} {arm} {seed}", "metric": "auc", "train_seconds": 1.0}
                about |= {"val_accuracy": value, "test_accuracy": value, "val_auc": value, "test_auc": value}
                about |= {"epochs": 1, "whole_epochs": 1.0, "examples": 1000.0}
                rows += [about, about | {"phase": "search", "stage_key": f"{about['stage_key']} search"}]
    return pd.DataFrame(rows)


def test_the_report_draws_the_front_of_students_over_all_cells_in_the_metric_that_the_search_went_by():
    trials = sized_students()
    assert b"<svg" in image(students_front(trials, MILLISECONDS), "svg")
    table = front_table(trials, MILLISECONDS)
    assert "student's test AUC (%)" in table
    assert list(zip(table["student"], table["arm"], table["no other beats it by"], strict=True)) == [
        ("mlp-4", "kd", "parameters, FLOPs"),
        ("mlp-8", "kd", "parameters, FLOPs, latency"),
        ("mlp-16", "kd", "parameters, FLOPs, latency"),
        ("mlp-32", "kd", "parameters, FLOPs, latency"),
    ]
    assert (front_table(trials, {})["ms an image"] == "not measured").all()
    with pytest.raises(Missing, match="All students are of one size"):
        front_table(trials[trials["model"] == "mlp-4"], {})


def test_a_student_that_ends_in_its_teachers_head_has_a_latency_of_its_own():
    trials = sized_students()
    taught = (trials["arm"] == "kd") & (trials["model"] == "mlp-4")
    trials.loc[taught, ["arm", "parameters"]] = ["simkd", 5000.0]
    networks = networks_of(trials)
    assert set(networks[taught]) == {"mlp-4 of 5000 parameters"}
    assert set(networks[~taught]) == set(MILLISECONDS)
    table = front_table(trials, MILLISECONDS | {"mlp-4 of 5000 parameters": 0.9}).set_index(["student", "arm"])
    assert (table.loc[("mlp-4", "simkd"), "ms an image"], table.loc[("mlp-4", "labels"), "ms an image"]) == (
        "0.9",
        "0.3",
    )


# What is in the table


def test_takds_own_metrics_are_in_the_table_as_spaces_and_reports_know_them():
    use(NO_CODE)
    assert {name: metric_named(name) for name in TABLES["metric"]} == dict(METRICS)
    assert set(get_args(SearchMetric)) == set(METRICS)


def test_a_metric_of_code_can_not_have_the_name_of_another_column():
    names = [name for schema in (TRIALS, EPOCHS) for name in schema.names]
    taken = {name.partition("_")[2] for name in names if name.startswith(("val_", "test_"))} | set(COLUMNS)
    assert taken == {*RESERVED, *METRICS}


def test_an_epochs_row_is_read_as_it_was_written_whatever_was_measured():
    metrics = EpochMetrics(1, 0.1, 0.5, 0.6, 0.7, 1.0, 0.1, {"auc": 0.9, "brier": 0.2})
    row = metrics.row()
    assert (row["val_auc"], row["val_brier"]) == (0.9, 0.2)
    assert EpochMetrics.of_row(row) == metrics
    assert "scores" not in row


def test_arms_differ_in_what_the_study_goes_by_and_positive_is_better():
    trials = sized_students()
    trials = trials[trials["model"] == "mlp-8"].assign(cell="")
    trials["test_loss"] = trials["val_loss"] = 1 - 2 * trials["val_accuracy"]  # kd has less of it
    by = {
        metric: arms_table(trials.assign(metric=metric)).set_index("arm").loc["kd", "over_labels"]
        for metric in ("accuracy", "auc", "loss")
    }
    assert by["accuracy"] == by["auc"] == pytest.approx(2.0)  # points
    assert by["loss"] == pytest.approx(0.04)
    by_loss = trials.assign(metric="loss")
    [sentence] = comparisons(by_loss)["verdict"]
    assert "0.0400 of loss below labels" in sentence or "by 0.0400 of loss" in sentence
    assert "lowest is the mean test loss of kd" in " ".join(finding(by_loss))
    assert accuracy_by_assistant(by_loss).axes[0].get_ylabel() == "student's test loss"
