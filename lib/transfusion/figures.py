"""One function a figure: a collected Dataset in, a HoloViews element out.

Colour and marker mean the same init in the whole book (Okabe and Ito's colour-blind-safe set).
"""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Callable
from itertools import pairwise

import holoviews as hv
import numpy as np
import pandas as pd
import PIL.Image
import xarray as xr
from bokeh.themes import Theme
from holoviews import opts
from IPython.display import Image

from transfusion.statistics.intervals import steps_to

MARKS = {
    "random": ("#0072b2", "circle"),
    "mean_var": ("#009e73", "triangle"),
    "transfer": ("#d55e00", "diamond"),
    "mean_var_bn_copied": ("#56b4e9", "inverted_triangle"),
    "mean_var_bn_redrawn": ("#e69f00", "inverted_triangle"),
    "permuted": ("#cc79a7", "square"),
    "scale_matched": ("#8c6d31", "hex"),
    "batch_norm": ("#000000", "square_x"),
    "gabor": ("#e69f00", "square"),
    "fundus": ("#d55e00", "square"),
    "cxr": ("#0072b2", "circle"),
    "objects": ("#009e73", "triangle"),
}
# Inits by block: a marker for the kind, a colour for the block, dark to light from the lowest.
KINDS = {
    "transfusion": ("square", "up to {}"),
    "suffix": ("inverted_triangle", "from {} on"),
    "only": ("hex", "{} alone"),
    "frozen": ("square_x", "frozen up to {}"),
    "mean_var": ("triangle", "Mean Var up to {}"),
}
BLOCKS = {
    **{"conv1": "#440154", "block1": "#3b528b", "block2": "#21918c"},
    **{"block3": "#4fa845", "block4": "#b5a200", "block5": "#e0a100"},
}
NULL = "#666666"
RUNS = ["fold", "seed"]  # what tells the trainings of one arm apart
FEW = 3  # series at most are named beside their marks, more in a legend
Kinds = dict[str, tuple[np.ndarray, str]]  # label: mask of pairs, init that they are coloured by
TITLES = {
    "cbr_tiny": "CBR-Tiny",
    "cbr_small": "CBR-Small",
    "cbr_large_t": "CBR-LargeT",
    "cbr_large_w": "CBR-LargeW",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "inception_v3": "Inception-v3",
    "resnet50_slim": "slim ResNet-50",
    "random": "random",
    "source": "source",
    "mean_var": "Mean Var",
    "transfer": "transfer",
    "mean_var_bn_copied": "Mean Var with batch norm",
    "mean_var_bn_redrawn": "Mean Var, batch norm redrawn",
    "scale_matched": "scale matched",
    "batch_norm": "batch norm alone",
    "gabor": "synthetic Gabors",
    "statistics": "18 statistics",
    "thumbnail": "thumbnail 8×8",
    "probe:random": "frozen random features",
    "probe:transfer": "frozen pretrained features",
    "fundus": "retinas",
    "cxr": "chest films",
    "R2": "R²",
}


def title(name: str) -> str:
    """A name in code as the paper writes it, or in plain words."""
    kind, colon, block = name.partition(":")
    return KINDS[kind][1].format(block) if colon and kind in KINDS else TITLES.get(name, name)


def _look(name: str) -> tuple[str, str]:
    """Colour and marker."""
    kind, colon, block = name.partition(":")
    return (BLOCKS.get(block, NULL), KINDS[kind][0]) if colon else MARKS[name]


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
                "axis_line_color": NULL,
                "major_tick_line_color": NULL,
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


def performance(results: xr.Dataset) -> hv.Overlay:
    """Test AUC by model; a mark is a training, a dashed line what needs none."""
    rows = {model: i for i, model in enumerate(results.model.values[::-1])}
    layers = []
    shifts = np.linspace(0.13, -0.13, len(results.init))
    for init, shift in zip(results.init.values, shifts, strict=True):
        frame = results["test_auc"].sel(init=init).to_dataframe().reset_index()
        frame["row"] = frame["model"].map(rows) + shift
        frame["AUC (%)"] = 100 * frame["test_auc"]
        frame["model"] = frame["model"].map(title)
        shown = ["row", "model", "fold", "seed"]
        marks = hv.Scatter(frame, "AUC (%)", shown, label=title(init))
        layers.append(marks.opts(hv.opts.Scatter(tools=["hover"], size=11, **_mark(init))))
    top = 100 * results["test_auc"].isel(model=0).mean(["fold", "seed"]).to_series()
    layers += _named_above(top, (len(rows) - 0.68, len(rows) - 0.42), _middle(results))
    layers += _probes(results, rows) + _baselines(results, (-0.45, -0.65))
    ticks = [(i, title(model)) for model, i in rows.items()]
    limits = dict(ylim=(-0.8, len(rows) - 0.2), padding=(0.3, 0.1))  # room for the names
    return hv.Overlay(layers).opts(
        yticks=ticks, ylabel="", xlabel="test AUC (%)", show_legend=len(top) != 2, **limits
    )


def _baselines(results: xr.Dataset, heights: tuple[float, float]) -> list[hv.Element]:
    """A dashed line for each simple baseline, its mean over folds, named at these heights: on the
    side of the other marks, where a phone too has room, and each in a line of its own."""
    if "baseline_auc" not in results:
        return []
    found = 100 * results["baseline_auc"].mean("fold").to_series().sort_values()
    layers = [hv.VLine(value).opts(color=NULL, line_dash="dashed", line_width=1) for value in found]
    middle = _middle(results)
    names = [
        _names(
            [(value, height, f" {title(str(name))} ", NULL)],
            ["AUC (%)", "row"],
            "left" if value < middle else "right",
        )
        for (name, value), height in zip(found.items(), heights, strict=True)
    ]
    return [*layers, *names]


def _probes(results: xr.Dataset, rows: dict[str, int]) -> list[hv.Scatter]:
    """A small grey mark for the frozen features of each network, mean over folds: hollow for random
    ones, filled for pretrained ones."""
    if "probe_auc" not in results:
        return []
    layers = []
    for probe in results.probe.values:
        found = 100 * results["probe_auc"].sel(probe=probe).mean("fold").to_series()
        name = title(f"probe:{probe}")
        frame = pd.DataFrame({"AUC (%)": found.values, "row": [rows[m] - 0.3 for m in found.index]})
        frame = frame.assign(model=[title(m) for m in found.index], features=name)
        marks = hv.Scatter(frame, "AUC (%)", ["row", "model", "features"], label=name)
        look = _mark(str(probe)) | dict(color=NULL, line_color=NULL, marker="x")
        look |= dict(line_width=1 if probe == "random" else 3)
        layers.append(marks.opts(tools=["hover"], size=9, **look))
    return layers


def _named_above(found: pd.Series, heights: tuple[float, float], middle: float) -> list[hv.Labels]:
    """The names of two inits above their marks, each in a line of its own, growing inwards."""
    if len(found) != 2:
        return []
    return [
        _names(
            [(value, height, title(init), _look(init)[0])],
            ["AUC (%)", "row"],
            "left" if value < middle else "right",
        )
        for (init, value), height in zip(found.items(), heights, strict=True)
    ]


def _middle(results: xr.Dataset) -> float:
    """Of the test AUCs that are shown, baselines included, in percent."""
    shown = [results[name] for name in ("test_auc", "baseline_auc") if name in results]
    ends = [float(end) for one in shown for end in (one.min(), one.max())]
    return 50 * (min(ends) + max(ends))


def _names(places: list[tuple[float, float, str, str]], axes: list[str], align: str) -> hv.Labels:
    """Series named beside their marks, each in a darker tone of its colour: x, y, name, colour."""
    found = [(x, y, name, _ink(color)) for x, y, name, color in places]
    words = dict(text_color="ink", text_align=align, text_baseline="middle", text_font_size="10pt")
    return hv.Labels(found, axes, ["name", "ink"]).opts(**words)


def _ink(color: str) -> str:
    """A tone of the colour that is dark enough for words (WCAG AA on white)."""
    return "#" + "".join(f"{int(0.65 * int(color[i : i + 2], 16)):02x}" for i in (1, 3, 5))


def _apart(values: list[float], gap: float) -> list[float]:
    """The values, each moved up as far as it takes to be `gap` above the next lower one."""
    placed = np.array(values, dtype=float)
    for lower, upper in pairwise(np.argsort(values, kind="stable")):
        placed[upper] = max(placed[upper], placed[lower] + gap)
    return placed.tolist()


def _mark(init: str) -> dict:
    """Filled for pretrained starts, hollow for random ones."""
    color, marker = _look(init)
    fill = 0.0 if init == "random" else 0.85
    return dict(color=color, marker=marker, fill_alpha=fill, line_color=color, line_width=2)


def curves(results: xr.Dataset, over: str = "init") -> hv.HoloMap:
    """Validation AUC against training step, by what a dimension compares.

    Thin lines are trainings, thick ones their mean.
    """
    models = list(results.model.values)
    # One way for all models, since one frame of a HoloMap sets the legend of all.
    most = int(results["auc"].notnull().any([*RUNS, "step"]).sum(over).max())
    drawn = {title(m): _model_curves(results.sel(model=m), over, most) for m in models}
    return hv.HoloMap(drawn, "model")


def _model_curves(results: xr.Dataset, over: str, most: int) -> hv.Overlay:
    layers, ends = [], {}
    for name in results[over].values:
        auc = results["auc"].sel({over: name}).dropna("step", how="all")
        if not auc.size:  # an init that this model does not have
            continue
        color = _look(name)[0]
        thin = dict(color=color, alpha=0.35, line_width=1)
        steps = auc.step.values
        each = auc.stack(run=RUNS).transpose("run", "step").values
        layers += [_curve(steps, one).opts(**thin) for one in each if np.isfinite(one).any()]
        mean = _curve(steps, auc.mean(RUNS).values, title(name))
        dots = hv.Scatter(mean.data, "step", "validation AUC", label=title(name))
        layers += [mean.opts(color=color, line_width=3), dots.opts(size=7, **_mark(name))]
        ends[str(name)] = float(mean.data["validation AUC"].iloc[-1])
    few = most <= FEW
    last, height = int(results.step.max()), 340 if few else 380 + 26 * most
    reach = float(results["auc"].max() - results["auc"].min())
    if few:
        heights = zip(_apart(list(ends.values()), 0.06 * reach), ends, strict=True)
        places = [(1.03 * last, h, title(name), _look(name)[0]) for h, name in heights]
        layers.append(_names(places, ["step", "validation AUC"], "left"))
    ticks = [(step, f"{step:,}") for step in np.linspace(0, last, 5).round().astype(int).tolist()]
    axes = dict(xlabel="training step", ylabel="validation AUC", xticks=ticks)
    limits = dict(xlim=(0, 1.36 * last if few else 1.03 * last), show_legend=not few)
    return hv.Overlay(layers).opts(height=height, **axes, **limits)


def _curve(steps: np.ndarray, values: np.ndarray, label: str = "") -> hv.Curve:
    frame = pd.DataFrame({"step": steps, "validation AUC": values})
    return hv.Curve(frame, "step", "validation AUC", label=label)


def intervals(table: pd.DataFrame, name: str, xlabel: str) -> hv.Overlay:
    """Effects with their 95 % intervals, one row each, as `effects` gives them; 0 is dashed."""
    labels = [
        _folded(", ".join(title(v) if isinstance(v, str) else f"{v:,} images" for v in key))
        for key in table.index.to_frame().itertuples(index=False)
    ]
    frame = table[[name, "low", "high"]].reset_index(drop=True)
    finite = np.isfinite(frame).all(axis=1)  # one seed has no interval
    frame["row"] = np.arange(len(frame))[::-1]
    ends = frame[finite]
    bars = hv.Segments(
        (ends["low"], ends["row"], ends["high"], ends["row"]), ["low", "row", "high", "end"]
    )
    color = MARKS["transfer"][0]
    marks = hv.Scatter(frame.assign(label=labels), name, ["row", "label"])
    zero = hv.VLine(0).opts(color=NULL, line_dash="dashed", line_width=1)
    ticks = [(int(row), label) for row, label in zip(frame["row"], labels, strict=True)]
    axes = dict(yticks=ticks, ylabel="", xlabel=xlabel, ylim=(-0.6, len(frame) - 0.4))
    layers = [zero, bars.opts(color=color, line_width=2)]
    layers.append(marks.opts(size=10, color=color, marker="diamond", tools=["hover"]))
    return hv.Overlay(layers).opts(height=90 + 34 * len(frame), show_legend=False, **axes)


def _folded(label: str) -> str:
    """The name of a row, in lines that leave room for its marks on a phone."""
    return "\n".join(textwrap.wrap(label, 24, break_on_hyphens=False))


def arms(results: xr.Dataset, measure: str = "test_auc", label: str = "test AUC (%)") -> hv.Overlay:
    """Every model and init that was run, a row each; a mark is a training."""
    values = 100 * results[measure]
    pairs = [(m, i) for m in values.model.values for i in values.init.values]
    pairs = [(m, i) for m, i in pairs if values.sel(model=m, init=i).notnull().any()]
    layers, ticks = [], []
    for row, (model, init) in enumerate(pairs[::-1]):
        found = values.sel(model=model, init=init).to_series().rename(label).reset_index()
        marks = hv.Scatter(found[[label, *RUNS]].assign(row=row), label, ["row", *RUNS])
        layers.append(marks.opts(tools=["hover"], size=10, **_mark(str(init))))
        ticks.append((row, _folded(f"{title(str(model))}, {title(str(init))}")))
    layers += [] if measure != "test_auc" else _baselines(results, (len(pairs) - 0.4, len(pairs)))
    top = len(pairs) - (0.2 if measure != "test_auc" else -0.3)
    axes = dict(yticks=ticks, ylabel="", xlabel=label, ylim=(-0.6, top))
    return hv.Overlay(layers).opts(height=120 + 34 * len(pairs), show_legend=False, **axes)


# Ticks in plain numbers, of which an axis shows those within its range, and room for names.
TICKS = [(step, f"{step:,g}") for step in np.outer(10.0 ** np.arange(-3, 7), (1, 2, 3, 5)).ravel()]
LOG_AXIS: dict = dict(logx=True, xticks=TICKS, padding=(0.2, 0.1))
COSTS = {
    "parameters": ("parameters (millions)", 1e6),
    "multiply_adds": ("multiply-adds an image (millions)", 1e6),
    "memory": ("memory an image (MB)", 1e6),
    "seconds": ("seconds a training", 1),
}


def efficiency(results: xr.Dataset) -> hv.HoloMap:
    """Test AUC against what a network costs, by a cost to choose; a mark is a training."""
    found = {}
    for name, (label, unit) in COSTS.items():
        layers = []
        for init in results.init.values:
            one = results[["test_auc", name]].sel(init=init).to_dataframe().reset_index()
            one = one.assign(cost=one[name] / unit, AUC=100 * one["test_auc"])
            one["model"] = one["model"].map(title)
            marks = hv.Scatter(one, "cost", ["AUC", "model", *RUNS], label=title(str(init)))
            layers.append(marks.opts(tools=["hover"], size=11, framewise=True, **_mark(str(init))))
        spent = (results[name] / unit).median({"init", *RUNS} & {*results[name].dims})
        names = _columns(spent.to_series(), 100 * results["test_auc"], ["cost", "AUC"])
        layers.append(names.opts(framewise=True))
        layers += _floors(results)
        axes = dict(xlabel=label, ylabel="test AUC (%)", framewise=True, **LOG_AXIS)
        found[label.partition(" (")[0]] = hv.Overlay(layers).opts(**axes)
    return hv.HoloMap(found, hv.Dimension("cost", values=list(found)), sort=False)


def _floors(results: xr.Dataset) -> list[hv.HLine]:
    """What the simple baselines reach, dashed."""
    found = 100 * results["baseline_auc"].mean("fold") if "baseline_auc" in results else []
    dashed = dict(color=NULL, line_dash="dashed", line_width=1)
    return [hv.HLine(float(value)).opts(**dashed) for value in found]


def _columns(places: pd.Series, values: xr.DataArray, axes: list[str]) -> hv.Labels:
    """The name of each model above its column of marks: `places` gives its x, `values` all y.
    Neighbours stand in different lines, since a phone has no room for them beside each other."""
    top, line = float(values.max()), 0.09 * float(values.max() - values.min())
    ordered = enumerate(places.dropna().sort_values().items())
    rows = [(x, top + line * (1 + rank % 3), title(str(m)), NULL) for rank, (m, x) in ordered]
    return _names(rows, axes, "center")


def tuning(results: xr.Dataset, reached: xr.DataArray) -> hv.HoloMap:
    """Last validation AUC against the learning rate, by init: a mark is a training, a line their
    mean, `reached`."""
    each = 100 * results["auc"].isel(step=-1)
    found = {}
    for model in reached.model.values:
        layers = []
        for init in reached.init.values:
            one = reached.sel(model=model, init=init).dropna("lr")
            if one.size:
                frame = pd.DataFrame({"learning rate": one.lr.values, "AUC": one.values})
                line = hv.Curve(frame, "learning rate", "AUC").opts(color=_look(str(init))[0])
                runs = each.sel(model=model, init=init).to_series().rename("AUC").reset_index()
                runs = runs.rename(columns={"lr": "learning rate"}).dropna()
                marks = hv.Scatter(runs, "learning rate", ["AUC", *RUNS], label=title(str(init)))
                layers += [line, marks.opts(size=10, **_mark(str(init)))]
        ticks = [(rate, f"{rate:g}") for rate in reached.lr.values]
        axes = dict(logx=True, xticks=ticks, ylabel="last validation AUC (%)", padding=0.1)
        found[title(str(model))] = hv.Overlay(layers).opts(**axes)
    return hv.HoloMap(found, hv.Dimension("model", values=list(found)), sort=False)


def at_rates(
    draw: Callable[[xr.Dataset], hv.Overlay | hv.HoloMap], results: xr.Dataset
) -> hv.Overlay | hv.HoloMap:
    """A figure at each of a chapter's equal learning rates, to choose from."""
    if "lr" not in results.dims:
        return draw(results)
    parts = {f"{rate:g}": draw(results.sel(lr=rate, drop=True)) for rate in results.lr.values}
    rate = hv.Dimension("learning rate", values=list(parts))
    first = next(iter(parts.values()))
    if not isinstance(first, hv.HoloMap):
        return hv.HoloMap(parts, rate, sort=False)
    frames = {
        (*(key if isinstance(key, tuple) else (key,)), name): found
        for name, part in parts.items()
        for key, found in part.items()
    }
    return hv.HoloMap(frames, [*first.kdims, rate], sort=False)


# `framewise`, since networks have other blocks.
HEAT = dict(framewise=True, responsive=True, tools=["hover"], toolbar=None, fontscale=1.15)
HEAT |= dict(cmap="Blues", clim=(0, 1), colorbar=True, colorbar_position="bottom", title="")
MEASURES = {"cca": "mean CCA", "svcca": "SVCCA", "cka": "linear CKA"}


def similarity(results: xr.Dataset) -> hv.HoloMap:
    """Similarity of trained networks by block: two random inits, and random against transfer."""
    kinds = {
        "random, random": (between(results, "random", "random"), "random"),
        "random, transfer": (between(results, "random", "transfer"), "transfer"),
    }
    return _by_model(results, lambda one, measure: _by_block(results, one, measure, kinds))


def change(results: xr.Dataset) -> hv.HoloMap:
    """Similarity of each network to itself before training, by block."""
    inits = dict.fromkeys(results.init_a.values)
    kinds = {title(i): (before_after(results, i), i) for i in inits}
    return _by_model(results, lambda one, measure: _by_block(results, one, measure, kinds))


def between(results: xr.Dataset, a: str, b: str, state: str = "final") -> np.ndarray:
    """Mask of pairs of networks in one state, one of init `a` and one of `b`."""
    final = (results.state_a == state) & (results.state_b == state)
    there = (results.init_a == a) & (results.init_b == b)
    back = (results.init_a == b) & (results.init_b == a)
    return (final & (there | back)).values


def before_after(results: xr.Dataset, init: str) -> np.ndarray:
    """Mask of pairs of one network's initial and final state."""
    same = (results.init_a == results.init_b) & (results.seed_a == results.seed_b)
    return (same & (results.init_a == init)).values


def blocks_of(results: xr.Dataset, model: str, measure: str) -> xr.Dataset:
    """The comparisons of one model by one measure, its own blocks alone, lowest first."""
    one = results.sel(model=model, measure=measure)
    return one.dropna("block", how="all", subset=["value"]).sortby("depth")


def _by_block(results: xr.Dataset, one: xr.Dataset, measure: str, kinds: Kinds) -> hv.Overlay:
    layers = [_null(one, kinds)]
    layers += [_pairs(one.isel(pair=mask), label, init) for label, (mask, init) in kinds.items()]
    few, colors = len(kinds) <= FEW, [NULL, *(_look(init)[0] for _, init in kinds.values())]
    if few:
        top = len(one.block) - 1
        ends = [m.data["similarity"][m.data["block"] > top - 0.5].mean() for m in layers]
        heights = zip(_apart(ends, 0.16), layers, colors, strict=True)
        places = [(top + 0.4, h, m.label.replace(", ", ",\n"), color) for h, m, color in heights]
        layers.append(_names(places, ["block", "similarity"], "left"))
    # The same for all models, since one frame of a HoloMap sets the limits of all.
    right = float(results.depth.max()) + (1.6 if few else 0.5)
    axes = dict(xlabel="block", ylabel="similarity", xticks=_block_ticks(one))
    limits = dict(xlim=(-0.5, right), ylim=(-0.02, 1.02), show_legend=not few)
    return hv.Overlay(layers).opts(**axes, **limits)


def _by_model(
    results: xr.Dataset, draw: Callable[[xr.Dataset, str], hv.Overlay | hv.HeatMap]
) -> hv.HoloMap:
    """A figure a model and measure to choose from, the last model first: studies name the large
    one last."""
    models, measures = results.model.values[::-1], results.measure.values
    drawn = {
        (title(model), MEASURES[measure]): draw(blocks_of(results, model, measure), measure)
        for model in models
        for measure in measures
    }
    # Without values of their own the widgets would sort the names.
    dimensions = [
        hv.Dimension("model", values=[title(model) for model in models]),
        hv.Dimension("measure", values=[MEASURES[measure] for measure in measures]),
    ]
    return hv.HoloMap(drawn, dimensions, sort=False)


def _block_ticks(one: xr.Dataset) -> list[tuple[int, str]]:
    return list(enumerate(one.block.values))


def _pairs(pairs: xr.Dataset, label: str, init: str) -> hv.Scatter:
    frame = pairs["corrected"].transpose("block", "pair").values
    spread = 0.24 * (np.arange(frame.shape[1]) / max(1, frame.shape[1] - 1) - 0.5)
    shift = -0.16 if init == "random" else 0.16
    x = np.arange(len(frame))[:, None] + shift + spread
    table = pd.DataFrame({"block": x.ravel(), "similarity": frame.ravel()})
    return hv.Scatter(table, "block", "similarity", label=label).opts(size=8, **_mark(init))


def _null(one: xr.Dataset, kinds: Kinds) -> hv.Curve:
    shown = np.logical_or.reduce([mask for mask, _ in kinds.values()])
    values = one["corrected_null"].isel(pair=shown).mean("pair").values
    frame = pd.DataFrame({"block": np.arange(len(values)), "similarity": values})
    line = hv.Curve(frame, "block", "similarity", label="chance")
    return line.opts(color=NULL, line_dash="dashed")


def seed_pairs(results: xr.Dataset) -> hv.HoloMap:
    """Similarity above chance, block by block, of every pair of trained networks: a row a pair,
    such as `r0 t1`, the random network of seed 0 and the transferred one of seed 1."""

    def draw(one: xr.Dataset, measure: str) -> hv.HeatMap:
        excess = one["corrected"] - one["corrected_null"]
        cells = []
        for kind in ("transfer", "random"):
            for pair in one.pair.values[between(one, "random", kind)]:
                ends = one.sel(pair=pair)
                name = f"r{ends.seed_a.item()} {kind[0]}{ends.seed_b.item()}"
                values = excess.sel(pair=pair).values
                cells += [(b, name, v) for b, v in zip(one.block.values, values, strict=True)]
        found = hv.HeatMap(cells, ["block", "pair"], "above chance")
        rows = len(cells) // len(one.block)
        return found.opts(height=180 + 18 * rows, ylabel="", **HEAT)

    return _by_model(results, draw)


def maps(results: xr.Dataset) -> hv.HoloMap:
    """Each block of one trained network against each of another, both from random init."""

    def draw(one: xr.Dataset, measure: str) -> hv.HeatMap:
        names = list(one.block.values)
        values = one["map"].sel(other=names).values
        cells = [(x, y, values[i, j]) for i, x in enumerate(names) for j, y in enumerate(names)]
        found = hv.HeatMap(cells, ["one network", "the other"], "similarity")
        return found.opts(height=420, **HEAT)

    return _by_model(results, draw)


def against_size(kept: xr.DataArray, parameters: xr.DataArray) -> hv.Overlay:
    """What a network keeps of its start, above chance and averaged over depth, against its size."""
    layers, millions = [], parameters.sel(model=kept.model) / 1e6
    for init in kept.init.values:
        points = kept.sel(init=init).mean("depth")
        frame = points.to_dataframe("similarity to the start").reset_index()
        frame["parameters"] = [float(millions.sel(model=m)) for m in frame["model"]]
        frame["model"] = frame["model"].map(title)
        marks = hv.Scatter(
            frame, "parameters", ["similarity to the start", "model", "seed"], label=title(init)
        )
        layers.append(marks.opts(tools=["hover"], size=11, **_mark(init)))
    found = kept.mean("depth")
    layers.append(_columns(millions.to_series(), found, ["parameters", "similarity to the start"]))
    labels = dict(xlabel="parameters (millions)", ylabel="similarity to the start, above chance")
    return hv.Overlay(layers).opts(**labels, **LOG_AXIS)


def neurons(one: xr.Dataset, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Share of each neuron that another network predicts, before and after training.

    Of one block; (pair, neuron), pairs being those of a random network with another random one, or
    with a transferred one (`kind`).
    """
    shares = []
    for state in ("initial", "final"):
        there = (one.state_a == state) & (one.state_b == state)
        mixed = {"random", kind}
        inits = [{a, b} == mixed for a, b in zip(one.init_a.values, one.init_b.values, strict=True)]
        chosen = one.isel(pair=there.values & np.array(inits))
        order = np.lexsort([chosen.seed_b, chosen.init_b, chosen.seed_a, chosen.init_a])
        shares.append(chosen["explained"].isel(pair=order).transpose("pair", "neuron").values)
    return shares[0], shares[1]


def foretold(results: xr.Dataset) -> hv.HoloMap:
    """A neuron a mark: how well another network predicts it, before and after training."""
    frames = {}
    for model in results.model.values[::-1]:
        one = blocks_of(results, model, "cca")
        for place, block in (("first block", 0), ("last block", -1)):
            layers = []
            for kind in ("transfer", "random"):
                before, after = neurons(one.isel(block=block), kind)
                frame = pd.DataFrame({"before": before.ravel(), "after": after.ravel()}).dropna()
                marks = hv.Scatter(frame, "before", "after", label=f"random, {title(kind)}")
                layers.append(marks.opts(size=5, **_mark(kind)))
            axes = dict(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
            labels = dict(xlabel="predicted before training", ylabel="predicted after training")
            frames[title(model), place] = hv.Overlay(layers).opts(**axes, **labels)
    dimensions = [
        hv.Dimension("model", values=[title(model) for model in results.model.values[::-1]]),
        hv.Dimension("block", values=["first block", "last block"]),
    ]
    return hv.HoloMap(frames, dimensions, sort=False)


def gabors(results: xr.Dataset) -> hv.HoloMap:
    """A first-layer filter a mark: how well a Gabor fits it, before and after training."""
    frames = {}
    for model in results.model.values[::-1]:
        one = results.sel(model=model)
        level = float(one["gabor_level"].max())
        dashed = dict(color=NULL, line_dash="dashed", line_width=1)
        layers = [hv.VLine(level).opts(**dashed), hv.HLine(level).opts(**dashed)]
        for init in results.init.values:
            fits = one["gabor"].sel(init=init)
            before, after = (fits.sel(state=s).values.ravel() for s in ("initial", "final"))
            frame = pd.DataFrame({"before": before, "after": after}).dropna()
            marks = hv.Scatter(frame, "before", "after", label=title(init))
            layers.append(marks.opts(size=6, **_mark(init)))
        labels = dict(xlabel="Gabor fit before training", ylabel="Gabor fit after training")
        frames[title(model)] = hv.Overlay(layers).opts(xlim=(0, 1.02), ylim=(0, 1.02), **labels)
    return hv.HoloMap(frames, hv.Dimension("model", values=list(frames)), sort=False)


def few_datapoints(simulated: xr.Dataset) -> hv.Overlay:
    """Mean CCA of drawn layers against the number of images, before and after correction."""
    layers = []
    marks = {"unrelated": "random", "related": "transfer"}
    for relation, look in marks.items():
        one = simulated.sel(relation=relation)
        truth = float(one["population"])
        layers.append(hv.HLine(truth).opts(color=MARKS[look][0], line_dash="dotted", line_width=2))
        for name, label, alpha in (("value", "as computed", 0.35), ("corrected", "corrected", 1.0)):
            frame = one[name].to_dataframe().reset_index()
            color = dict(color=MARKS[look][0], marker=MARKS[look][1], alpha=alpha)
            label = f"{relation}, {label}"
            dots = hv.Scatter(frame, "images", name, label=label).opts(size=8, **color)
            layers.append(dots.redim(**{name: "mean CCA"}))
    return hv.Overlay(layers).opts(ylim=(-0.02, 1.0), **_images(simulated))


def chance(simulated: xr.Dataset) -> hv.Overlay:
    """Mean CCA of unrelated layers against the number of images, and two ways to foretell it."""
    one = simulated.sel(relation="unrelated")
    real = hv.Scatter(one["value"].to_dataframe().reset_index(), "images", "value",
                      label="unrelated layers").opts(size=9, **_mark("random"))  # fmt: skip
    frame = simulated["null"].sel(relation="related").mean("repeat").to_dataframe().reset_index()
    shifted = hv.Curve(frame, "images", "null", label="null: each image with the next one")
    formula = simulated["independent"].to_dataframe().reset_index()
    closed = hv.Curve(formula, "images", "independent", label="closed form, independent datapoints")
    name = "mean CCA"
    layers = [
        shifted.opts(color=MARKS["transfer"][0]).redim(null=name),
        closed.opts(color=NULL, line_dash="dashed").redim(independent=name),
        real.redim(value=name),
    ]
    return hv.Overlay(layers).opts(ylim=(0, None), **_images(simulated))


def _images(simulated: xr.Dataset) -> dict:
    """Axes: every other number of images that was drawn, and mean CCA."""
    counts = simulated.images.values
    ticks = [(int(count), f"{count:,}") for count in counts[::2]]
    ends = dict(xlim=(0.85 * int(counts[0]), 1.18 * int(counts[-1])))
    return dict(logx=True, xticks=ticks, xlabel="images", ylabel="mean CCA", **ends)


def contact_sheet(images: np.ndarray) -> Image:
    """Images (row, column, channel, y, x) uint8 as one picture, which unlike a plot stays small."""
    return _picture(_sheet(images), "jpeg")


def _sheet(images: np.ndarray) -> np.ndarray:
    """(row, column, channel, y, x) side by side, framed in white: (y, x, channel)."""
    rows, columns, _, height, width = images.shape
    framed = np.pad(images, ((0, 0), (0, 0), (0, 0), (0, 2), (0, 2)), constant_values=255)
    sheet = framed.transpose(0, 3, 1, 4, 2)
    return sheet.reshape(rows * (height + 2), columns * (width + 2), 3)


def filters(weights: np.ndarray, columns: int = 16, scale: int = 8) -> Image:
    """First-layer filters (filter, channel, y, x) in grey, largest first, each in its own range."""
    grey = weights.mean(1)
    grey = grey[np.argsort(-np.linalg.norm(grey.reshape(len(grey), -1), axis=1))]
    return _picture(_sheet(_pixels(grey[: len(grey) - len(grey) % columns], columns, scale)), "png")


def first_filters(results: xr.Dataset, columns: int = 8) -> hv.HoloMap:
    """First-layer filters of one network in grey, each in its own range; a slider leads from the
    start of training to its end."""
    last = json.loads(results.attrs["parameters"])["steps"]
    models, inits = results.model.values[::-1], results.init.values[::-1]  # the most telling first
    rows = -(-results.sizes["filter"] // columns)
    grey = results["grey"].sel(state=["initial", "final"]).assign_coords(state=[0, last])
    drawn = {
        (title(model), title(init), step): _tiles(
            grey.sel(model=model, init=init, state=step), rows, columns
        )
        for model in models
        for init in inits
        for step in (0, last)
    }
    dimensions = [
        hv.Dimension("model", values=[title(model) for model in models]),
        hv.Dimension("start", values=[title(init) for init in inits]),
        hv.Dimension("training step", values=[0, last]),
    ]
    return hv.HoloMap(drawn, dimensions, sort=False)


def _tiles(grey: xr.DataArray, rows: int, columns: int) -> hv.Image:
    """Filters (filter, y, x), those that a network has, side by side on white."""
    found = grey.dropna("filter", how="all").dropna("y", how="all").dropna("x", how="all").values
    count, height, width = found.shape
    sheet = np.full((rows * columns, height + 1, width + 1), 255, np.uint8)
    scale = np.abs(found).max((1, 2), keepdims=True)
    sheet[:count, :height, :width] = (found / scale + 1) * 127
    sheet = sheet.reshape(rows, columns, height + 1, width + 1).transpose(0, 2, 1, 3)
    pixels = sheet.reshape(rows * (height + 1), columns * (width + 1))
    image = hv.Image(pixels, ["across", "down"], "weight", bounds=(0, 0, columns, rows))
    bare = dict(xaxis=None, yaxis=None, show_grid=False, toolbar=None, title="")
    side = 40  # pixels of a filter on the page: eight of them fit on a phone
    size = dict(width=side * columns, height=side * rows, align="center")
    unfiltered: dict = {"plot.styles": {}}  # light stays light on a dark page
    return image.opts(cmap="gray", clim=(0, 255), backend_opts=unfiltered, **size, **bare)


def _pixels(grey: np.ndarray, columns: int, scale: int) -> np.ndarray:
    """(filter, y, x) as enlarged pictures (row, column, channel, y, x), each in its own range."""
    grey = grey / np.abs(grey).max((1, 2), keepdims=True)
    grey = grey.repeat(scale, 1).repeat(scale, 2)
    pixels = ((grey + 1) * 127.5).astype(np.uint8).reshape(-1, columns, 1, *grey.shape[1:])
    return pixels.repeat(3, axis=2)


# Photographs, drawn ones too, take a fifth of the room as JPEG; patches of few tones are exact.
QUALITY = {"jpeg": {"quality": 90}, "png": {}}


def _picture(pixels: np.ndarray, kind: str) -> Image:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, kind, optimize=True, **QUALITY[kind])
    return Image(buffer.getvalue(), format=kind)


def reached(results: xr.Dataset, level: float) -> xr.DataArray:
    """Steps to a validation AUC by model, init and seed; inf where a run never gets there, nan
    where it failed."""
    steps = xr.apply_ufunc(
        lambda curve: steps_to(level, results.step.values, curve),
        results["auc"],
        input_core_dims=[["step"]],
        vectorize=True,
    )
    return steps.where(results["auc"].notnull().all("step"))
