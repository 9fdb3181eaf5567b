"""Notebook and parameters -> executed notebook -> book."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import papermill
import yaml
from tqdm import tqdm

from transfusion import config, experiments, schedule, store

BOOK = store.HOME / "book"
FRONT = "intro"
# The variable TRANSFUSION_BUILD moves what is built out of the checkout.
BUILD = Path(os.environ.get("TRANSFUSION_BUILD") or BOOK).resolve() / "_build"
LITERALS: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "bool": bool,
    "list": list,
    "dict": dict,
}
RANDOM_ID = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|\b[0-9a-f]{32}\b"
)


def study(
    name: str,
    only: list[str] | None = None,
    *,
    jobs: int | None = None,
    collected: bool = False,
) -> None:
    """Compute what a study misses, then render its chapters; what is up to date is left alone.

    With `collected`, chapters whose results are not all there are left out instead.
    Raises ValueError for unknown names or parameters before anything is computed.
    """
    config.one_of(name, experiments.studies(), "study")
    chapters = only or experiments.chapters(name)
    parameters = {
        c: checked(BOOK / f"{c}.ipynb", experiments.parameters(name, c)) for c in chapters
    }
    stale = [c for c in chapters if not _fresh(name, c, parameters[c])]
    needed = {c: experiments.runs(c, **parameters[c]) for c in stale}
    if collected:
        stale = [c for c in stale if experiments.is_collected(name, c, needed[c])]
    wanted = [c for c in stale if not experiments.is_collected(name, c, needed[c])]
    schedule.compute([spec for c in wanted for spec in needed[c]], jobs=jobs)
    with ThreadPoolExecutor(2) as pool:  # each notebook is a process of its own
        tasks = [pool.submit(_chapter, name, c, parameters[c]) for c in stale if c != FRONT]
        for task in tqdm(tasks, f"{name}: chapters", unit="page", disable=None):
            task.result()
    if FRONT in chapters and not _fresh(name, FRONT, parameters[FRONT]):
        _chapter(name, FRONT, parameters[FRONT])  # it shows what the others have just collected


def _chapter(study: str, chapter: str, parameters: dict) -> None:
    log = executed(study, chapter).with_suffix(".log")
    try:
        render(BOOK / f"{chapter}.ipynb", parameters, executed(study, chapter))
    except papermill.PapermillExecutionError as error:
        log.write_text(str(error))
        short = f"{chapter}.ipynb failed: {error.ename}: {error.evalue} (log: {log})"
        raise RuntimeError(short) from error
    stamp = _stamp(study, chapter, parameters)
    store.write_json(executed(study, chapter).with_suffix(".json"), {"stamp": stamp})


def executed(study: str, chapter: str) -> Path:
    return BUILD / "executed" / study / f"{chapter}.ipynb"


def _fresh(study: str, chapter: str, parameters: dict) -> bool:
    """Whether the executed notebook is that of this source, parameters, library and results."""
    try:
        kept = json.loads(executed(study, chapter).with_suffix(".json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return executed(study, chapter).exists() and kept["stamp"] == _stamp(study, chapter, parameters)


def _stamp(study: str, chapter: str, parameters: dict) -> str:
    shown = [(study, chapter)]
    if chapter == FRONT:
        shown = [(s, c) for s in parameters["studies"] for c in experiments.CHAPTERS]
    results = [_checksum(*place) for place in shown]
    digest = hashlib.sha256(json.dumps([parameters, results], sort_keys=True).encode())
    library = sorted(Path(__file__).parent.glob("*.*"))
    for path in [BOOK / f"{chapter}.ipynb", *(p for p in library if p.suffix in (".py", ".csv"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _checksum(study: str, chapter: str) -> str:
    try:
        return store.checksum(store.open(study, chapter))
    except (FileNotFoundError, store.Damaged):
        return "none"


def checked(notebook: Path, parameters: dict) -> dict:
    """The parameters, if the notebook declares each with that type; papermill would only warn.

    Raises ValueError naming the parameter, what came, and what is possible.
    """
    declared = papermill.inspect_notebook(str(notebook))
    for name, value in parameters.items():
        config.one_of(name, declared, f"parameter of {notebook.name}")
        expected = LITERALS.get(declared[name]["inferred_type_name"].split("[")[0])
        if value is None or expected is None:
            continue
        wrong = isinstance(value, bool) and expected is not bool
        if wrong or not isinstance(value, expected):
            kind = declared[name]["inferred_type_name"]
            raise ValueError(f"{notebook.name}: {name} is a {kind}, got {value!r}")
    return parameters


def render(notebook: Path, parameters: dict, target: Path) -> None:
    """Execute a notebook; `target` appears only if every cell ran.

    Raises papermill.PapermillExecutionError with the cell's own traceback.
    """
    checked(notebook, parameters)
    with store.atomic(target) as temporary:
        executed = papermill.execute_notebook(
            str(notebook),
            None,
            parameters,
            kernel_name="python3",
            cwd=str(store.HOME),
            progress_bar=False,
        )
        nbformat.write(tidy(executed), temporary)


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without timings, empty outputs and random ids: two executions give the same bytes."""
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" in tags:
            cell.id, tags = "injected-parameters", [*tags, "remove-cell"]
        kept = {n: v for n, v in cell.metadata.items() if n == "mystnb"}
        cell.metadata = {**kept, "tags": tags} if tags else kept
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if _shows(o)]
    text = nbformat.writes(notebook)
    ids: dict[str, str] = {}
    for found in RANDOM_ID.findall(text):
        ids.setdefault(found, f"{len(ids) + 1:0{len(found)}d}")
    return nbformat.reads(RANDOM_ID.sub(lambda m: ids[m.group()], text), as_version=4)


def _shows(output: nbformat.NotebookNode) -> bool:
    """Results only: no progress bars or log lines, and not HoloViews' empty first output."""
    return output.output_type != "stream" and bool(output.get("data"))


def relabel(notebook: nbformat.NotebookNode, study: str) -> nbformat.NotebookNode:
    """The same chapter as a page of a second study: title and figure names get its name, and links
    to chapters that only the main study has lead out of its folder."""
    outside = "|".join(experiments.WITHOUT_RUNS)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"(\{numref\}`)([\w-]+)`", rf"\1\2-{study}`", cell.source)
            text = re.sub(rf"\]\(({outside})\.ipynb\)", r"](../\1.ipynb)", text)
            cell.source = re.sub(r"^(# .+)$", rf"\1 ({study})", text, count=1, flags=re.M)
        figure = cell.metadata.get("mystnb", {}).get("figure")
        if figure:
            figure["name"] = f"{figure['name']}-{study}"
    return notebook


# --- the book --------------------------------------------------------------------------------


def book(main: str = "quick") -> Path:
    """Stage the executed chapters beside the book's own pages and build it; returns index.html.

    Raises ValueError if a chapter of the table of contents was not rendered, RuntimeError if the
    build warns.
    """
    config.one_of(main, experiments.studies(), "study")
    site = BUILD / "site"
    staged = {path.relative_to(BOOK): path.read_bytes() for path in _sources()}
    for page, (study, chapter) in _pages(main).items():
        staged[Path(f"{page}.ipynb")] = _page(study, chapter, main).encode()
    for path, content in staged.items():
        _sync(site / path, content)
    for path in site.rglob("*"):  # a page that was renamed or left out
        if path.is_file() and path.relative_to(site) not in staged:
            path.unlink()
    jupyter_book = Path(sys.executable).parent / "jupyter-book"
    command = [str(jupyter_book), "build", str(site), "-W", "-n", "--keep-going"]
    log = BUILD / "build.log"
    with log.open("w") as output:
        code = subprocess.run(
            [*command, "--path-output", str(BUILD.parent)], stdout=output, stderr=subprocess.STDOUT
        ).returncode
    if code:
        lines = [line for line in log.read_text().splitlines() if re.search("WARNING|ERROR", line)]
        raise RuntimeError(
            "the book was not built:\n  " + "\n  ".join(lines[:10]) + f"\n(log: {log})"
        )
    return BUILD / "html" / "index.html"


def _pages(main: str) -> dict[str, tuple[str, str]]:
    """Page -> study and chapter, for every notebook of the table of contents."""
    contents = yaml.safe_load((BOOK / "_toc.yml").read_text())
    files = [contents["root"]]
    files += [entry["file"] for part in contents["parts"] for entry in part["chapters"]]
    pages, missing = {}, []
    for file in files:
        folder, _, chapter = file.rpartition("/")
        if (BOOK / f"{chapter}.ipynb").exists() and not (BOOK / f"{file}.md").exists():
            pages[file] = (folder or main, chapter)
            if not executed(*pages[file]).exists():
                missing.append(f"transfusion run {folder or main} --chapter {chapter}")
    if missing:
        raise ValueError("chapters of the book are not rendered; first:\n  " + "\n  ".join(missing))
    return pages


def _sources() -> list[Path]:
    kinds = (".md", ".yml", ".bib", ".csv", ".py", ".css", ".svg", ".png")
    paths = (p for p in BOOK.rglob("*") if p.suffix in kinds and p.is_file())
    return [p for p in paths if not p.is_relative_to(BUILD) and "__pycache__" not in p.parts]


def _page(study: str, chapter: str, main: str) -> str:
    notebook = nbformat.read(executed(study, chapter), as_version=4)
    return nbformat.writes(notebook if study == main else relabel(notebook, study))


def _sync(target: Path, content: bytes) -> None:
    """Write only what changed, so that Sphinx rebuilds only that."""
    if target.exists() and target.read_bytes() == content:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
