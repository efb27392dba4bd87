"""`takd report` and `takd compare` on a real study: notebooks executed, files written, the page in a real browser."""

import re
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from browser import Seen, find_browser, look
from conftest import Study
from rich.console import Console
from test_analysis import with_confirmation

from takd.analysis.arms import accuracy_table, page_table
from takd.analysis.execution import FOLDER, NAMES, execute, outputs
from takd.analysis.files import open_root, read_results, soft_targets
from takd.analysis.page import inline_svg, markdown, page
from takd.search_spaces import InputError
from takd.study.cli import main
from takd.study.report import print_table
from takd.trainables.store.storage import open_storage

FIGURES = ("accuracy_by_assistant", "differences", "temperature_lambda_map", "slices", "pareto", "training_curves")
WIDTHS = ((390, "light"), (390, "dark"), (1280, "light"), (1280, "dark"))


@pytest.fixture(scope="module")
def reported(finished: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a copy of the finished study, reported by the command; `printed` has what that said."""
    root = tmp_path_factory.mktemp("report") / "runs"
    shutil.copytree(finished.folder.root, root)
    with redirect_stdout(StringIO()) as out:
        assert main(["report", "tiny", "--root", str(root)]) == 0
    (root / "printed").write_text(out.getvalue())
    return root


@pytest.fixture(scope="module")
def report(reported: Path) -> Path:
    return reported / "tiny" / "report"


@pytest.fixture(scope="module")
def seen(report: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], Seen]:
    """What the page does in a browser, at phone and desktop width, light and dark."""
    binary = find_browser()
    if binary is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    return look(binary, report / "report.html", tmp_path_factory.mktemp("browser"), WIDTHS)


# Notebooks


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_committed_without_outputs(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}


def test_every_notebook_of_the_folder_is_in_the_report():
    assert {file.stem for file in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_thin_and_needs_no_framework(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    first, *others = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert all(re.fullmatch(r"show\(\w+\.\w+(, results\.[\w()]+)*\)", source) for source in others), others
    imported = set(re.findall(r"^(?:from|import) (\w+(?:\.\w+)?)", first, re.MULTILINE))
    assert imported == {"os", "takd.analysis"}


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_ran_on_the_real_study_and_shows_something(report, name):
    notebook = nbformat.read(report / f"{name}.ipynb", as_version=4)
    shown = [forms for forms, _ in outputs(notebook)]
    assert any("image/svg+xml" in forms for forms in shown)
    assert not any(output.output_type == "error" for cell in notebook.cells for output in cell.get("outputs", []))


def test_partial_results_are_shown_with_what_is_missing(finished, tmp_path):
    results = tmp_path / "young" / "results"
    results.mkdir(parents=True)
    trials = pd.read_parquet(finished.folder.trials)
    trials[trials["role"] == "teacher"].to_parquet(results / "trials.parquet")
    pd.read_parquet(finished.folder.epochs)[:0].to_parquet(results / "epochs.parquet")
    assert main(["report", "young", "--root", str(tmp_path)]) == 0
    text = (tmp_path / "young" / "report" / "report.html").read_text()
    assert "No student has ended yet, so there is no finding." in text
    assert "Missing: No student has ended yet." in text


def test_confirmed_results_are_shown_as_test_results(tmp_path):
    results = tmp_path / "sure" / "results"
    results.mkdir(parents=True)
    with_confirmation().to_parquet(results / "trials.parquet")
    columns = ["study", "stage_key", "role", "model", "epoch", "val_accuracy", "val_loss"]
    pd.DataFrame(columns=columns).to_parquet(results / "epochs.parquet")
    shown = list(outputs(execute("training_curves", str(tmp_path), "sure")))
    assert "reliability" in {figure for _, figure in shown}
    assert "expected calibration error" in "".join(forms.get("text/markdown", "") for forms, _ in shown)


def test_a_notebook_reads_a_study_in_a_bucket(finished, bucket):
    storage = open_storage(bucket)
    for kind in ("trials", "epochs"):
        content = Path(getattr(finished.folder, kind)).read_bytes()
        storage.replace(f"tiny/results/{kind}.parquet", content)
    trials = pd.read_parquet(finished.folder.trials)
    key = trials[trials["role"] == "teacher"]["stage_key"].iloc[0]
    root = Path(finished.folder.root)
    [derived] = [each for each in (root / "derived").iterdir() if key in (each / "derived.json").read_text()]
    for local, last in ((root / "artifacts" / key, "stage.json"), (derived, "derived.json")):
        files = {file.name: file.read_bytes() for file in local.iterdir()}
        storage.publish(f"{local.parent.name}/{local.name}", files, last=last)
    assert soft_targets(bucket, key).tolist() == soft_targets(finished.folder.root, key).tolist()
    shown = list(outputs(execute("temperature_lambda", bucket, "tiny")))
    assert {"temperature_lambda_map", "entropy_by_temperature"} <= {figure for _, figure in shown}


# Files


def test_every_figure_is_there_as_png_and_svg(report):
    for name in FIGURES:
        assert (report / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (report / f"{name}.svg").read_text()


def test_arms_csv_has_an_interval_for_every_accuracy(report):
    table = pd.read_csv(report / "arms.csv")
    assert table["arm"].tolist() == ["labels", "kd", "takd:mlp-16"]
    assert ((table["low"] < table["accuracy"]) & (table["accuracy"] < table["high"])).all()
    assert set(table["split"]) == {"validation"}


def test_summary_opens_with_the_finding_and_has_the_tables(report):
    text = (report / "summary.md").read_text()
    assert text.startswith("# Study tiny\n\nThe highest mean validation (not test) accuracy")
    assert "validation numbers of the search" in text
    assert "| takd:mlp-16 - kd |" in text
    assert "## Cost" in text


# The page


def test_the_page_fetches_nothing_and_runs_nothing(report):
    text = (report / "report.html").read_text()
    assert "<script" not in text
    assert "default-src 'none'" in text
    assert not re.findall(r"(?:src|href)=\"(?!#|data:)[^\"]*\"", text.replace('xlink:href="#', 'href="#'))
    assert text.index("The highest mean") < text.index("<table")


def test_what_a_study_says_is_text_and_no_markup():
    html = page(
        "<b>study</b>", ["<script>alert(1)</script>"], "<i>", "| a |\n| --- |\n| <img src=x onerror=alert(1)> |", {}
    )
    assert "<script>alert" not in html
    assert "<img" not in html
    assert "<b>study" not in html
    assert "<a " not in markdown("[click](javascript:alert(1)) <http://example.invalid>")


def test_a_warning_stands_out_from_the_finding():
    html = page("study", ["The best is kd.", "Warning: the teacher <b> is at chance."], "", "", {})
    assert "<p>The best is kd.</p>" in html
    assert '<p class="warning">Warning: the teacher &lt;b&gt; is at chance.</p>' in html


def test_the_page_shows_what_matters_of_an_arm_without_scrolling_to_it():
    columns = list(page_table(with_confirmation()).columns)
    assert columns[:5] == ["arm", "test accuracy %", "over kd", "teacher, test %", "assistants, test %"]
    assert sorted(columns) == sorted(accuracy_table(with_confirmation()).columns)


def test_ink_of_a_figure_is_the_pages():
    drawn = inline_svg('<?xml?><svg><path style="fill: #222222"/></svg>')
    assert drawn == '<svg><path style="fill: var(--ink)"/></svg>'


@pytest.mark.parametrize(("width", "scheme"), WIDTHS)
def test_the_page_in_a_browser(seen, report, width, scheme):
    """No console message, no request beyond the file, no sideways scrolling, and dark where that is asked for."""
    page = seen[width, scheme]
    assert page.title == "Study tiny"
    assert page.console == []
    assert [url for url in page.requests if not url.startswith("data:")] == [(report / "report.html").as_uri()]
    assert page.inner_width == width
    assert page.scroll_width <= width
    assert page.background == ("rgb(20, 23, 26)" if scheme == "dark" else "rgb(255, 255, 255)")
    assert page.pdf.startswith(b"%PDF")


# The command line


@pytest.mark.parametrize("width", [80, 100, 130, 200])
def test_no_cell_of_the_table_of_arms_is_cut_off_and_what_is_left_out_is_named(width):
    table = accuracy_table(with_confirmation())
    console = Console(width=width, file=StringIO(), markup=False)
    print_table(table, "study x", console)
    out = console.file.getvalue()
    assert "\u2026" not in out
    named = re.search(
        r"Not shown at this width: (.*)\. A terminal of (\d+) characters has all\.",
        out.replace("\n", " ").replace("  ", " "),
    )
    left_out = named[1].split(", ") if named else []
    for column in table.columns:
        words = {word for cell in table[column] for word in cell.split()}
        assert column in left_out or words <= set(out.split()), column
    assert not {"arm", "test accuracy %", "over kd", "teacher, test %", "assistants, test %"} & set(left_out)
    assert bool(left_out) == (width < (int(named[2]) if named else 0))
    assert bool(left_out) == (width < 200)


def test_the_report_ends_with_the_finding_and_where_it_is(reported):
    out = (reported / "printed").read_text()
    assert out.startswith("The highest mean validation (not test) accuracy")
    assert f"report   {reported}/tiny/report/report.html" in out


def test_compare_puts_studies_side_by_side(reported, capsys):
    shutil.copytree(reported / "tiny", reported / "again")
    assert main(["compare", "tiny", "again", "--root", str(reported)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"arm +tiny \(validation\) +again \(validation\)", out)
    [first, *_] = [line.split("  ") for line in out.splitlines() if line.startswith("takd:mlp-16")]
    assert len({cell for cell in map(str.strip, first) if "(" in cell}) == 1
    assert "validation numbers of the search" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["report", "nothing"], "study nothing: no results/trials.parquet below"),
        (["report", "../elsewhere"], "study ../elsewhere: expected letters"),
        (["compare", "tiny", "nothing"], "study nothing: no results/trials.parquet below"),
        (["compare", "tiny"], "expected two studies or more"),
        (["compare", "tiny", "tiny"], "each named once"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line(reported, capsys, arguments, words):
    capsys.readouterr()
    assert main([*arguments, "--root", str(reported)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["report", "torn"], ["compare", "tiny", "torn"]])
def test_a_damaged_table_is_one_line_with_the_remedy(reported, capsys, arguments):
    table = shutil.copytree(reported / "tiny", reported / "torn", dirs_exist_ok=True) / "results" / "trials.parquet"
    table.write_bytes(table.read_bytes()[:1000])
    capsys.readouterr()
    assert main([*arguments, "--root", str(reported)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "study torn: results/trials.parquet below" in line
    assert "`takd results torn` writes it again" in line


def test_a_root_that_is_no_uri_is_named():
    with pytest.raises(InputError, match="root nonsense://here"):
        open_root("nonsense://user:secret@here")


def test_several_studies_are_read_as_one_and_told_apart(reported):
    shutil.copytree(reported / "tiny", reported / "second", dirs_exist_ok=True)
    results = read_results(str(reported), "tiny,second")
    assert len(results.all_trials) == 2 * len(results.trials)
