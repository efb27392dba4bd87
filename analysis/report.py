"""The report of one study or several as files: page, summary, tables, figures, notebooks. Needs the extra `report`."""

import base64
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from takd.analysis.arms import arms_table, budget_note, comparison_table, comparisons, cost_table, page_table
from takd.analysis.evidence.chosen import arms_note, chosen_students, note, unit_of
from takd.analysis.execution import OF_ONE, OF_SEVERAL, execute, outputs, written
from takd.analysis.files import Results, image_counts, read_results, read_space
from takd.analysis.finding import answers, choice, finding
from takd.analysis.gap import main_factor
from takd.analysis.methods import methods
from takd.analysis.over_cells import LEGEND, questions_over, verdicts_over
from takd.analysis.page import FEW, Output, folded, markdown, outputs_html, page, table_html
from takd.analysis.show import markdown_table
from takd.analysis.tables import Missing, blocks_of, remembering


def method(trials: pd.DataFrame) -> str:
    """How the numbers were judged."""
    unit = unit_of(trials)
    return (
        f"Means are over {unit}s. Intervals are of 95 % and cover {unit}s and test images, by the variance sum of "
        "crossed random effects; those of accuracies stay between 0 and 100 %. Differences are paired by "
        f"{unit}. Their p is of the same variance, corrected for all comparisons of the study by Holm's method. Effect "
        "sizes are Hedges' g of the paired differences. An arm is called as good as another where the interval of "
        "their difference lies within the space's `smallest_effect`, and as good as the best by Hsu's multiple "
        "comparisons with the best; where the space names no such effect nobody is. FLOPs are of training: three "
        "forward passes a step."
    )


# The picture that the page of one study opens with. That of several, or of one with factors, is what assistants add to
# kd, or where they have none, or nothing but names tells studies apart, the accuracy, over the factor with most values.
PICTURE, GAIN = "accuracy_by_assistant", "gain_by_factor"
PICTURES = {
    "student.model": "accuracy_by_student",
    "teacher.model": "accuracy_by_teacher",
    "examples": "accuracy_by_examples",
    "study": "accuracy_by_study",
}


def report_files(root: str, names: Sequence[str]) -> dict[str, bytes]:
    """By name the files of a report on one study, or on several side by side.

    Raises InputError where one has no results, NotebookError from a cell.
    """
    with remembering():
        return _files(root, ",".join(names))


def _files(root: str, names: str) -> dict[str, bytes]:
    results = read_results(root, names)
    blocks = blocks_of(results.all_trials)
    notebooks = OF_ONE if len(blocks) == 1 else OF_SEVERAL
    executed = {name: execute(name, root, names) for name in notebooks}
    shown = {name: list(outputs(notebook)) for name, notebook in executed.items()}
    files = {f"{name}.ipynb": written(notebook) for name, notebook in executed.items()}
    figures = {figure: forms for each in shown.values() for forms, figure in each if figure}
    for name, forms in figures.items():
        files |= {f"{name}.svg": forms["image/svg+xml"].encode(), f"{name}.png": base64.b64decode(forms["image/png"])}
    text = Words(results, blocks)
    files["summary.md"] = text.summary().encode()
    files["arms.csv"] = _joined(text.studies, arms_table).to_csv(index=False).encode()
    files["comparisons.csv"] = _joined(text.studies, comparisons).to_csv(index=False).encode()
    files["report.html"] = _page(text, figures, shown).encode()
    return files


def _joined(studies: Mapping[str, pd.DataFrame], table: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """The table of each study below each other; where there are several the first column says of which."""
    parts = [table(rows).assign(study=name) for name, rows in studies.items() if len(chosen_students(rows))]
    if not parts:
        return table(next(iter(studies.values())))
    joined = pd.concat(parts, ignore_index=True)
    return joined if len(studies) > 1 else joined.drop(columns="study")


class Words:
    """What a report says, for the page and the summary: of the whole, of each study, of each of its blocks."""

    def __init__(self, results: Results, blocks: Mapping[str, pd.DataFrame]) -> None:
        self.results, self.blocks = results, blocks
        every = results.all_trials
        several = len(results.names) > 1
        self.studies = {name: every[every["study"] == name] if several else every for name in results.names}
        self.names = results.names
        self.there = {name: rows for name, rows in blocks.items() if len(chosen_students(rows))}

    @property
    def title(self) -> str:
        return f"Stud{'y' if len(self.names) == 1 else 'ies'} {', '.join(self.names)}"

    def of_studies(self, say: Callable[[str, pd.DataFrame], str]) -> dict[str, str]:
        """Of each study, by its name; "" where there is one."""
        return {name if len(self.names) > 1 else "": say(name, rows) for name, rows in self.studies.items()}

    def of_blocks(self, say: Callable[[pd.DataFrame], str]) -> dict[str, str]:
        return {name: say(rows) for name, rows in self.there.items()}

    def finding(self) -> dict[str, list[str]]:
        return {name if len(self.names) > 1 else "": finding(rows) for name, rows in self.studies.items()}

    def notes(self) -> list[str]:
        """What the numbers are; what is true of all studies once."""
        by_note: dict[str, list[str]] = {}
        for name, rows in self.studies.items():
            by_note.setdefault(note(rows), []).append(name)
        return [f"{', '.join(names)}: {text}" if len(by_note) > 1 else text for text, names in by_note.items()]

    def about_arms(self) -> str:
        return "\n\n".join(_labelled(self.of_studies(lambda _, rows: arms_note(rows))))

    def judged(self) -> str:
        return "\n\n".join(_labelled(self.of_studies(lambda _, rows: method(rows))))

    def budgets(self) -> str:
        return "\n\n".join(_labelled(self.of_blocks(budget_note)))

    def questions(self, rows: pd.DataFrame, marks: str) -> str:
        return "\n\n".join(f"{marks} {question}\n\n{answer}" for question, answer in answers(rows))

    def verdicts(self, rows: pd.DataFrame) -> str:
        """Of a block; Holm's correction is for all comparisons of its study."""
        compared = comparisons(self.studies[rows["study"].iloc[0]])
        if "cell" in rows:
            compared = compared[compared["cell"] == rows["cell"].iloc[0]]
        return "\n".join(f"- {verdict}" for verdict in compared["verdict"]) or "*Missing: there is one arm so far.*"

    def all_questions(self) -> str:
        """HTML: answers in words, of many blocks as tables with a row a block."""
        if len(self.there) <= FEW:
            return folded(self.of_blocks(lambda rows: markdown(self.questions(rows, "##"))))
        parts = [markdown(LEGEND)]
        for question, answer in questions_over(self.studies, self.there).items():
            parts += [
                markdown(f"## {question}"),
                markdown(answer) if isinstance(answer, str) else table_html({"": answer}),
            ]
        return "\n".join(parts)

    def all_verdicts(self) -> str:
        """HTML, likewise."""
        if len(self.there) <= FEW:
            return folded(self.of_blocks(lambda rows: markdown(self.verdicts(rows))))
        return table_html({"": verdicts_over(self.studies, self.there)}) + markdown(LEGEND)

    def methods(self) -> dict[str, str]:
        def of(name: str, rows: pd.DataFrame) -> str:
            root = self.results.root
            keys = rows.loc[rows["status"] == "done", "stage_key"].iloc[:1]
            images = image_counts(root, keys.iloc[0]) if len(keys) else {}
            return methods(read_space(root, name), rows, images)

        return self.of_studies(of)

    def summary(self) -> str:
        """For a paper's appendix: the page's words and tables as Markdown."""
        said = _labelled({name: " ".join(sentences) for name, sentences in self.finding().items()})
        parts = [f"# {self.title}", *said, *self.notes()]
        if self.there:
            parts += [
                "## The arms",
                *_below(self.of_blocks(lambda rows: markdown_table(page_table(rows)))),
                self.about_arms(),
            ]
            parts += [self.budgets(), "## The questions"]
            parts += _below(
                self.of_blocks(lambda rows: self.questions(rows, "###" if len(self.there) == 1 else "####"))
            )
            parts += ["## Is the difference real?", *_below(self.of_blocks(self.verdicts))]
            parts += ["## Methods", *_labelled(self.methods()), self.judged(), "## Every comparison"]
            parts += _below(self.of_blocks(_table_or_missing(comparison_table)))
            parts += ["## Cost", *_below(self.of_blocks(_cost))]
        return "\n\n".join(parts) + "\n"


def _cost(rows: pd.DataFrame) -> str:
    try:
        return f"{markdown_table(cost_table(rows))}\n\n{choice(rows)}"
    except Missing as missing:
        return f"*Missing: {missing}*"


def _table_or_missing(table: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[pd.DataFrame], str]:
    def text(rows: pd.DataFrame) -> str:
        try:
            return markdown_table(table(rows))
        except Missing as missing:
            return f"*Missing: {missing}*"

    return text


def _labelled(texts: Mapping[str, str]) -> list[str]:
    """Paragraphs, each with what it is of; those that are alike once."""
    alike: dict[str, list[str]] = {}
    for name, text in texts.items():
        alike.setdefault(text, []).append(name)
    return [
        f"**{', '.join(names)}**: {text}" if any(names) and len(alike) > 1 else text for text, names in alike.items()
    ]


def _below(texts: Mapping[str, str]) -> list[str]:
    """Below a heading each, where there are several."""
    return [part for name, text in texts.items() for part in ([f"### {name}", text] if name else [text])]


def _page(text: Words, figures: Mapping[str, Mapping[str, str]], shown: Mapping[str, Sequence[Output]]) -> str:
    name = PICTURE
    if len(text.blocks) > 1:
        main = _main(text.results)
        name = GAIN if GAIN in figures and main != "study" else PICTURES.get(main or "", "")
    sections: dict[str, str] = {}
    if text.there:
        arms = table_html({name: page_table(rows) for name, rows in text.there.items()})
        sections["arms"] = markdown("# The arms") + arms + markdown(f"{text.about_arms()}\n\n{text.budgets()}")
        sections["questions"] = markdown("# The questions") + text.all_questions()
        sections["differences"] = markdown("# Is the difference real?") + text.all_verdicts()
        told = "\n\n".join([*_labelled(text.methods()), text.judged()])
        sections["methods"] = markdown(f"# Methods, in words for a paper\n\n{told}")
    sections |= {each: outputs_html(outputs, name) for each, outputs in shown.items()}
    picture = (figures[name], name) if name in figures else None
    return page(text.title, picture, text.finding(), text.notes(), sections)


def _main(results: Results) -> str | None:
    try:
        return main_factor(results.all_trials)
    except Missing:
        return None
