"""Figures of trainings: AUC, curves, effects, costs.

Colour and marker mean the same init in the whole book (Okabe and Ito's colour-blind-safe set).
"""

from __future__ import annotations

from collections.abc import Callable

import holoviews as hv
import numpy as np
import pandas as pd
import xarray as xr

from transfusion import terms
from transfusion.figures import style

RUNS = ["fold", "seed"]  # what tells the trainings of one arm apart


def performance(results: xr.Dataset) -> hv.Overlay:
    """Test AUC by model; a mark is a training, a dashed line what needs none."""
    rows = {model: i for i, model in enumerate(results.model.values[::-1])}
    layers = []
    shifts = np.linspace(0.13, -0.13, len(results.init))
    for init, shift in zip(results.init.values, shifts, strict=True):
        frame = results["test_auc"].sel(init=init).to_dataframe().reset_index()
        frame["row"] = frame["model"].map(rows) + shift
        frame["AUC (%)"] = 100 * frame["test_auc"]
        frame["model"] = frame["model"].map(terms.title)
        shown = ["row", "model", "fold", "seed"]
        marks = hv.Scatter(frame, "AUC (%)", shown, label=terms.title(init))
        layers.append(marks.opts(hv.opts.Scatter(tools=["hover"], size=11, **style.mark(init))))
    top = 100 * results["test_auc"].isel(model=0).mean(["fold", "seed"]).to_series()
    layers += _named_above(top, (len(rows) - 0.68, len(rows) - 0.42), _middle(results))
    layers += _probes(results, rows) + _baselines(results, (-0.45, -0.65))
    ticks = [(i, terms.title(model)) for model, i in rows.items()]
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
    layers = [
        hv.VLine(value).opts(color=terms.NULL, line_dash="dashed", line_width=1) for value in found
    ]
    middle = _middle(results)
    names = [
        style.name_marks(
            [(value, height, f" {terms.title(str(name))} ", terms.NULL)],
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
        name = terms.title(f"probe:{probe}")
        frame = pd.DataFrame({"AUC (%)": found.values, "row": [rows[m] - 0.3 for m in found.index]})
        frame = frame.assign(model=[terms.title(m) for m in found.index], features=name)
        marks = hv.Scatter(frame, "AUC (%)", ["row", "model", "features"], label=name)
        look = style.mark(str(probe)) | dict(color=terms.NULL, line_color=terms.NULL, marker="x")
        look |= dict(line_width=1 if probe == "random" else 3)
        layers.append(marks.opts(tools=["hover"], size=9, **look))
    return layers


def _named_above(found: pd.Series, heights: tuple[float, float], middle: float) -> list[hv.Labels]:
    """The names of two inits above their marks, each in a line of its own, growing inwards."""
    if len(found) != 2:
        return []
    return [
        style.name_marks(
            [(value, height, terms.title(init), terms.look(init)[0])],
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


def curves(results: xr.Dataset, over: str = "init") -> hv.HoloMap:
    """Validation AUC against training step, by what a dimension compares.

    Thin lines are trainings, thick ones their mean.
    """
    models = list(results.model.values)
    # One way for all models, since one frame of a HoloMap sets the legend of all.
    most = int(results["auc"].notnull().any([*RUNS, "step"]).sum(over).max())
    drawn = {terms.title(m): _model_curves(results.sel(model=m), over, most) for m in models}
    return hv.HoloMap(drawn, "model")


def _model_curves(results: xr.Dataset, over: str, most: int) -> hv.Overlay:
    layers, ends = [], {}
    for name in results[over].values:
        auc = results["auc"].sel({over: name}).dropna("step", how="all")
        if not auc.size:  # an init that this model does not have
            continue
        color = terms.look(name)[0]
        thin = dict(color=color, alpha=0.35, line_width=1)
        steps = auc.step.values
        each = auc.stack(run=RUNS).transpose("run", "step").values
        layers += [_curve(steps, one).opts(**thin) for one in each if np.isfinite(one).any()]
        mean = _curve(steps, auc.mean(RUNS).values, terms.title(name))
        dots = hv.Scatter(mean.data, "step", "validation AUC", label=terms.title(name))
        layers += [mean.opts(color=color, line_width=3), dots.opts(size=7, **style.mark(name))]
        ends[str(name)] = float(mean.data["validation AUC"].iloc[-1])
    few = most <= style.FEW
    last, height = int(results.step.max()), 340 if few else 380 + 26 * most
    reach = float(results["auc"].max() - results["auc"].min())
    if few:
        heights = zip(style.apart(list(ends.values()), 0.06 * reach), ends, strict=True)
        places = [(1.03 * last, h, terms.title(name), terms.look(name)[0]) for h, name in heights]
        layers.append(style.name_marks(places, ["step", "validation AUC"], "left"))
    ticks = [(step, f"{step:,}") for step in np.linspace(0, last, 5).round().astype(int).tolist()]
    axes = dict(xlabel="training step", ylabel="validation AUC", xticks=ticks)
    limits = dict(xlim=(0, 1.36 * last if few else 1.03 * last), show_legend=not few)
    return hv.Overlay(layers).opts(height=height, **axes, **limits)


def _curve(steps: np.ndarray, values: np.ndarray, label: str = "") -> hv.Curve:
    frame = pd.DataFrame({"step": steps, "validation AUC": values})
    return hv.Curve(frame, "step", "validation AUC", label=label)


def intervals(table: pd.DataFrame, name: str, xlabel: str) -> hv.Overlay:
    """Effects with their 95 % intervals, a row each (`accuracy.gains_by_size`); 0 is dashed."""
    labels = [
        style.folded(
            ", ".join(terms.title(v) if isinstance(v, str) else f"{v:,} images" for v in key)
        )
        for key in table.index.to_frame().itertuples(index=False)
    ]
    frame = table[[name, "low", "high"]].reset_index(drop=True)
    finite = np.isfinite(frame).all(axis=1)  # one seed has no interval
    frame["row"] = np.arange(len(frame))[::-1]
    ends = frame[finite]
    bars = hv.Segments(
        (ends["low"], ends["row"], ends["high"], ends["row"]), ["low", "row", "high", "end"]
    )
    color = terms.look("transfer")[0]
    marks = hv.Scatter(frame.assign(label=labels), name, ["row", "label"])
    zero = hv.VLine(0).opts(color=terms.NULL, line_dash="dashed", line_width=1)
    ticks = [(int(row), label) for row, label in zip(frame["row"], labels, strict=True)]
    axes = dict(yticks=ticks, ylabel="", xlabel=xlabel, ylim=(-0.6, len(frame) - 0.4))
    layers = [zero, bars.opts(color=color, line_width=2)]
    layers.append(marks.opts(size=10, color=color, marker="diamond", tools=["hover"]))
    return hv.Overlay(layers).opts(height=90 + 34 * len(frame), show_legend=False, **axes)


def arms(results: xr.Dataset, measure: str = "test_auc", label: str = "test AUC (%)") -> hv.Overlay:
    """Every model and init that was run, a row each; a mark is a training."""
    values = 100 * results[measure]
    pairs = [(m, i) for m in values.model.values for i in values.init.values]
    pairs = [(m, i) for m, i in pairs if values.sel(model=m, init=i).notnull().any()]
    layers, ticks = [], []
    for row, (model, init) in enumerate(pairs[::-1]):
        found = values.sel(model=model, init=init).to_series().rename(label).reset_index()
        marks = hv.Scatter(found[[label, *RUNS]].assign(row=row), label, ["row", *RUNS])
        layers.append(marks.opts(tools=["hover"], size=10, **style.mark(str(init))))
        ticks.append((row, style.folded(f"{terms.title(str(model))}, {terms.title(str(init))}")))
    layers += [] if measure != "test_auc" else _baselines(results, (len(pairs) - 0.4, len(pairs)))
    top = len(pairs) - (0.2 if measure != "test_auc" else -0.3)
    axes = dict(yticks=ticks, ylabel="", xlabel=label, ylim=(-0.6, top))
    return hv.Overlay(layers).opts(height=120 + 34 * len(pairs), show_legend=False, **axes)


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
            one["model"] = one["model"].map(terms.title)
            marks = hv.Scatter(one, "cost", ["AUC", "model", *RUNS], label=terms.title(str(init)))
            layers.append(
                marks.opts(tools=["hover"], size=11, framewise=True, **style.mark(str(init)))
            )
        spent = (results[name] / unit).median({"init", *RUNS} & {*results[name].dims})
        names = style.columns(spent.to_series(), 100 * results["test_auc"], ["cost", "AUC"])
        layers.append(names.opts(framewise=True))
        layers += _floors(results)
        axes = dict(xlabel=label, ylabel="test AUC (%)", framewise=True, **style.LOG_AXIS)
        found[label.partition(" (")[0]] = hv.Overlay(layers).opts(**axes)
    return hv.HoloMap(found, hv.Dimension("cost", values=list(found)), sort=False)


def _floors(results: xr.Dataset) -> list[hv.HLine]:
    """What the simple baselines reach, dashed."""
    found = 100 * results["baseline_auc"].mean("fold") if "baseline_auc" in results else []
    dashed = dict(color=terms.NULL, line_dash="dashed", line_width=1)
    return [hv.HLine(float(value)).opts(**dashed) for value in found]


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
                line = hv.Curve(frame, "learning rate", "AUC").opts(color=terms.look(str(init))[0])
                runs = each.sel(model=model, init=init).to_series().rename("AUC").reset_index()
                runs = runs.rename(columns={"lr": "learning rate"}).dropna()
                marks = hv.Scatter(
                    runs, "learning rate", ["AUC", *RUNS], label=terms.title(str(init))
                )
                layers += [line, marks.opts(size=10, **style.mark(str(init)))]
        ticks = [(rate, f"{rate:g}") for rate in reached.lr.values]
        axes = dict(logx=True, xticks=ticks, ylabel="last validation AUC (%)", padding=0.1)
        found[terms.title(str(model))] = hv.Overlay(layers).opts(**axes)
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
