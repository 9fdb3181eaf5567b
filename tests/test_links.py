"""Links from pages of text and notebooks to files and headings of the repository."""

import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from mdit_py_plugins.anchors import anchors_plugin

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
PLACES = ("*.md", "params/*.md", "data_cache/*.md", "book/*.md", "book/*.ipynb", "book/[!_]*/*.md")
MARKDOWN = MarkdownIt().enable("table").use(anchors_plugin, max_level=6)


def markdown(page):
    if page.suffix != ".ipynb":
        return page.read_text()
    cells = json.loads(page.read_text())["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def links(page):
    for token in MARKDOWN.parse(markdown(page)):
        for part in [token, *(token.children or [])]:
            yield from (part.attrs[name] for name in ("href", "src") if name in part.attrs)
            if part.type.startswith("html"):
                yield from re.findall(r'(?:href|src)="([^"]+)"', part.content)


def anchors(page):
    """Those of its headings, and MyST's `(name)=`."""
    ids = {token.attrs["id"] for token in MARKDOWN.parse(markdown(page)) if "id" in token.attrs}
    return ids | set(re.findall(r"^\((.+)\)=$", markdown(page), re.M))


def broken(page, link, book=BOOK):
    """What is wrong with a link; as in MyST, `/` is the book, and a page needs no suffix."""
    name, _, anchor = unquote(link).partition("#")
    target = (book / name[1:] if name[0] == "/" else page.parent / name) if name else page
    if page.is_relative_to(book) and not target.exists():
        target = target.with_name(f"{target.name}.md")
    if not target.exists():
        return "no such file"
    return "no such heading" if anchor and anchor not in anchors(target) else None


@pytest.mark.parametrize("page", [path for place in PLACES for path in sorted(ROOT.glob(place))])
def test_links_within_the_repository_lead_somewhere(page):
    inner = [link for link in links(page) if not re.match(r"\w+:", link)]
    assert {link: wrong for link in inner if (wrong := broken(page, link))} == {}


@pytest.mark.parametrize(
    ("link", "wrong"),
    [
        ("page.md#a-code-heading", None),
        ("/scope.md#here", None),
        ("scope#here", None),
        ("#a-code-heading", None),
        ("none.png", "no such file"),
        ("/guide/none.md", "no such file"),
        ("#here", "no such heading"),
        ("scope.md#a-code-heading", "no such heading"),
    ],
)
def test_a_link_that_leads_nowhere_is_found(tmp_path, link, wrong):
    (tmp_path / "scope.md").write_text("(here)=\n# Scope")
    page = tmp_path / "page.md"
    page.write_text(f"# A `code` heading\n\n[text]({link})")
    assert [*links(page)] == [link]
    assert broken(page, link, book=tmp_path) == wrong


def test_links_are_found_in_text_tables_html_and_notebooks_but_not_in_code(tmp_path):
    text = (
        '[a](b) ![c](d)\n\n| |\n| - |\n| [e](f) |\n\n<img src="g">\n\n`[h](i)`\n\n[j][k]\n\n[k]: l'
    )
    cells = [{"cell_type": kind, "source": [text]} for kind in ("markdown", "code")]
    (tmp_path / "a.md").write_text(text)
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells}))
    for page in tmp_path.glob("a.*"):
        assert [*links(page)] == ["b", "d", "f", "g", "l"]
