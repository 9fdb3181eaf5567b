"""One page: a notebook and parameters -> the executed notebook."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError

from transfusion import config, provenance, records, store
from transfusion.experiments import plan
from transfusion.studies import grouping, kernel, params

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
    source = _source(name, parameters)  # of now: an edit while it is rendered is not on the page
    setting = {"study": study, "setting": parameters} if name in plan.CHAPTERS else parameters
    try:
        render(BOOK / f"{name}.ipynb", setting, executed(study, name))
    except papermill.PapermillExecutionError as error:
        print(error, file=sys.stderr)
        raise RuntimeError(f"{name}.ipynb failed: {error.ename}: {error.evalue}") from error
    except DeadKernelError as error:
        raise RuntimeError(f"{name}.ipynb failed: its kernel died (out of memory?)") from error
    stamp = {"stamp": _stamp(study, name, parameters, source)}
    stamp["page"] = store.checksum(executed(study, name))
    store.write_json(executed(study, name).with_suffix(".json"), stamp)


def checked_parameters(study: str, chapter: str) -> dict:
    """The parameters of a chapter; raises ValueError for those that it does not take."""
    found = params.knobs(study, chapter)
    if chapter not in plan.CHAPTERS:
        return require_declared(BOOK / f"{chapter}.ipynb", found)
    plan.require_own(chapter, found)
    plan.knobs_from(found)
    return found


def executed(study: str, chapter: str) -> Path:
    return BUILD / "executed" / study / f"{chapter}.ipynb"


def is_fresh(study: str, chapter: str) -> bool:
    """Whether the executed notebook is whole, and that of this source, parameters, library and
    results."""
    page, parameters = executed(study, chapter), checked_parameters(study, chapter)
    try:
        kept = json.loads(page.with_suffix(".json").read_text())
        whole = kept["page"] == store.checksum(page)
        expected = _stamp(study, chapter, parameters, _source(chapter, parameters))
        return whole and kept["stamp"] == expected
    except (OSError, ValueError, KeyError, TypeError):  # absent, a folder, cut, something else
        return False


def _source(chapter: str, parameters: dict) -> str:
    told = json.dumps([parameters, provenance.code()], sort_keys=True)
    return hashlib.sha256(told.encode() + (BOOK / f"{chapter}.ipynb").read_bytes()).hexdigest()


def _stamp(study: str, chapter: str, parameters: dict, source: str) -> str:
    shown = [(study, chapter)]
    if "studies" in parameters:  # a page that tells of all that they have collected
        shown = [(s, c) for s in parameters["studies"] for c in plan.CHAPTERS]
    results = [grouping.chapter_fingerprint(*place) for place in shown]
    results.append(records.digest(study))  # verdicts are corrected for what other chapters say
    return hashlib.sha256(json.dumps([results, source]).encode()).hexdigest()


def require_declared(notebook: Path, parameters: dict) -> dict:
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
    require_declared(notebook, parameters)
    with store.atomic(target) as temporary, kernel.alone() as alone:
        executed = papermill.execute_notebook(
            str(notebook),
            None,
            parameters,
            engine_name=ENGINE,
            kernel_name="python3",
            cwd=str(store.HOME),
            progress_bar=False,
            **alone,
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
    sync(path, f"{nbformat.writes(notebook)}\n".encode())


def before_saving(model: dict, path: str, contents_manager, **_) -> None:
    """JupyterLab's hook: notebooks of the book are stripped, others are saved as they are."""
    place = Path(contents_manager.root_dir, path.strip("/")).resolve()
    if model["type"] == "notebook" and place.parent == BOOK:
        strip(model["content"])


def sync(target: Path, content: bytes) -> None:
    """Write only what changed, so that Sphinx rebuilds only that."""
    if target.exists() and target.read_bytes() == content:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
