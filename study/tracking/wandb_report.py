"""A W&B report of a study, made through W&B's reports API: what the arms reach, T x lambda, sizes, cost."""

import os
from typing import Any

from takd.search_spaces import InputError
from takd.search_spaces.metrics import Metric
from takd.study.folder import StudyFolder
from takd.study.tracking.wandb_runs import project


def build_report(folder: StudyFolder, entity: str, metric: Metric) -> Any:
    """The report, not saved yet, of what the study goes by; raises InputError where the API is not installed."""
    try:
        import wandb_workspaces.reports.v2 as wr
    except ImportError:
        raise InputError("--report needs wandb-workspaces: pip install 'takd[dashboard]'") from None
    title, column = metric.title, f"val_{metric.name}"
    value = wr.SummaryMetric(column)
    students = wr.Runset(
        entity=entity,
        project=project(),
        name="students",
        filters=f"Group = '{folder.name}' and JobType = 'student'",
    )
    columns = [
        wr.Config("upstream_parameters"),
        wr.Config("temperature"),
        wr.Config("lambda"),
        wr.Config("recipe.learning_rate"),
        value,
    ]
    panels = [
        wr.ScatterPlot(
            title=f"{title} by TA size", x=wr.Config("upstream_parameters"), y=value, log_x=True, regression=False
        ),
        wr.ScatterPlot(title="T x lambda", x=wr.Config("temperature"), y=wr.Config("lambda"), z=value),
        wr.ParallelCoordinatesPlot(
            title="hyperparameters", columns=[wr.ParallelCoordinatesPlotColumn(metric=name) for name in columns]
        ),
        wr.ScatterPlot(title="cost", x=wr.SummaryMetric("train_seconds"), y=value, log_x=True),
        wr.BarPlot(title=f"{title} by arm", metrics=[column], groupby=wr.Config("path"), groupby_aggfunc="mean"),
        wr.LinePlot(title=f"validation {title}", x="epoch", y=[column], groupby=wr.Config("path")),
    ]
    return wr.Report(
        project=project(),
        entity=entity,
        title=f"takd study {folder.name}",
        description="Validation numbers of the search: they can rank the arms, but prove no difference.",
        blocks=[wr.H1("Students"), wr.PanelGrid(runsets=[students], panels=panels)],
    )


def save_report(folder: StudyFolder, metric: Metric) -> str:
    """Creates the report on W&B; returns its address. Raises InputError where W&B doesn't take it."""
    entity = os.environ.get("WANDB_ENTITY", "")
    if not entity:
        raise InputError("--report: set WANDB_ENTITY to the user or team whose runs it shows")
    report = build_report(folder, entity, metric)
    try:
        report.save()
    except Exception as error:  # of W&B's client, of many kinds
        raise InputError(f"--report: W&B doesn't take it ({str(error).splitlines()[0]})") from None
    return str(report.url)
