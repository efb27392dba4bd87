"""The notebooks of a report: which there are, and how `takd report` executes them: in this process, one after another.

A kernel of its own would cost each notebook the start of a process and the imports of all that it draws with. A cell is
plain Python, and what its last line gives is what it shows, as in Jupyter: the notebooks run there too.
"""

import ast
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from takd.search_spaces import InputError

FOLDER = Path(__file__).with_name("notebooks")
OF_ONE = ("gap_effect", "temperature_lambda", "cost_and_choice", "training_curves")  # of one study
OF_SEVERAL = ("by_size",)  # of several studies, or of one with several cells
NAMES = (*OF_ONE, *OF_SEVERAL)

Notebook = dict[str, Any]  # as nbformat 4 has it


class NotebookError(Exception):
    """A notebook's cell raised; the message is its last line."""


def execute(name: str, root: str, study: str) -> Notebook:
    """A notebook of NAMES with its outputs, executed on a study below a root (an absolute path or a URI).

    Of several studies, names with commas between.
    """
    notebook: Notebook = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    variables: dict[str, Any] = {"__name__": "__main__"}
    with _environment(TAKD_ROOT=root, TAKD_STUDY=study):
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        for number, cell in enumerate(cells, 1):
            cell["execution_count"] = number
            cell["outputs"] = list(_run("".join(cell["source"]), variables, f"{name}.ipynb", number))
    return notebook


@contextmanager
def _environment(**given: str) -> Iterator[None]:
    """Variables that notebooks read, as they were before when it ends."""
    before = {name: os.environ.pop(name, None) for name in (*given, "TAKD_CELL")}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ |= {} if value is None else {name: value}


def _run(source: str, variables: dict[str, Any], name: str, number: int) -> Iterator[Notebook]:
    """The outputs of one cell: what it printed, then what its last line gives."""
    printed = StringIO()
    try:
        with redirect_stdout(printed):
            value = _value(ast.parse(source), variables, f"{name}, cell {number}")
            shown = None if value is None else _forms(value)
    except InputError:
        raise  # of the study's own tables: one line, as everywhere
    except Exception as error:
        raise NotebookError(f"{name}: {type(error).__name__}: {error}") from error
    if printed.getvalue():
        yield {"output_type": "stream", "name": "stdout", "text": printed.getvalue()}
    if shown:
        data, metadata = shown
        yield {"output_type": "execute_result", "execution_count": number, "data": data, "metadata": metadata}


def _value(cell: ast.Module, variables: dict[str, Any], place: str) -> Any:
    """Of the cell's last line, where that is an expression."""
    last = cell.body.pop() if cell.body and isinstance(cell.body[-1], ast.Expr) else None
    exec(compile(cell, place, "exec"), variables)
    return eval(compile(ast.Expression(last.value), place, "eval"), variables) if isinstance(last, ast.Expr) else None


def _forms(value: Any) -> tuple[dict[str, str], dict[str, Any]]:
    if hasattr(value, "_repr_mimebundle_"):
        data, metadata = value._repr_mimebundle_()
        return dict(data), dict(metadata)
    return {"text/plain": repr(value)}, {}


def written(notebook: Notebook) -> bytes:
    """An executed notebook as a file."""
    return (json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode()


def outputs(notebook: Notebook) -> Iterator[tuple[dict[str, str], str | None]]:
    """What a reader sees, in order: the forms of each Markdown cell or output, and a figure's name."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            yield {"text/markdown": "".join(cell["source"])}, None
            continue
        for output in cell["outputs"]:
            if "data" in output:
                yield output["data"], output["metadata"].get("figure")
