"""One function a figure: a collected Dataset in, a HoloViews element out.

Colour and marker mean the same init in the whole book (Okabe and Ito's colour-blind-safe set).
"""

from __future__ import annotations

import holoviews as hv
import numpy as np
import pandas as pd
import xarray as xr
from holoviews import opts

from transfusion import metrics

INIT = {
    "random": ("#0072b2", "circle"),
    "mean_var": ("#009e73", "triangle"),
    "transfer": ("#d55e00", "diamond"),
}
NULL = "#666666"
TITLES = {
    "cbr_tiny": "CBR-Tiny",
    "cbr_small": "CBR-Small",
    "cbr_large_t": "CBR-LargeT",
    "cbr_large_w": "CBR-LargeW",
    "resnet50": "ResNet-50",
    "inception_v3": "Inception-v3",
    "random": "random",
    "mean_var": "Mean Var",
    "transfer": "transfer",
}


def title(name: str) -> str:
    """A model's or init's name as the paper writes it."""
    return TITLES.get(name, name)


def setup() -> None:
    """Load HoloViews' Bokeh backend and set the look of all figures; once a notebook."""
    hv.extension("bokeh", logo=False)
    hv.output(widget_location="bottom")
    frame = dict(responsive=True, height=330, show_grid=True, toolbar="above", fontscale=1.15)
    hv.opts.defaults(
        opts.Overlay(legend_position="bottom", **frame),
        opts.Curve(line_width=2),
        opts.RGB(xaxis=None, yaxis=None, toolbar=None),
    )


def performance(results: xr.Dataset) -> hv.Overlay:
    """Test AUC by model; a mark is a seed."""
    rows = {model: i for i, model in enumerate(results.model.values[::-1])}
    layers = []
    for init, shift in zip(results.init.values, (0.13, -0.13, 0.0), strict=False):
        frame = results["test_auc"].sel(init=init).to_dataframe().reset_index()
        frame["row"] = frame["model"].map(rows) + shift
        frame["AUC (%)"] = 100 * frame["test_auc"]
        frame["model"] = frame["model"].map(title)
        marks = hv.Scatter(frame, "AUC (%)", ["row", "model", "seed"], label=title(init))
        layers.append(marks.opts(hv.opts.Scatter(tools=["hover"], size=11, **_mark(init))))
    ticks = [(i, title(model)) for model, i in rows.items()]
    return hv.Overlay(layers).opts(
        yticks=ticks, ylabel="", xlabel="test AUC (%)", ylim=(-0.6, len(rows) - 0.4)
    )


def _mark(init: str) -> dict:
    """Filled for pretrained starts, hollow for random ones."""
    color, marker = INIT[init]
    fill = 0.0 if init == "random" else 0.85
    return dict(color=color, marker=marker, fill_alpha=fill, line_color=color, line_width=2)


def curves(results: xr.Dataset) -> hv.HoloMap:
    """Validation AUC against training step; thin lines are seeds, thick ones their mean."""
    models = list(results.model.values)
    return hv.HoloMap({title(m): _model_curves(results.sel(model=m)) for m in models}, "model")


def _model_curves(results: xr.Dataset) -> hv.Overlay:
    layers = []
    for init in results.init.values:
        auc = results["auc"].sel(init=init).dropna("step", how="all")
        color = INIT[init][0]
        for seed in auc.seed.values:
            one = auc.sel(seed=seed).values
            layers.append(_curve(auc.step.values, one).opts(color=color, alpha=0.35, line_width=1))
        mean = _curve(auc.step.values, auc.mean("seed").values, title(init))
        dots = hv.Scatter(mean.data, "step", "validation AUC", label=title(init))
        layers += [mean.opts(color=color, line_width=3), dots.opts(size=7, **_mark(init))]
    return hv.Overlay(layers).opts(xlabel="training step", ylabel="validation AUC")


def _curve(steps: np.ndarray, values: np.ndarray, label: str = "") -> hv.Curve:
    frame = pd.DataFrame({"step": steps, "validation AUC": values})
    return hv.Curve(frame, "step", "validation AUC", label=label)


def similarity(results: xr.Dataset) -> hv.HoloMap:
    """Mean CCA between trained networks by block: two random inits, and random against transfer."""
    return _by_block(
        results,
        {
            "random, random": (between(results, "random", "random"), "random"),
            "random, transfer": (between(results, "random", "transfer"), "transfer"),
        },
    )


def change(results: xr.Dataset) -> hv.HoloMap:
    """Mean CCA of each network with itself before training, by block."""
    kinds = {init: (before_after(results, init), init) for init in results_inits(results)}
    return _by_block(results, {title(init): kind for init, kind in kinds.items()})


def results_inits(results: xr.Dataset) -> list[str]:
    return list(dict.fromkeys(results.init_a.values))


def between(results: xr.Dataset, a: str, b: str) -> np.ndarray:
    """Mask of pairs of trained networks, one of init `a` and one of `b`."""
    final = (results.state_a == "final") & (results.state_b == "final")
    there = (results.init_a == a) & (results.init_b == b)
    back = (results.init_a == b) & (results.init_b == a)
    return (final & (there | back)).values


def before_after(results: xr.Dataset, init: str) -> np.ndarray:
    """Mask of pairs of one network's initial and final state."""
    same = (results.init_a == results.init_b) & (results.seed_a == results.seed_b)
    return (same & (results.init_a == init)).values


def _by_block(results: xr.Dataset, kinds: dict[str, tuple[np.ndarray, str]]) -> hv.HoloMap:
    overlays = {}
    for model in results.model.values:
        one = results.sel(model=model).dropna("block", how="all", subset=["cca"]).sortby("depth")
        layers = [_pairs(one.isel(pair=mask), label, init) for label, (mask, init) in kinds.items()]
        overlays[title(model)] = hv.Overlay([_null(one, kinds), *layers]).opts(
            xlabel="block", ylabel="mean CCA", ylim=(0, 1.02), xticks=_block_ticks(one)
        )
    return hv.HoloMap(overlays, "model")


def _block_ticks(one: xr.Dataset) -> list[tuple[int, str]]:
    return list(enumerate(one.block.values))


def _pairs(pairs: xr.Dataset, label: str, init: str) -> hv.Scatter:
    frame = pairs["cca"].transpose("block", "pair").values
    spread = 0.24 * (np.arange(frame.shape[1]) / max(1, frame.shape[1] - 1) - 0.5)
    shift = -0.16 if init == "random" else 0.16
    x = np.arange(len(frame))[:, None] + shift + spread
    table = pd.DataFrame({"block": x.ravel(), "mean CCA": frame.ravel()})
    return hv.Scatter(table, "block", "mean CCA", label=label).opts(size=8, **_mark(init))


def _null(one: xr.Dataset, kinds: dict[str, tuple[np.ndarray, str]]) -> hv.Curve:
    shown = np.logical_or.reduce([mask for mask, _ in kinds.values()])
    values = one["null"].isel(pair=shown).mean("pair").values
    frame = pd.DataFrame({"block": np.arange(len(values)), "mean CCA": values})
    line = hv.Curve(frame, "block", "mean CCA", label="null: images paired at random")
    return line.opts(color=NULL, line_dash="dashed")


def contact_sheet(images: np.ndarray, rows: list[str]) -> hv.Layout:
    """Rows of images (row, column, channel, y, x) uint8, one titled picture a row."""
    sheets = []
    for strip, label in zip(images, rows, strict=True):
        wide = np.concatenate(list(strip.transpose(0, 2, 3, 1)), axis=1)  # (y, column x, channel)
        height, width = wide.shape[:2]
        picture = hv.RGB(wide, bounds=(0, 0, width, height), label=label)
        sheets.append(picture.opts(responsive=True, aspect=width / height, title=label))
    return hv.Layout(sheets).cols(1).opts(shared_axes=False)


def filters(weights: np.ndarray) -> hv.RGB:
    """First-layer filters (filter, channel, y, x) as one grey picture, strongest first."""
    grey = weights.mean(1)
    order = np.argsort(-np.linalg.norm(grey.reshape(len(grey), -1), axis=1))
    grey = grey[order] / np.abs(grey[order]).max((1, 2), keepdims=True)
    framed = np.pad(grey, ((0, 0), (1, 0), (1, 0)), constant_values=1.0)
    columns = 16
    lines = [np.concatenate(list(framed[i : i + columns]), axis=1) for i in _starts(grey, columns)]
    picture = np.concatenate(lines)
    rgb = np.repeat(((picture + 1) * 127.5).astype(np.uint8)[..., None], 3, axis=2)
    height, width = picture.shape
    return hv.RGB(rgb, bounds=(0, 0, width, height)).opts(responsive=True, aspect=width / height)


def _starts(grey: np.ndarray, columns: int) -> range:
    return range(0, len(grey) - len(grey) % columns, columns)


def reached(results: xr.Dataset, level: float) -> xr.DataArray:
    """Steps to a validation AUC by model, init and seed; inf where a run never gets there."""
    return xr.apply_ufunc(
        lambda curve: metrics.steps_to(level, results.step.values, curve),
        results["auc"],
        input_core_dims=[["step"]],
        vectorize=True,
    )
