import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from unittest import mock

import nbformat
import papermill
import pytest
import yaml
from transfusion.experiments import plan
from transfusion.pages import build
from transfusion.studies import params, render

from ..conftest import ROOT, cells

BOOK = ROOT / "book"
NOTEBOOKS = sorted(BOOK.glob("*.ipynb"))


@pytest.fixture
def notebook(tmp_path):
    """A notebook of one parameters cell and one more."""

    def make(source):
        book = nbformat.v4.new_notebook()
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "p", "language": "python"}
        parameters = nbformat.v4.new_code_cell(
            "steps: int = 3  # steps\nlr: float = 0.1\nx: dict = {}"
        )
        parameters.metadata["tags"] = ["parameters"]
        book.cells = [parameters, nbformat.v4.new_code_cell(source)]
        nbformat.write(book, tmp_path / "a.ipynb")
        return tmp_path / "a.ipynb"

    return make


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_clean(path):
    book = json.loads(path.read_text())
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code) == 1
    assert set(book["metadata"]) == {"kernelspec"}
    assert len(code) <= 12 and not any("def " in "".join(cell["source"]) for cell in code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_has_a_caption_and_a_page_speaks_of_its_own(path):
    shown = [cell["metadata"].get("mystnb", {}) for cell in cells(path)]
    figures = {one["figure"]["name"]: one["figure"]["caption"] for one in shown if "figure" in one}
    assert all(len(caption) > 40 for caption in figures.values())
    text = "".join("".join(c["source"]) for c in cells(path) if c["cell_type"] == "markdown")
    assert set(re.findall(r"\{numref\}`([\w-]+)`", text)) <= set(figures)
    assert all(one["image"]["alt"] for one in shown if "image" in one)


@pytest.mark.parametrize("study", params.studies())
def test_every_study_has_what_its_chapters_ask_for_and_no_more(study):
    for chapter in params.chapters(study):
        assert render.checked_parameters(study, chapter)["study"] == study


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_of_the_quick_study_and_says_no_knob_twice(path):
    (source,) = ["".join(c["source"]) for c in cells(path) if c["id"] == "parameters"]
    defaults: dict = {}
    exec(source, defaults)
    said = {name: value for name, value in defaults.items() if name[0] != "_"}
    own = params.knobs("quick", path.stem)
    expected = {"study": "quick", "setting": {}} if path.stem in plan.CHAPTERS else own
    assert said == expected


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"step": 3}, "unknown parameter of a.ipynb 'step'; possible: .*Did you mean 'steps'"),
        ({"steps": "3"}, "steps is a int, got '3'"),
        ({"steps": 3.5}, "steps is a int"),
        ({"steps": True}, "steps is a int"),
        ({"lr": "1e-3"}, "lr is a float"),
        ({"x": [1]}, "x is a dict"),
    ],
)
def test_bad_parameters_stop_before_anything_runs(notebook, tmp_path, parameters, message):
    with pytest.raises(ValueError, match=message):
        render.render(notebook("print(steps)"), parameters, tmp_path / "out.ipynb")
    assert not (tmp_path / "out.ipynb").exists()


def test_a_failed_notebook_never_reaches_the_book(notebook, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="division by zero"):
        render.render(notebook("1 / 0"), {}, tmp_path / "out.ipynb")
    assert not (tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("1 / 0", "a.ipynb failed: ZeroDivisionError: division by zero"),
        ("import os; os._exit(9)", "a.ipynb failed: its kernel died"),
    ],
)
def test_a_failure_is_one_line_and_a_log(notebook, monkeypatch, tmp_path, capsys, source, message):
    monkeypatch.setattr(render, "BOOK", notebook(source).parent)
    monkeypatch.setattr(render, "BUILD", tmp_path)
    monkeypatch.setattr(params, "knobs", lambda *_: {})
    with pytest.raises(RuntimeError, match=message):
        render.chapter("smoke", "a")
    assert ("1 / 0" in capsys.readouterr().err) == (source == "1 / 0")
    assert not render.executed("smoke", "a").exists()


def test_two_executions_give_the_same_bytes(notebook, tmp_path):
    source = "import holoviews as hv; hv.extension('bokeh', logo=False); hv.Curve([steps, 2])"
    path = notebook(source)
    for name in ("one", "two"):
        render.render(path, {"steps": 5}, tmp_path / f"{name}.ipynb")
    one, two = ((tmp_path / f"{name}.ipynb").read_bytes() for name in ("one", "two"))
    assert one == two and b"bokeh" in one


def test_tidy_keeps_results_and_hides_the_injected_cell(notebook, tmp_path):
    render.render(notebook("print('noise')\nsteps"), {"steps": 7}, tmp_path / "out.ipynb")
    injected = cells(tmp_path / "out.ipynb")[1]
    last = cells(tmp_path / "out.ipynb")[-1]
    assert injected["id"] == "injected-parameters"
    assert "remove-cell" in injected["metadata"]["tags"]
    assert [output["data"]["text/plain"] for output in last["outputs"]] == [["7"]]


def test_relabel_makes_a_second_page():
    book = nbformat.v4.new_notebook()
    title = nbformat.v4.new_markdown_cell("# A claim\n\nSee {numref}`fig-a`.")
    figure = nbformat.v4.new_code_cell("# 1", metadata={"mystnb": {"figure": {"name": "fig-a"}}})
    book.cells = [title, figure]
    build.relabel(build.entitle(book, "retina"), "retina")
    assert book.cells[0].source == "# A claim (real retinas)\n\nSee {numref}`fig-a-retina`."
    assert book.cells[1].source == "# 1"
    assert book.cells[1].metadata.mystnb.figure.name == "fig-a-retina"


def test_every_page_of_the_contents_exists():
    contents = yaml.safe_load((BOOK / "_toc.yml").read_text())
    for part in contents["parts"]:
        for entry in part["chapters"]:
            name = entry["file"].rpartition("/")[2]
            there = (BOOK / f"{entry['file']}.md").exists() or (BOOK / f"{name}.ipynb").exists()
            assert there, entry


def test_offline_extension_refuses_another_version():
    code = (
        "import sys; sys.path.insert(0, 'book/_ext'); import offline_bokeh as o\n"
        "body = 'src=\"https://cdn.bokeh.org/bokeh/release/bokeh-0.1.0.min.js\"'\n"
        "o.localise(None, 'page', None, {'body': body, 'pathto': None}, None)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "executed with another Bokeh" in found.stderr


def test_a_page_of_text_may_be_called_like_a_chapter():
    """guide/performance.md is no chapter of a study named guide."""
    pages = build._pages("smoke")
    assert pages["performance"] == ("smoke", "performance")
    assert pages["cells/performance"] == ("cells", "performance")
    assert not [page for page in pages if page.startswith("guide")]


@pytest.fixture
def without_build(tmp_path, monkeypatch):
    """Staging alone; the front page is there, no other."""
    monkeypatch.setattr(render, "BUILD", tmp_path / "_build")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: mock.Mock(returncode=0))
    front = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title")])
    render.executed("smoke", "intro").parent.mkdir(parents=True)
    nbformat.write(front, render.executed("smoke", "intro"))
    return tmp_path / "_build/site"


@pytest.mark.parametrize(
    ("page", "study", "count"), [("performance", "smoke", 16), ("cells/performance", "cells", 93)]
)
def test_a_page_that_waits_for_trainings_says_so(cache, without_build, page, study, count):
    build.book("smoke")
    title, words = nbformat.read(without_build / f"{page}.ipynb", 4).cells
    assert title.source.startswith("# Does transfer change the final AUC")
    assert f"({params.TITLES.get(study, study)})" in title.source
    assert f"transfusion run {study} --chapter performance" in words.source
    assert f"Still to come: 0 of {count} trainings, comparisons and baselines" in words.source


def test_a_page_that_fails_is_named_after_the_others_were_rendered(tmp_path, monkeypatch):
    monkeypatch.setattr(render, "BUILD", tmp_path)
    monkeypatch.setattr(render, "is_fresh", lambda study, chapter: chapter == "fresh")
    asked = []

    def started(command, **options):
        asked.append(command[-1])
        return mock.Mock(wait=lambda: command[-1] == "broken")

    monkeypatch.setattr(subprocess, "Popen", started)
    with pytest.raises(RuntimeError, match=r"smoke broken \(log: .*broken.log\)"):
        build.render_all([("smoke", name) for name in ("broken", "whole", "fresh")])
    assert sorted(asked) == ["broken", "whole"]


def test_a_page_that_was_left_out_leaves_the_staged_book(without_build):
    old = without_build / "old.md"
    old.parent.mkdir(parents=True)
    old.write_text("# An old page")
    build.book("smoke")
    assert not old.exists() and (without_build / "scope.md").exists()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_saving_a_notebook_that_was_only_run_changes_no_byte(path, tmp_path):
    book = nbformat.read(path, as_version=4)
    book.metadata["language_info"] = {"name": "python", "version": "3.13"}
    book.metadata["kernelspec"]["display_name"] = "Another"
    for cell in book.cells:
        cell.metadata["collapsed"] = True
        if cell.cell_type == "code":
            cell.outputs = [nbformat.v4.new_output("stream", text="trained")]
            cell.execution_count = 7
    model = {"type": "notebook", "content": book}
    manager = mock.Mock(root_dir=str(BOOK))
    render.before_saving(model, path.name, manager)
    assert f"{nbformat.writes(book)}\n".encode() == path.read_bytes()
    executed = tmp_path / path.name
    shutil.copy(path, executed)
    render.strip_file(executed)
    assert executed.read_bytes() == path.read_bytes()


def test_other_notebooks_are_saved_as_they_are(tmp_path):
    cell = nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("stream", text="1")])
    book = nbformat.v4.new_notebook(cells=[cell])
    model = {"type": "notebook", "content": book}
    render.before_saving(model, "mine.ipynb", mock.Mock(root_dir=str(tmp_path)))
    assert cell.outputs


def test_the_book_as_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(render, "BUILD", tmp_path)
    for name in ("index.html", "retina/performance.html"):
        (tmp_path / "html" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "html" / name).write_text(name)
    first = build.zipped().read_bytes()
    os.utime(tmp_path / "html/index.html", (0, 0))
    assert build.zipped().read_bytes() == first
    with zipfile.ZipFile(tmp_path / "transfusion-book.zip") as file:
        assert file.read("transfusion-book/retina/performance.html") == b"retina/performance.html"
        assert {name.split("/")[0] for name in file.namelist()} == {"transfusion-book"}
    assert {path.name for path in tmp_path.iterdir()} == {"html", "transfusion-book.zip"}


def test_launch_buttons_are_there_only_where_a_repository_is_named(monkeypatch):
    monkeypatch.delenv("TRANSFUSION_REPOSITORY", raising=False)
    assert build._settings() == (BOOK / "_config.yml").read_bytes()
    monkeypatch.setenv("TRANSFUSION_REPOSITORY", "https://example.org/a/book")
    settings = yaml.safe_load(build._settings())
    assert settings["repository"]["url"] == "https://example.org/a/book"
    assert "binderhub_url" in settings["launch_buttons"]
