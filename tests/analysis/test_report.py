"""`takd report` and `takd compare` on real studies: notebooks executed, files written, the page in a real browser."""

import json
import os
import re
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import nbclient
import nbformat
import pandas as pd
import pytest
from browser import Seen, find_browser, look
from conftest import Study
from rich.console import Console
from test_analysis import with_confirmation

from takd.analysis.arms import accuracy_table, page_table
from takd.analysis.execution import FOLDER, NAMES, OF_ONE, NotebookError, execute, outputs
from takd.analysis.files import open_root, read_results, soft_targets
from takd.analysis.page import folded, inline_svg, markdown, page, table_html
from takd.search_spaces import InputError
from takd.study.cli import main
from takd.study.report import print_table
from takd.trainables.store.storage import open_storage

FIGURES = ("accuracy_by_assistant", "differences", "temperature_lambda_map", "slices", "pareto", "training_curves")
BOXES = (".opening figure", ".finding", "#arms .wide")
WIDTHS = ((390, "light"), (1300, "light"), (1300, "dark"))


@pytest.fixture(scope="module")
def reported(finished: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the finished study and a copy of it, one reported and both together; `printed` has what was said."""
    root = tmp_path_factory.mktemp("report") / "runs"
    shutil.copytree(finished.folder.root, root)
    shutil.copytree(root / "tiny", root / "again")
    with redirect_stdout(StringIO()) as out:
        assert main(["report", "tiny", "--root", str(root)]) == 0
        assert main(["report", "tiny", "again", "--root", str(root)]) == 0
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
    return look(binary, report / "report.html", tmp_path_factory.mktemp("browser"), WIDTHS, BOXES)


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


@pytest.mark.parametrize("name", OF_ONE)
def test_a_notebook_ran_on_the_real_study_and_shows_something(report, name):
    notebook = json.loads((report / f"{name}.ipynb").read_text())
    shown = [forms for forms, _ in outputs(notebook)]
    assert any("image/svg+xml" in forms for forms in shown)
    nbformat.validate(notebook)


def test_a_user_runs_a_notebook_in_jupyter_and_sees_what_the_report_has(reported, monkeypatch):
    monkeypatch.setenv("TAKD_ROOT", str(reported))
    monkeypatch.setenv("TAKD_STUDY", "tiny")
    notebook = nbformat.read(FOLDER / "cost_and_choice.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, kernel_name="python3").execute(cwd=str(FOLDER))
    seen = [(sorted(forms), figure) for forms, figure in outputs(json.loads(nbformat.writes(notebook)))]
    own = json.loads((reported / "tiny" / "report" / "cost_and_choice.ipynb").read_text())
    assert seen == [(sorted(forms), figure) for forms, figure in outputs(own)]


def test_a_cell_that_raises_is_named_and_the_environment_is_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("takd.analysis.execution.FOLDER", tmp_path)
    monkeypatch.setenv("TAKD_STUDY", "mine")
    cells = [
        {
            "cell_type": "code",
            "source": ["import os\n", "print(os.environ['TAKD_STUDY'])\n", "os.environ['TAKD_ROOT']"],
        },
        {"cell_type": "code", "source": ["1 / 0"]},
    ]
    for name, number in (("fine", 1), ("broken", 2)):
        (tmp_path / f"{name}.ipynb").write_text(json.dumps({"cells": cells[:number]}))
    printed, shown = execute("fine", "a root", "a,b")["cells"][0]["outputs"]
    assert (printed["text"], shown["data"]) == ("a,b\n", {"text/plain": "'a root'"})
    with pytest.raises(NotebookError, match=r"broken\.ipynb: ZeroDivisionError: division by zero"):
        execute("broken", "a root", "a,b")
    assert (os.environ["TAKD_STUDY"], "TAKD_ROOT" in os.environ) == ("mine", False)


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
    order = [
        text.index(f"\n## {each}\n") for each in ("The arms", "The questions", "Is the difference real?", "Methods")
    ]
    assert order == sorted(order)


def test_the_methods_paragraph_says_what_ran(report):
    """Of this study's space and stages, each number of it."""
    text = (report / "summary.md").read_text()
    [paragraph] = [line for line in text.splitlines() if line.startswith("We used the data set mnist")]
    for words in (
        "(50,000 training, 10,000 validation and 10,000 test images)",
        "assistant was mlp-16 (13,002 parameters)",
        "student was mlp-4 (3,210 parameters)",
        "tudents were trained for 3 epochs in batches of 256 with Adam (learning rate 0.01, ",
        "on a class-balanced transfer set of 200 training images",
        "T was one of 1 or 4 and lambda 0.7",
        "3 arms: labels, kd, takd:mlp-16",
        "6 configurations were chosen by Optuna's TPE sampler (seed 0), with 2 student seeds each",
        "There was no confirm phase",
    ):
        assert words in paragraph, words
    assert paragraph in (report / "report.html").read_text().replace("&gt;", ">")


# Several studies


def test_several_studies_make_one_report_with_a_block_each(reported):
    folder = reported / "tiny+again" / "report"
    text = (folder / "report.html").read_text()
    assert "<title>Studies tiny, again</title>" in text
    blocks = re.findall(r'<tr class="block"><th colspan="11">(\w+)</th></tr>', text)
    assert blocks == ["tiny", "again"]
    assert text.count("<details open><summary>tiny</summary>") == 2  # its questions and its differences
    table = pd.read_csv(folder / "arms.csv", keep_default_na=False)
    assert table["study"].tolist() == ["tiny"] * 3 + ["again"] * 3
    assert set(pd.read_csv(folder / "comparisons.csv")["study"]) == {"tiny", "again"}
    assert {file.stem for file in folder.glob("*.svg")} == {"accuracy_by_study", "gain_by_factor"}
    assert text.index('aria-label="accuracy by study"') < text.index("The highest mean") < text.index("<table")
    summary = (folder / "summary.md").read_text()
    assert "### tiny" in summary
    assert "### again" in summary
    printed = (reported / "printed").read_text()
    assert "study again\nThe highest mean" in printed
    assert f"report   {reported}/tiny+again/report/report.html" in printed


# The page


def test_the_page_fetches_nothing_and_runs_nothing(report):
    text = (report / "report.html").read_text()
    assert "<script" not in text
    assert "default-src 'none'" in text
    assert not re.findall(r"(?:src|href)=\"(?!#|data:)[^\"]*\"", text.replace('xlink:href="#', 'href="#'))
    order = ['aria-label="accuracy by assistant"', "The highest mean", "<table", "What does temperature do?", "<li>"]
    assert [text.index(each) for each in order] == sorted(text.index(each) for each in order)
    assert text.count('aria-label="accuracy by assistant"') == 1


def test_what_a_study_says_is_text_and_no_markup():
    evil = "<img src=x onerror=alert(1)>"
    table = table_html({evil: pd.DataFrame({evil: [evil]})})
    html = page(
        "<b>study</b>",
        None,
        {evil: ["<script>alert(1)</script>"]},
        ["<i>"],
        {evil: table, "front": markdown(f"| a |\n| --- |\n| {evil} |") + folded({evil: "", "b": ""})},
    )
    assert "<script>alert" not in html
    assert "<img" not in html
    assert "<b>study" not in html
    assert "<i>" not in html
    assert "<a " not in markdown("[click](javascript:alert(1)) <http://example.invalid>")


def test_a_warning_stands_out_from_the_finding():
    html = page("study", None, {"": ["The best is kd.", "Warning: the teacher <b> is at chance."]}, [], {})
    assert "<p>The best is kd.</p>" in html
    assert '<p class="warning">Warning: the teacher &lt;b&gt; is at chance.</p>' in html


def test_blocks_with_the_same_columns_are_one_table_and_an_interval_stays_on_its_line():
    same, other = pd.DataFrame({"a": ["1.0 (0.9 to 1.1)"]}), pd.DataFrame({"b": ["2"]})
    html = table_html({"first": same, "second": same, "third": other})
    assert html.count("<table") == html.count("</table>") == 2
    assert "<td>1.0 (0.9&nbsp;to&nbsp;1.1)</td>" in html
    assert folded({"": "<p>all</p>"}) == "<p>all</p>"
    assert folded(dict.fromkeys("ab", "")).count("<details open>") == 2


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
    picture, finding, table = (page.boxes[each] for each in (".opening figure", ".finding", "#arms .wide"))
    if width == 1300:
        assert picture.right < finding.left, "the finding stands beside the picture"
        assert table.scroll_width <= table.right - table.left + 1, "the table of arms is whole"
        assert picture.bottom < table.top < 1300
    else:
        assert picture.bottom <= finding.top, "the finding stands below the picture"
    assert finding.bottom < table.top


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
    assert main(["compare", "tiny", "again", "--root", str(reported)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"arm +tiny \(validation\) +again \(validation\)", out)
    [first, *_] = [line.split("  ") for line in out.splitlines() if line.startswith("takd:mlp-16")]
    assert len({cell for cell in map(str.strip, first) if "(" in cell}) == 1
    assert "validation numbers of the search" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["report", "nothing"], "study nothing: none below"),
        (["report", "../elsewhere"], "study ../elsewhere: expected letters"),
        (["report", "tiny", "tiny"], "report tiny tiny: each study is named once"),
        (["report", "tiny", "nothing"], "study nothing: none below"),
        (["report", *(f"{number}{'x' * 80}" for number in range(3))], "245 characters together; expected at most 200"),
        (["compare", "tiny", "nothing"], "study nothing: none below"),
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
    results = read_results(str(reported), "tiny,again")
    assert len(results.all_trials) == 2 * len(results.trials)
    assert results.all_trials["study"].unique().tolist() == ["tiny", "again"]
