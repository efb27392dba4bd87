"""What a study shows: the table of arms, the figure, the report, and studies side by side, from the Parquet tables."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import pandas as pd
import yaml
from rich.console import Console
from rich.table import Table

from takd.analysis.arms import SPARE, accuracy_table, published_table, studies_table, test_table, with_interval
from takd.analysis.between import differences, same_arms, verdict, warnings
from takd.analysis.cost import networks_of
from takd.analysis.evidence.chosen import SEARCH_NOTE, arms_note, chosen_students, note, unit_of
from takd.analysis.files import read_results
from takd.analysis.finding import finding
from takd.analysis.tables import blocks_of, by_cell, confirmed, metric_of, remembering, split_of
from takd.analysis.teachers import WARNING
from takd.search_spaces import InputError, space_from
from takd.search_spaces.metrics import ACCURACY
from takd.search_spaces.yaml_text import read_yaml
from takd.study.apart import apart
from takd.study.folder import FIGURE, SPACE, StudyFolder, absolute_root, check_name
from takd.trainables.store.artifacts import ArtifactStore
from takd.trainables.store.storage import open_storage

TEXT_COLUMNS = ("arm", "paper", "best configuration")
FOLDED = ("best configuration",)
GAP = 2  # characters between columns
LONGEST = 200  # characters of a folder's name


def write_figure(folder: StudyFolder, trials: pd.DataFrame) -> None:
    """The figure as PNG and SVG, where there is a student to draw; of several cells one each, by their numbers."""
    from takd.analysis.figures import accuracy_by_assistant, image  # matplotlib: a second

    cells = by_cell(trials)
    for number, rows in enumerate(cells.values(), start=1):
        if len(chosen_students(rows)):
            figure, name = accuracy_by_assistant(rows), FIGURE if len(cells) == 1 else f"{FIGURE}-{number}"
            for kind in ("png", "svg"):
                folder.write(f"{name}.{kind}", image(figure, kind))


@remembering()
def print_arms(folder: StudyFolder, trials: pd.DataFrame, console: Console) -> None:
    """The table of arms, a block a cell, what its numbers are, the finding, and where the rest is."""
    if not len(chosen_students(trials)):
        console.print(f"study {folder.name}: no student has ended yet")
        return
    print_table(accuracy_table(trials), f"study {folder.name}", console)
    for cell, rows in by_cell(trials).items():
        if not len(chosen_students(rows)):
            console.print(f"At {cell} no student has ended yet.")
    console.print(arms_note(trials))
    console.print(note(trials))
    _print_finding(trials, console)
    if "test_auc" in trials and confirmed(trials)["test_auc"].notna().any():
        over = f"test split; intervals over {unit_of(trials)}s, the last one over images"
        console.print(_rich(test_table(trials), over))
    space = folder.read_space()
    if space and space.published:
        beside = published_table(trials, space.published.accuracy)
        console.print(_rich(beside, f"beside {space.published.source}"))
    if (cells := len(by_cell(trials))) > 1:
        console.print(f"figures  {folder.place(f'{FIGURE}-1.png')} to -{cells}.png, in the order of the table")
    else:
        console.print(f"figure   {folder.place(f'{FIGURE}.png')}")
    console.print(f"results  {folder.trials}")
    console.print(f"more     takd report {folder.name}")


def _print_finding(trials: pd.DataFrame, console: Console) -> None:
    for sentence in finding(trials):
        console.print(sentence, style="yellow" if sentence.startswith(WARNING) else None)


def print_table(table: pd.DataFrame, title: str, console: Console) -> None:
    """The table of arms. Where the console is too narrow for it, columns of SPARE go, and a line says which.

    Where that is not enough, intervals get lines of their own.
    """
    left_out: list[str] = []
    needed = _width(table)
    for column in SPARE:
        if column in table and _width(table) > console.width:
            table = table.drop(columns=column)
            left_out.append(column)
    if _width(table) > console.width:
        table = table.map(lambda cell: cell.replace(" (", "\n("))
    console.print(_rich(table, title, folded=FOLDED))
    if left_out:
        console.print(f"Not shown at this width: {', '.join(left_out)}. A terminal of {needed} characters has all.")


def _width(table: pd.DataFrame) -> int:
    """Characters of the table's lines at least, if nothing is cut off."""
    cells = [[*_heading(column).split("\n"), *_narrowest(table[column])] for column in table.columns]
    return sum(max(map(len, column)) + GAP for column in cells)


def _narrowest(column: "pd.Series[str]") -> list[str]:
    """A configuration may break at its spaces."""
    return [part for cell in column.map(str) for part in (cell.split() if column.name in FOLDED else [cell])]


def _heading(column: str) -> str:
    return column.replace(", ", ",\n")


def _rich(table: pd.DataFrame, title: str, folded: Collection[str] | None = None) -> Table:
    """Cells of the columns that may be folded, or of all, go on in a next line where the console is narrow."""
    shown = Table(title=title, title_justify="left", box=None, padding=(0, GAP, 0, 0))
    for column in table.columns:
        justify: Literal["left", "right"] = "left" if column in TEXT_COLUMNS else "right"
        shown.add_column(
            _heading(column), justify=justify, no_wrap=folded is not None and column not in folded, overflow="fold"
        )
    for row in table.itertuples(index=False):
        shown.add_row(*map(str, row))
    return shown


def write_report(root: str, names: Sequence[str], console: Console) -> None:
    """Writes a study's `report/`, or that of several into `NAME+NAME/report/`, and prints the findings.

    Raises InputError where there is nothing to report.
    """
    for name in names:
        check_name(name)
    folder = "+".join(names)  # no study's name has a plus
    if len(set(names)) < len(names):
        raise InputError(f"report {' '.join(names)}: each study is named once")
    if len(folder) > LONGEST:
        raise InputError(f"report: the names have {len(folder)} characters together; expected at most {LONGEST}")
    try:
        from takd.analysis.report import report_files
    except ModuleNotFoundError as error:
        raise InputError(f"report needs {error.name}; install it with: pip install 'takd[report]'") from None
    storage = open_storage(root)
    for name in names:
        _measure_latencies(root, name, console)
    with remembering():
        files = report_files(root, names)
        for file, content in files.items():
            storage.replace(f"{folder}/report/{file}", content)
        for name in names:
            trials = read_results(root, name).all_trials
            if len(names) > 1:
                console.print(f"study {name}", style="bold")
            _print_finding(trials, console)
            console.print(note(trials))
    console.print(f"report   {storage.uri(f'{folder}/report/report.html')}")
    console.print(f"beside it: summary.md, arms.csv, {sum(file.endswith('.png') for file in files)} figures, notebooks")


def _measure_latencies(root: str, name: str, console: Console) -> None:
    """What one image takes, of each student of a study with several sizes, as far as it is not known yet."""
    results = read_results(root, name)
    students = results.all_trials[(results.all_trials["role"] == "student") & (results.all_trials["status"] == "done")]
    first = students.assign(network=networks_of(students)).drop_duplicates("network")
    if first["model"].nunique() < 2 or set(first["network"]) <= results.latencies.keys():
        return
    store = ArtifactStore(root)
    described = {row["network"]: store.describe(row["stage_key"]) for row in first.to_dict("records")}
    inputs = {network: each["input"] for network, each in described.items() if each}
    try:
        apart("takd.study.export.pareto:measure_latencies", root, name, inputs)
    except InputError as error:
        console.print(f"the report has no latency of students: {error}")


@remembering()
def print_comparison(root: str, names: Sequence[str], console: Console) -> None:
    """Studies side by side: what differs in their spaces, accuracy by arm, then each arm against the first study's.

    A study of another root is named by its place there: `../other/runs/NAME`, or a URI.
    """
    places = dict(zip(names, (_place_of(name, root) for name in names), strict=True))
    if len(set(places.values())) < 2 or len(places) < len(names):
        raise InputError(f"compare {' '.join(names)}: expected two studies or more, each named once")
    studies = {name: read_results(*place).all_trials.assign(study=name) for name, place in places.items()}
    differ = differences({name: _space_of(*place, studies[name]) for name, place in places.items()})
    for warning in warnings(differ):
        console.print(warning, style="yellow")
    if len(differ):
        console.print(_rich(differ, "what differs in their spaces"))
    else:
        console.print("their spaces are the same")
    blocks = blocks_of(pd.concat(studies.values(), ignore_index=True))
    console.print(_rich(studies_table(blocks), "mean accuracy in %, or what the study goes by, with its 95 % interval"))
    console.print(
        _rich(studies_table(blocks, "over_kd"), "over kd, in percentage points where it is a fraction, paired by seed")
    )
    first, *others = studies
    for other in others:
        _print_same_arms(first, other, studies, "dataset" not in set(differ["key"]), console)
    for name, trials in studies.items():
        console.print(f"{name}: {' '.join(finding(trials))}")
    if any(split_of(trials) == "validation" for trials in studies.values()):
        console.print(f"Of those marked validation: {SEARCH_NOTE}")


def _print_same_arms(
    first: str, other: str, studies: Mapping[str, pd.DataFrame], same_data: bool, console: Console
) -> None:
    splits = [split_of(studies[name]) for name in (first, other)]
    if splits[0] != splits[1]:
        console.print(f"{other} against {first}: not compared, one has {splits[1]} numbers and the other {splits[0]}")
        return
    rows = same_arms(studies[first], studies[other], same_data).to_dict("records")
    if not rows:
        console.print(f"{other} against {first}: they have no arm in common")
        return
    cells = [row["cell"] for row in rows]
    one, two = (metric_of(studies[name]) for name in (first, other))
    metric = one if one == two else ACCURACY
    table = pd.DataFrame(
        ({"cell": cells} if any(cells) else {})
        | {
            "arm": [row["arm"] for row in rows],
            f"difference, {metric.unit} (95 % CI)": [
                with_interval(row["difference"], row["low"], row["high"], "+", metric.digits) for row in rows
            ],
            "p (Holm)": ["-" if pd.isna(row["p"]) else f"{row['p']:.3f}" for row in rows],
            "how": [row["how"] for row in rows],
            "verdict": [verdict(row) for row in rows],
        }
    )
    console.print(_rich(table, f"{other} against {first}"))


def _place_of(name: str, root: str) -> tuple[str, str]:
    """Root and name of a study: below the root, or named with a root of its own."""
    elsewhere, _, last = name.rstrip("/").rpartition("/")
    check_name(last)
    return (absolute_root(elsewhere), last) if elsewhere else (root, last)


def _space_of(root: str, name: str, trials: pd.DataFrame) -> Mapping[str, Any] | None:
    """As plain data, in which the data set is named with its digest where some stage of the study knows that."""
    try:
        text = open_storage(root).read(f"{name}/{SPACE}")
        space = space_from(read_yaml(text), SPACE).model_dump(mode="json")
    except (FileNotFoundError, InputError, yaml.YAMLError):
        return None
    found = map(ArtifactStore(root).describe, trials["stage_key"].unique())
    digest = next((each["input"]["dataset"]["digest"] for each in found if each), "")
    return space | {"dataset": f"{space['dataset']} {digest[:12]}".strip()}
