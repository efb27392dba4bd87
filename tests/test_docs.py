"""What README and docs/ promise: they are short, link to what is there, and use the words that they explain."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from takd.search_spaces import load_space

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
MOST_LINES = 280  # of the README
# Words of the code that a reader of these pages need not know.
WORDS_INSIDE = re.compile(r"\b(path uses?|proposals?|proposed|settings?|path s)\b", re.IGNORECASE)


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_words_are_the_fields_or_explained(page):
    text = re.sub(r"`[^`\n]*`", "", page.read_text())  # names of the code are what they are
    assert WORDS_INSIDE.findall(text) == []


def test_links_of_the_readme_lead_somewhere():
    for link in re.findall(r"\]\((?!https?://)([^)]+)\)", README.read_text()):
        file, _, anchor = link.partition("#")
        assert (ROOT / file).exists(), link
        if anchor:
            assert anchor in anchors(ROOT / file), link


def anchors(page: Path) -> set[str]:
    """Of the headings of a page, as GitHub and the site name them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_a_space_in_the_readme_is_one(tmp_path):
    [text, _] = re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "mine.yaml").write_text(text)
    assert len(text.splitlines()) == 5
    assert load_space(str(tmp_path / "mine.yaml"), ["student.recipe.epochs=5"]).trials == 20


def build(project: Path, folder: Path) -> "subprocess.CompletedProcess[str]":
    """As `make docs` does. Not with `--quiet`: then MkDocs counts no warning, and `strict` finds nothing."""
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The documentation, in which a dead link or a page without a place in the menu is an error."""
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT, folder)
    assert built.returncode == 0, built.stderr
    return folder


def test_what_is_dead_or_lonely_is_an_error(tmp_path):
    """Each by itself: a strict build ends with an error where it has warned of anything."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    with (tmp_path / "docs" / "data.md").open("a") as file:
        file.write("\n[gone](nowhere.md) [gone](spaces.md#nowhere)\n")
    (tmp_path / "docs" / "lonely.md").write_text("In no menu.")
    built = build(tmp_path, tmp_path / "site")
    assert built.returncode != 0
    warnings = re.findall(r"^WARNING.*(?:\n(?![A-Z]+ +-).*)*", built.stderr, re.MULTILINE)
    for words in ("'nowhere.md'", "'spaces.md#nowhere'", "lonely.md"):
        assert any(words in warning for warning in warnings), (words, built.stderr)


def test_the_site_has_every_page(site):
    assert {page.stem for page in PAGES} <= {file.stem for file in site.glob("*.html")}


def test_the_site_fetches_nothing(site):
    loaded = re.compile(r"<(?:script|img|iframe)[^>]*\ssrc=\"?https?:|<link[^>]*rel=\"?stylesheet[^>]*href=\"?https?:")
    assert [file.name for file in site.glob("*.html") if loaded.search(file.read_text())] == []
