"""Serve the files of Bokeh and Panel from the book itself, so that its figures need no network.

An executed notebook names these files by their public addresses. Each is replaced, page by page,
by a copy of the installed package's own file, at a path relative to the page. Thebe, which runs
cells on a server, is left out.
"""

import re
import shutil
from functools import partial
from pathlib import Path

import bokeh
import panel

BOKEH, PANEL = re.escape(bokeh.__version__), re.escape(panel.__version__)
# folder in _static: address of a file, and where the package has it
PACKAGES = {
    "bokeh": (
        rf"https://cdn\.bokeh\.org/bokeh/release/(bokeh[-a-z]*)-{BOKEH}(\.min\.js)",
        Path(bokeh.__file__).parent / "server/static/js",
    ),
    "panel": (
        rf"https://cdn\.holoviz\.org/panel/{PANEL}/dist/([^\"'?\\\s]+)",
        Path(panel.__file__).parent / "dist",
    ),
}
LEFT_OVER = re.compile(r"https://cdn\.(?:bokeh|holoviz)\.org/[^\"'\\\s]{0,80}")


def _copy(app, pathto, folder, source, match):
    """Put one file into the book; returns its address as seen from the page."""
    name = "".join(match.groups())
    target = Path(app.outdir, "_static", folder, name)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / name, target)
    return pathto(f"_static/{folder}/{name}", True)


def localise(app, page, template, context, doctree):
    """Rewrite one page; raises RuntimeError if it wants another version than the installed one."""
    body = context.get("body") or ""
    for folder, (address, source) in PACKAGES.items():
        body = re.sub(address, partial(_copy, app, context["pathto"], folder, source), body)
    if others := sorted(set(LEFT_OVER.findall(body))):
        raise RuntimeError(f"{page} was executed with another Bokeh or Panel: {', '.join(others)}")
    context["body"] = body


def without_thebe(app, page, template, context, doctree):
    """Jupyter Book always loads it, twice, which is an error in each page's console."""
    kept = [s for s in context.get("script_files", []) if not _of_thebe(s)]
    context["script_files"] = kept


def _of_thebe(script):
    words = str(getattr(script, "filename", script)) + str(getattr(script, "attributes", ""))
    return "thebe" in words.lower()


def setup(app):
    # After myst-nb has filled in the outputs.
    app.connect("html-page-context", localise, priority=900)
    app.connect("html-page-context", without_thebe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
