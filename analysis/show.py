"""What a notebook's cell ends with: a figure as PNG and SVG, a table or a sentence as Markdown, or what is missing."""

import base64
from collections.abc import Callable
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from takd.analysis.figures import image
from takd.analysis.tables import Missing

Bundle = tuple[dict[str, str], dict[str, Any]]


class Shown:
    """A figure, in the two forms that pages and papers want, under the name of the function that made it."""

    def __init__(self, figure: Figure, name: str) -> None:
        self.figure, self.name = figure, name

    def _repr_mimebundle_(self, **_: Any) -> Bundle:
        forms = {
            "image/svg+xml": image(self.figure, "svg").decode(),
            "image/png": base64.b64encode(image(self.figure, "png")).decode(),
            "text/plain": f"figure {self.name}",
        }
        return forms, {"figure": self.name}


class Said:
    """Text, as Markdown."""

    def __init__(self, text: str) -> None:
        self.text = text

    def _repr_mimebundle_(self, **_: Any) -> Bundle:
        return {"text/markdown": self.text, "text/plain": self.text}, {}


def show(make: Callable[..., Figure | pd.DataFrame | str], *given: Any) -> Shown | Said:
    """What a function of `analysis` makes of these tables, or the sentence that says what they lack."""
    try:
        made = make(*given)
    except Missing as missing:
        return Said(f"*Missing: {missing}*")
    if isinstance(made, Figure):
        return Shown(made, make.__name__)
    return Said(made if isinstance(made, str) else markdown_table(made))


def markdown_table(table: pd.DataFrame) -> str:
    """Cells as they are, numbers aligned right."""
    if not len(table):
        return "*Missing: there is nothing to put into this table yet.*"
    numeric = [pd.api.types.is_numeric_dtype(table[name]) for name in table.columns]
    lines = [[str(name) for name in table.columns], ["---:" if number else "---" for number in numeric]]
    lines += [[_cell(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "-" if pd.isna(value) else f"{value:,.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")
