"""The whole way once: the smallest study, from the command to a built book without network."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transfusion import store
from transfusion.studies import params, render, status

from .conftest import ROOT, transfusion

OUTSIDE = re.compile(r"""(?:<script[^>]+src|<link[^>]+href|<img[^>]+src)=["'](https?:)?//""")


def test_every_chapter_is_executed(pages, monkeypatch):
    for chapter in params.chapters("smoke"):
        assert render.executed("smoke", chapter).exists()
    monkeypatch.setenv("TRANSFUSION_CACHE", pages["TRANSFUSION_CACHE"])
    there = status.status("smoke")
    assert (there.drop(index="all")["collected"] == "yes").all()
    assert (there["missing"] == 0).all() and there.loc["all", "done"] > 50


def test_a_second_call_leaves_everything_alone(smoke):
    before = {c: render.executed("smoke", c).stat().st_mtime_ns for c in ("data", "performance")}
    assert transfusion(smoke, "run", "smoke").returncode == 0
    after = {c: render.executed("smoke", c).stat().st_mtime_ns for c in ("data", "performance")}
    assert before == after


FILES = [f"params/smoke/{name}.yml" for name in ("common", "performance")]


@pytest.mark.parametrize("options", [["-p", "study", "smoke"], ["-f", FILES[0], "-f", FILES[1]]])
def test_plain_papermill_gives_the_same_page(smoke, tmp_path, options):
    out = str(tmp_path / "out.ipynb")
    command = [sys.executable, "-m", "papermill", "book/performance.ipynb", out, *options]
    found = subprocess.run(command, cwd=ROOT, env=smoke, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    ours = json.loads(render.executed("smoke", "performance").read_text())["cells"]
    plain = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    for name in ("verdict", "table", "gains", "small", "footer"):
        one, other = (next(c for c in page if c["id"] == name) for page in (ours, plain))
        assert one["outputs"][0]["data"]["text/html"] == other["outputs"][0]["data"]["text/html"]


def test_the_book_is_built_and_needs_no_network(pages):
    """With pages of studies that are still to come: nothing at all is warned of."""
    found = transfusion(pages, "book", "--study", "smoke")
    assert found.returncode == 0, found.stderr
    assert "WARNING" not in (render.BUILD / "build.log").read_text()
    check_pages({"intro.html", "performance.html", "data.html", "cells/performance.html"})


def check_pages(expected):
    """Of the book that was just built: none asks the network, none is heavy."""
    pages = sorted((render.BUILD / "html").rglob("*.html"))
    assert expected <= {str(page.relative_to(render.BUILD / "html")) for page in pages}
    for page in pages:
        text = page.read_text()
        assert not OUTSIDE.search(text), page
        assert "cdn.bokeh.org" not in text and "cdn.holoviz.org" not in text, page
        assert len(text) < 1_500_000, page


def test_pages_of_records_need_neither_runs_nor_torch(smoke, no_torch, tmp_path):
    """As those of the studies in git."""
    kept = Path(smoke["TRANSFUSION_CACHE"], "results", "smoke")
    shutil.copytree(kept, tmp_path / "cache/results/smoke")
    places = {"TRANSFUSION_CACHE": str(tmp_path / "cache"), "TRANSFUSION_BUILD": str(tmp_path)}
    chapters = ["performance", "efficiency", "intro"]
    found = transfusion(smoke | places | no_torch, "chapter", "smoke", *chapters)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "_build/executed/smoke/performance.ipynb").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "quik"], "unknown study 'quik'; possible: .*Did you mean 'quick'"),
        (["run", "smoke", "--chapter", "performence"], "Did you mean 'performance'"),
        (["data", "mine", "--from", "nowhere", "--size", "32"], "no folder nowhere"),
        (["weights", "resnet50", "--from", "none.pth"], "no weights at none.pth"),
        (["weights", "resnet5"], "unknown model 'resnet5'"),
    ],
)
def test_errors_are_one_clear_line(cache, arguments, message):
    found = transfusion({**os.environ, "TRANSFUSION_CACHE": str(cache)}, *arguments)
    assert found.returncode == 1
    assert re.match(f"transfusion: .*{message}", found.stderr), found.stderr
    assert "Traceback" not in found.stderr


def test_a_read_only_cache_is_told_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    environment = {**os.environ, "TRANSFUSION_CACHE": str(tmp_path / "file")}
    found = transfusion(environment, "run", "smoke", "--chapter", "performance")
    assert found.returncode == 1 and "cannot write results" in found.stderr
    assert store.results_path("a", "b").name == "b.zarr"
