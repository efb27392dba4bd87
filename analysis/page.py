"""The report as one page: no script, no request, light and dark, on paper too. Needs the extra `report`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from markdown_it import MarkdownIt

from takd.analysis.figures import INK
from takd.analysis.teachers import WARNING

STYLE = Path(__file__).with_name("page.css")
# Nothing on the page may be fetched or run, also where a study's own words would ask for it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
LONG = 50  # characters from which a cell may break into lines
_markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["image", "link", "autolink"])

Output = tuple[Mapping[str, str], str | None]  # the forms of an output, and a figure's name


def page(title: str, finding: Sequence[str], note: str, front: str, sections: Mapping[str, Iterable[Output]]) -> str:
    """HTML. `front` is Markdown; `sections` are the outputs of notebooks by their names."""
    parts = {name: section(name, shown) for name, shown in sections.items()}
    links = "".join(f'<a href="#{name}">{escape(_heading(html, name))}</a>' for name, html in parts.items())
    sentences = "".join(_sentence(each) for each in finding)
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
<div class="finding">{sentences}</div>
<p class="note">{escape(note)}</p>
<nav>{links}</nav>
</header>
<main>
{markdown(front)}
{"".join(parts.values())}
</main>
</body>
</html>
"""


def _sentence(text: str) -> str:
    kind = ' class="warning"' if text.startswith(WARNING) else ""
    return f"<p{kind}>{escape(text)}</p>"


def section(name: str, shown: Iterable[Output]) -> str:
    """What a notebook shows, one after the other."""
    return f'<section id="{name}">\n' + "\n".join(_html(forms, figure) for forms, figure in shown) + "\n</section>\n"


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


def inline_svg(svg: str) -> str:
    """The element alone, its ink the page's."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(INK, "var(--ink)", svg, flags=re.IGNORECASE)


def _heading(html: str, otherwise: str) -> str:
    found = re.search(r"<h2>(.*?)</h2>", html)
    return found[1] if found else otherwise
