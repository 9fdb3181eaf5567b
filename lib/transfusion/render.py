"""Notebook and parameters -> executed notebook -> book."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import papermill
import yaml
from filelock import FileLock
from nbclient.exceptions import DeadKernelError
from tqdm import tqdm

from transfusion import config, experiments, machine, records, store, studies

BOOK = store.HOME / "book"
ENGINE = None  # of papermill: its own, a kernel for each notebook
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
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
RANDOM_ID = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|\b[0-9a-f]{32}\b"
)


def chapter(study: str, name: str) -> None:
    """Render a chapter of a study, and stamp the page with all that it was made of.

    Raises ValueError for unknown names or parameters, RuntimeError if a cell fails.
    """
    parameters = checked_parameters(study, name)
    try:
        render(BOOK / f"{name}.ipynb", parameters, executed(study, name))
    except papermill.PapermillExecutionError as error:
        print(error, file=sys.stderr)
        raise RuntimeError(f"{name}.ipynb failed: {error.ename}: {error.evalue}") from error
    except DeadKernelError as error:
        raise RuntimeError(f"{name}.ipynb failed: its kernel died (out of memory?)") from error
    stamp = _stamp(study, name, parameters)
    store.write_json(executed(study, name).with_suffix(".json"), {"stamp": stamp})


def checked_parameters(study: str, chapter: str) -> dict:
    """The parameters of a chapter, if its notebook has them; raises ValueError as `checked`."""
    return checked(BOOK / f"{chapter}.ipynb", studies.parameters(study, chapter))


def executed(study: str, chapter: str) -> Path:
    return BUILD / "executed" / study / f"{chapter}.ipynb"


def is_fresh(study: str, chapter: str) -> bool:
    """Whether the executed notebook is that of this source, parameters, library and results."""
    try:
        kept = json.loads(executed(study, chapter).with_suffix(".json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return executed(study, chapter).exists() and kept["stamp"] == _stamp(
        study, chapter, checked_parameters(study, chapter)
    )


def _stamp(study: str, chapter: str, parameters: dict) -> str:
    shown = [(study, chapter)]
    if "studies" in parameters:  # a page that tells of all that they have collected
        shown = [(s, c) for s in parameters["studies"] for c in experiments.CHAPTERS]
    results = [studies.fingerprint(*place) for place in shown]
    results.append(records.digest(study))  # verdicts are corrected for what other chapters say
    told = json.dumps([parameters, results, store.code()], sort_keys=True)
    return hashlib.sha256(told.encode() + (BOOK / f"{chapter}.ipynb").read_bytes()).hexdigest()


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
            engine_name=ENGINE,
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


def strip(notebook: dict) -> None:
    """Without what an execution or an editor leaves: a notebook as git has it."""
    notebook["metadata"] = {"kernelspec": KERNEL}
    for cell in notebook["cells"]:
        cell["metadata"] = {n: v for n, v in cell["metadata"].items() if n in ("mystnb", "tags")}
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None


def strip_file(path: Path) -> None:
    """The same in place, in the form in which JupyterLab saves."""
    notebook = nbformat.read(path, as_version=4)
    strip(notebook)
    _sync(path, f"{nbformat.writes(notebook)}\n".encode())


def before_saving(model: dict, path: str, contents_manager, **_) -> None:
    """JupyterLab's hook: notebooks of the book are stripped, others are saved as they are."""
    place = Path(contents_manager.root_dir, path.strip("/")).resolve()
    if model["type"] == "notebook" and place.parent == BOOK:
        strip(model["content"])


def entitle(notebook: nbformat.NotebookNode, study: str) -> nbformat.NotebookNode:
    """Say in the title what the page's images are, since other pages have the same claim."""
    first = notebook.cells[0]
    images = studies.TITLES.get(study, study)
    first.source = re.sub(r"^(# .+)$", rf"\1 ({images})", first.source, count=1, flags=re.M)
    return notebook


def relabel(notebook: nbformat.NotebookNode, study: str) -> nbformat.NotebookNode:
    """The same chapter as a page of a second study: figure names get its name, and links to
    chapters that only the main study has lead out of its folder."""
    outside = "|".join(experiments.WITHOUT_RUNS)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"(\{numref\}`)([\w-]+)`", rf"\1\2-{study}`", cell.source)
            cell.source = re.sub(rf"\]\(({outside})\.ipynb\)", r"](../\1.ipynb)", text)
        figure = cell.metadata.get("mystnb", {}).get("figure")
        if figure:
            figure["name"] = f"{figure['name']}-{study}"
    return notebook


# --- the book --------------------------------------------------------------------------------


def book(main: str = "quick") -> Path:
    """Render the chapters whose results are there, and build them into a book with its own pages.

    Of a chapter that waits for results the page says that it is still to come. Returns index.html.
    Raises RuntimeError if a page fails or the build warns.
    """
    config.one_of(main, studies.studies(), "study")
    BUILD.mkdir(parents=True, exist_ok=True)
    with FileLock(BUILD / ".lock"):  # two calls would build in one folder
        return _book(_pages(main), main)


def _book(pages: dict[str, tuple[str, str]], main: str) -> Path:
    chapters([place for place in pages.values() if studies.is_collected(*place)])
    site = BUILD / "site"
    staged = {path.relative_to(BOOK): path.read_bytes() for path in _sources()}
    for page, place in pages.items():
        staged[Path(f"{page}.ipynb")] = _page(*place, main).encode()
    staged[Path("_config.yml")] = _settings()
    for path, content in staged.items():
        _sync(site / path, content)
    for path in site.rglob("*"):  # a page that was renamed or left out
        if path.is_file() and path.relative_to(site) not in staged:
            path.unlink()
    _build(site)
    return BUILD / "html" / "index.html"


def chapters(places: list[tuple[str, str]], jobs: int | None = None) -> None:
    """Render those of these chapters (study, name) that are not as they should be, one process a
    core; raises RuntimeError for those that fail, after the rest."""
    stale = [place for place in places if not is_fresh(*place)]
    machine.one_thread()
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        ended = tqdm(pool.map(_render_apart, stale), "pages", len(stale), disable=not stale)
        failed = [line for line in ended if line]
    if failed:
        raise RuntimeError("\n  ".join(["pages that could not be rendered:", *failed]))


def _render_apart(place: tuple[str, str]) -> str:
    """Render a chapter in a process of its own; where it failed, a line that says so."""
    log = executed(*place).with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "transfusion", "chapter", *place]
    own = os.environ | {"TRANSFUSION_BUILD": str(BUILD.parent)}
    with log.open("w") as output:
        code = subprocess.run(command, env=own, stdout=output, stderr=output).returncode
    return f"{' '.join(place)} (log: {log})" if code else ""


def _to_come(study: str, chapter: str) -> nbformat.NotebookNode:
    """A page that waits for its trainings: what it asks, how many there are, and the command."""
    notebook = nbformat.read(BOOK / f"{chapter}.ipynb", as_version=4)
    asked = list(studies.everything(studies.specs(study, chapter)))
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
    target, html = BUILD / "transfusion-book.zip", BUILD / "html"
    with store.atomic(target) as temporary, zipfile.ZipFile(temporary, "w") as file:
        for path in sorted(path for path in html.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(f"transfusion-book/{path.relative_to(html).as_posix()}")
            entry.external_attr = 0o644 << 16  # else nobody may read what is unpacked
            file.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return target


def _settings() -> bytes:
    """Those of the book, as they stand; or with launch buttons on pages whose notebook is in git,
    where TRANSFUSION_REPOSITORY is the address of a public repository on GitHub."""
    text = (BOOK / "_config.yml").read_bytes()
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
    command = [str(jupyter_book), "build", str(site), "--keep-going", "-W", "-n"]
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


def _pages(main: str) -> dict[str, tuple[str, str]]:
    """Page -> study and chapter, for every notebook of the table of contents."""
    contents = yaml.safe_load((BOOK / "_toc.yml").read_text())
    files = [contents["root"]]
    files += [entry["file"] for part in contents["parts"] for entry in part["chapters"]]
    pages = {}
    for file in files:
        folder, _, chapter = file.rpartition("/")
        if (BOOK / f"{chapter}.ipynb").exists() and not (BOOK / f"{file}.md").exists():
            pages[file] = (folder or main, chapter)
    return pages


def _sources() -> list[Path]:
    kinds = (".md", ".yml", ".csv", ".py", ".css", ".js", ".svg", ".png")
    paths = (p for p in BOOK.rglob("*") if p.suffix in kinds and p.is_file())
    out = {"__pycache__", ".ipynb_checkpoints"}
    return [p for p in paths if not p.is_relative_to(BUILD) and not out & {*p.parts}]


def _page(study: str, chapter: str, main: str) -> str:
    place = executed(study, chapter)
    there = place.exists() and studies.is_collected(study, chapter)  # not one of older results
    notebook = nbformat.read(place, as_version=4) if there else _to_come(study, chapter)
    if chapter not in experiments.WITHOUT_RUNS:
        entitle(notebook, study)
    return nbformat.writes(notebook if study == main else relabel(notebook, study))


def _sync(target: Path, content: bytes) -> None:
    """Write only what changed, so that Sphinx rebuilds only that."""
    if target.exists() and target.read_bytes() == content:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
