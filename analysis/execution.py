"""The notebooks of a report: which there are, and how `takd report` executes them. Needs the extra `report`."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

FOLDER = Path(__file__).with_name("notebooks")
NAMES = ("gap_effect", "temperature_lambda", "cost_and_choice", "training_curves")
CELL_SECONDS = 300


class NotebookError(Exception):
    """A notebook's cell raised; the message is its last line."""


def execute(name: str, root: str, study: str) -> Any:
    """A notebook of NAMES, executed on a study below a root (an absolute path or a URI), as nbformat has it."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        # Sockets that this user alone can open; by default they are ports.
        config = Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"})
        place = {"metadata": {"path": str(FOLDER)}}
        client = NotebookClient(notebook, timeout=CELL_SECONDS, kernel_name="python3", resources=place, config=config)
        try:
            client.execute(env=os.environ | {"TAKD_ROOT": root, "TAKD_STUDY": study})
        except CellExecutionError as error:
            raise NotebookError(f"{name}.ipynb: {error.ename}: {error.evalue}") from error
    return notebook


def outputs(notebook: Any) -> Iterator[tuple[dict[str, str], str | None]]:
    """What a reader sees, in order: the forms of each Markdown cell or output, and a figure's name."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            yield {"text/markdown": cell.source}, None
            continue
        for output in cell.outputs:
            if "data" in output:
                yield output.data, output.metadata.get("figure")
