"""How figures look, on a page of any width, light or dark."""

from __future__ import annotations

import textwrap
from itertools import pairwise

import holoviews as hv
import numpy as np
import pandas as pd
import xarray as xr
from bokeh.themes import Theme
from holoviews import opts

from transfusion import terms

FEW = 3  # series at most are named beside their marks, more in a legend: names need room
# The ground is the page's, light or dark, and a page may filter what is drawn on it.
LOOK = Theme(
    json={
        "attrs": {
            "Plot": {
                "background_fill_color": None,
                "border_fill_color": None,
                "outline_line_color": None,
                "styles": {"filter": "var(--figure-filter, none)"},
            },
            "Axis": {
                "axis_label_text_font_style": "normal",
                "axis_line_color": terms.NULL,
                "major_tick_line_color": terms.NULL,
                "minor_tick_line_color": None,
            },
            "Grid": {"grid_line_color": "#dddddd"},
            "Legend": {"background_fill_color": None, "border_line_color": None, "margin": 0},
            "Toolbar": {"autohide": True, "logo": None},
        }
    }
)


def setup() -> None:
    """Load HoloViews' Bokeh backend and set the look of all figures; once a notebook."""
    hv.extension("bokeh", logo=False)
    hv.output(widget_location="bottom")
    hv.renderer("bokeh").theme = LOOK
    # No tool takes a finger's movement, so that a phone scrolls over a figure.
    tools = dict(default_tools=["box_zoom", "reset"], active_tools=[], toolbar="above")
    frame = dict(responsive=True, height=380, show_grid=True, fontscale=1.15, **tools)
    legend = dict(legend_position="bottom", legend_cols=1, legend_limit=1000)
    hv.opts.defaults(opts.Overlay(show_title=False, **legend, **frame), opts.Curve(line_width=2))


def name_marks(
    places: list[tuple[float, float, str, str]], axes: list[str], align: str
) -> hv.Labels:
    """Series named beside their marks, each in a darker tone of its colour: x, y, name, colour."""
    found = [(x, y, name, _ink(color)) for x, y, name, color in places]
    words = dict(text_color="ink", text_align=align, text_baseline="middle", text_font_size="10pt")
    return hv.Labels(found, axes, ["name", "ink"]).opts(**words)


def _ink(color: str) -> str:
    """A tone of the colour that is dark enough for words (WCAG AA on white)."""
    return "#" + "".join(f"{int(0.65 * int(color[i : i + 2], 16)):02x}" for i in (1, 3, 5))


def apart(values: list[float], gap: float) -> list[float]:
    """The values, each moved up as far as it takes to be `gap` above the next lower one."""
    placed = np.array(values, dtype=float)
    for lower, upper in pairwise(np.argsort(values, kind="stable")):
        placed[upper] = max(placed[upper], placed[lower] + gap)
    return placed.tolist()


def mark(init: str) -> dict:
    """Filled for pretrained starts, hollow for random ones."""
    color, marker = terms.look(init)
    fill = 0.0 if init == "random" else 0.85
    return dict(color=color, marker=marker, fill_alpha=fill, line_color=color, line_width=2)


def folded(label: str) -> str:
    """The name of a row, in lines that leave room for its marks on a phone."""
    return "\n".join(textwrap.wrap(label, 24, break_on_hyphens=False))


# Ticks in plain numbers, of which an axis shows those within its range, and room for names.
TICKS = [(step, f"{step:,g}") for step in np.outer(10.0 ** np.arange(-3, 7), (1, 2, 3, 5)).ravel()]
LOG_AXIS: dict = dict(logx=True, xticks=TICKS, padding=(0.2, 0.1))


def columns(places: pd.Series, values: xr.DataArray, axes: list[str]) -> hv.Labels:
    """The name of each model above its column of marks: `places` gives its x, `values` all y.
    Neighbours stand in different lines, since a phone has no room for them beside each other."""
    top, line = float(values.max()), 0.09 * float(values.max() - values.min())
    ordered = enumerate(places.dropna().sort_values().items())
    rows = [
        (x, top + line * (1 + rank % 3), terms.title(str(m)), terms.NULL)
        for rank, (m, x) in ordered
    ]
    return name_marks(rows, axes, "center")
