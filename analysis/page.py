"""The report as one page: no script, no request, light and dark, on paper too. Needs the extra `report`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import pandas as pd
from markdown_it import MarkdownIt

from takd.analysis.figures import INK
from takd.analysis.teachers import WARNING

STYLE = Path(__file__).with_name("page.css")
# Nothing on the page may be fetched or run, also where a study's own words would ask for it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
LONG = 50  # characters from which a cell may break into lines
FEW = 3  # blocks that are answered in words; of more each question is a table
_markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["image", "link", "autolink"])

Output = tuple[Mapping[str, str], str | None]  # the forms of an output, and a figure's name


def page(
    title: str,
    picture: Output | None,
    finding: Mapping[str, Sequence[str]],
    note: Sequence[str],
    sections: Mapping[str, str],
) -> str:
    """HTML that opens with a picture and the finding beside it.

    `finding` has sentences by what they are of, "" where that is the whole page; `sections` are HTML by their ids, in
    order, each with a heading.
    """
    links = "".join(f'<a href="#{escape(name)}">{_heading(html, name)}</a>' for name, html in sections.items())
    shown = "".join(_found(of, sentences) for of, sentences in finding.items())
    notes = "".join(f'<p class="note">{escape(each)}</p>' for each in note)
    parts = "".join(f'<section id="{escape(name)}">\n{html}\n</section>\n' for name, html in sections.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
{STYLE.read_text()}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<div class="opening">
{_html(*picture) if picture else ""}
<div class="finding">{shown}</div>
</div>
{notes}
<nav>{links}</nav>
</header>
<main>
{parts}
</main>
</body>
</html>
"""


def _found(of: str, sentences: Sequence[str]) -> str:
    return (f"<h2>{escape(of)}</h2>" if of else "") + "".join(map(_sentence, sentences))


def _sentence(text: str) -> str:
    kind = ' class="warning"' if text.startswith(WARNING) else ""
    return f"<p{kind}>{escape(text)}</p>"


def outputs_html(shown: Iterable[Output], at_the_top: str | None = None) -> str:
    """What a notebook shows, one after the other; the page's own picture only as a word that leads to it."""
    return "\n".join(
        '<p class="note"><a href="#">This figure is at the top of the page.</a></p>'
        if figure is not None and figure == at_the_top
        else _html(forms, figure)
        for forms, figure in shown
    )


def _html(forms: Mapping[str, str], figure: str | None) -> str:
    if "image/svg+xml" in forms:
        label = escape((figure or "figure").replace("_", " "))
        return f'<figure role="img" aria-label="{label}">{inline_svg(forms["image/svg+xml"])}</figure>'
    if "text/markdown" in forms:
        return markdown(forms["text/markdown"])
    return f"<pre>{escape(forms.get('text/plain', ''))}</pre>"


def markdown(text: str) -> str:
    """As HTML, one level of headings down; tables in a box that scrolls by itself. Raw HTML in it stays text."""
    html = str(_markdown.render(text))
    html = re.sub(r"(</?h)([1-5])>", lambda tag: f"{tag[1]}{int(tag[2]) + 1}>", html)
    html = re.sub(rf"<td>(?=[^<]{{{LONG},}})", '<td class="long">', html)
    return html.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")


def table_html(blocks: Mapping[str, pd.DataFrame]) -> str:
    """Tables of text with the same columns as one, each below a line with its name; "" has none.

    Where columns differ a new table begins. Words in brackets stay on one line, all else may break.
    """
    parts: list[str] = []
    columns: list[str] | None = None
    for name, table in blocks.items():
        if columns != list(table.columns):
            parts += ["</table></div>"] if parts else []
            columns = list(table.columns)
            header = "".join(f"<th>{escape(column)}</th>" for column in columns)
            parts.append(f'<div class="wide"><table class="arms">\n<thead><tr>{header}</tr></thead>')
        heading = f'<tr class="block"><th colspan="{len(columns)}">{escape(name)}</th></tr>' if name else ""
        rows = [f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.itertuples(index=False)]
        parts.append(f"<tbody>{heading}{''.join(rows)}</tbody>")
    return "\n".join([*parts, "</table></div>"]) if parts else ""


def _cell(value: object) -> str:
    return f"<td>{re.sub(r'[(][^()]*[)]', lambda words: words[0].replace(' ', '&nbsp;'), escape(str(value)))}</td>"


def folded(blocks: Mapping[str, str]) -> str:
    """HTML by name, one below the other; each closes when its name is clicked."""
    if set(blocks) == {""}:
        return blocks[""]
    return "\n".join(
        f"<details open><summary>{escape(name)}</summary>\n{html}\n</details>" for name, html in blocks.items()
    )


def inline_svg(svg: str) -> str:
    """The element alone, its ink the page's."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(INK, "var(--ink)", svg, flags=re.IGNORECASE)


def _heading(html: str, otherwise: str) -> str:
    found = re.search(r"<h2>(.*?)</h2>", html)
    return found[1] if found else escape(otherwise)
