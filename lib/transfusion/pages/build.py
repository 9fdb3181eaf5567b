"""The book: pages of what results are there, contents, and Jupyter Book's build of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import nbformat
import yaml
from tqdm import tqdm

from transfusion import config, files, machine, records, store
from transfusion.experiments import plan
from transfusion.studies import collected, grouping, params, render


def entitle(notebook: nbformat.NotebookNode, study: str) -> nbformat.NotebookNode:
    """Say in the title what the page's images are, since other pages have the same claim."""
    first = notebook.cells[0]
    images = params.TITLES.get(study, study)
    first.source = re.sub(r"^(# .+)$", rf"\1 ({images})", first.source, count=1, flags=re.M)
    return notebook


def relabel(notebook: nbformat.NotebookNode, study: str) -> nbformat.NotebookNode:
    """The same chapter as a page of a second study: figure names get its name, and links to
    chapters that only the main study has lead out of its folder."""
    outside = "|".join(plan.WITHOUT_RUNS)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"(\{numref\}`)([\w-]+)`", rf"\1\2-{study}`", cell.source)
            cell.source = re.sub(rf"\]\(({outside})\.ipynb\)", r"](../\1.ipynb)", text)
        figure = cell.metadata.get("mystnb", {}).get("figure")
        if figure:
            figure["name"] = f"{figure['name']}-{study}"
    return notebook


def book(main: str = "quick") -> Path:
    """Render the chapters whose results are there, and build them into a book with its own pages.

    Of a chapter that waits for results the page says that it is still to come. Returns index.html.
    Raises RuntimeError if a page fails or the build warns.
    """
    config.one_of(main, params.studies(), "study")
    render.BUILD.mkdir(parents=True, exist_ok=True)
    with files.locked(render.BUILD / ".lock"):  # two calls would build in one folder
        return _book(_pages(main), main)


def _book(pages: dict[str, tuple[str, str]], main: str) -> Path:
    render_all([place for place in pages.values() if collected.is_collected(*place)])
    site = render.BUILD / "site"
    staged = {path.relative_to(render.BOOK): path.read_bytes() for path in _sources()}
    for page, place in pages.items():
        staged[Path(f"{page}.ipynb")] = _page(*place, main).encode()
    staged[Path("_config.yml")] = _settings()
    for path, content in staged.items():
        render.sync(site / path, content)
    for path in site.rglob("*"):  # a page that was renamed or left out
        if path.is_file() and path.relative_to(site) not in staged:
            path.unlink()
    _build(site)
    return render.BUILD / "html" / "index.html"


def render_all(places: list[tuple[str, str]], jobs: int | None = None) -> None:
    """Render those of these chapters (study, name) that are not as they should be, one process a
    core; raises RuntimeError for those that fail, after the rest."""
    stale = [place for place in places if not render.is_fresh(*place)]
    machine.one_thread()
    started: list[subprocess.Popen] = []
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        try:
            ends = pool.map(partial(_render_apart, started), stale)
            failed = [line for line in tqdm(ends, "pages", len(stale), disable=not stale) if line]
        except BaseException:  # Ctrl-C: the rest is not begun, what runs is not waited for
            pool.shutdown(wait=False, cancel_futures=True)
            for process in started:
                process.kill()
            raise
    if failed:
        raise RuntimeError("\n  ".join(["pages that could not be rendered:", *failed]))


def _render_apart(started: list[subprocess.Popen], place: tuple[str, str]) -> str:
    """Render a chapter in a process of its own, one of those started; where it failed, a line that
    says so."""
    log = render.executed(*place).with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = machine.bound("transfusion", "chapter", *place)
    own = os.environ | {"TRANSFUSION_BUILD": str(render.BUILD.parent)}
    with log.open("w") as output:
        process = subprocess.Popen(command, env=own, stdout=output, stderr=output)
        started.append(process)
        code = process.wait()
    return f"{' '.join(place)} (log: {log})" if code else ""


def _to_come(study: str, chapter: str) -> nbformat.NotebookNode:
    """A page that waits for its trainings: what it asks, how many there are, and the command."""
    notebook = nbformat.read(render.BOOK / f"{chapter}.ipynb", as_version=4)
    asked = list(grouping.everything(params.specs(study, chapter)))
    there = len(records.recorded(study, asked))
    words = (
        f"Still to come: {there} of {len(asked)} trainings, comparisons and baselines are there.\n"
        f"`transfusion run {study} --chapter {chapter}` computes the rest; "
        f"`transfusion plan {study}` says how long that takes.\n"
    )
    notebook.cells = [notebook.cells[0], nbformat.v4.new_markdown_cell(words, id="to-come")]
    return notebook


def zipped() -> Path:
    """The built book as one file to pass on; the same pages give the same bytes."""
    target, html = render.BUILD / "transfusion-book.zip", render.BUILD / "html"
    with store.atomic(target) as temporary, zipfile.ZipFile(temporary, "w") as file:
        for path in sorted(path for path in html.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(f"transfusion-book/{path.relative_to(html).as_posix()}")
            entry.external_attr = 0o644 << 16  # else nobody may read what is unpacked
            file.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return target


def _settings() -> bytes:
    """Those of the book, as they stand; or with launch buttons on pages whose notebook is in git,
    where TRANSFUSION_REPOSITORY is the address of a public repository on GitHub."""
    text = (render.BOOK / "_config.yml").read_bytes()
    address = os.environ.get("TRANSFUSION_REPOSITORY")
    if not address:
        return text
    settings = yaml.safe_load(text)
    settings["repository"] = {"url": address, "branch": "main", "path_to_book": "book"}
    settings["launch_buttons"] = {
        "binderhub_url": "https://mybinder.org",
        "colab_url": "https://colab.research.google.com",
        "notebook_interface": "jupyterlab",
    }
    settings["sphinx"]["local_extensions"]["launch_sources"] = "_ext/"
    return yaml.safe_dump(settings).encode()


def _build(site: Path) -> None:
    """Let Jupyter Book build; a warning is an error."""
    jupyter_book = Path(sys.executable).parent / "jupyter-book"
    command = machine.bound(str(jupyter_book), "build", str(site), "--keep-going", "-W", "-n")
    log = render.BUILD / "build.log"
    with log.open("w") as output:
        code = subprocess.run(
            [*command, "--path-output", str(render.BUILD.parent)],
            stdout=output,
            stderr=subprocess.STDOUT,
        ).returncode
    if code:
        lines = [line for line in log.read_text().splitlines() if re.search("WARNING|ERROR", line)]
        raise RuntimeError(
            "the book was not built:\n  " + "\n  ".join(lines[:10]) + f"\n(log: {log})"
        )


def _pages(main: str) -> dict[str, tuple[str, str]]:
    """Page -> study and chapter, for every notebook of the table of contents."""
    contents = yaml.safe_load((render.BOOK / "_toc.yml").read_text())
    files = [contents["root"]]
    files += [entry["file"] for part in contents["parts"] for entry in part["chapters"]]
    pages = {}
    for file in files:
        folder, _, chapter = file.rpartition("/")
        if (render.BOOK / f"{chapter}.ipynb").exists() and not (
            render.BOOK / f"{file}.md"
        ).exists():
            pages[file] = (folder or main, chapter)
    return pages


def _sources() -> list[Path]:
    kinds = (".md", ".yml", ".csv", ".py", ".css", ".js", ".svg", ".png")
    paths = (p for p in render.BOOK.rglob("*") if p.suffix in kinds and p.is_file())
    out = {"__pycache__", ".ipynb_checkpoints"}
    return [p for p in paths if not p.is_relative_to(render.BUILD) and not out & {*p.parts}]


def _page(study: str, chapter: str, main: str) -> str:
    place = render.executed(study, chapter)
    there = place.exists() and collected.is_collected(study, chapter)  # not one of older results
    notebook = nbformat.read(place, as_version=4) if there else _to_come(study, chapter)
    if chapter not in plan.WITHOUT_RUNS:
        entitle(notebook, study)
    return nbformat.writes(notebook if study == main else relabel(notebook, study))
