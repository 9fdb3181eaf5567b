"""One function a figure: a collected Dataset in, a HoloViews element out.

Colour and marker mean the same init in the whole book (Okabe and Ito's colour-blind-safe set).
"""

from __future__ import annotations

import io
from collections.abc import Callable

import holoviews as hv
import numpy as np
import pandas as pd
import PIL.Image
import xarray as xr
from holoviews import opts
from IPython.display import Image

from transfusion import metrics

MARKS = {
    "random": ("#0072b2", "circle"),
    "mean_var": ("#009e73", "triangle"),
    "transfer": ("#d55e00", "diamond"),
    "fundus": ("#d55e00", "square"),
    "cxr": ("#0072b2", "circle"),
    "objects": ("#009e73", "triangle"),
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
    frame = dict(responsive=True, height=420, show_grid=True, toolbar="above", fontscale=1.15)
    hv.opts.defaults(
        opts.Overlay(legend_position="bottom", legend_cols=1, show_title=False, **frame),
        opts.Curve(line_width=2),
    )


def performance(results: xr.Dataset) -> hv.Overlay:
    """Test AUC by model; a mark is a seed."""
    rows = {model: i for i, model in enumerate(results.model.values[::-1])}
    layers = []
    shifts = np.linspace(0.13, -0.13, len(results.init))
    for init, shift in zip(results.init.values, shifts, strict=True):
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
    color, marker = MARKS[init]
    fill = 0.0 if init == "random" else 0.85
    return dict(color=color, marker=marker, fill_alpha=fill, line_color=color, line_width=2)


def curves(results: xr.Dataset, over: str = "init") -> hv.HoloMap:
    """Validation AUC against training step, by what a dimension compares.

    Thin lines are seeds, thick ones their mean.
    """
    models = list(results.model.values)
    return hv.HoloMap(
        {title(m): _model_curves(results.sel(model=m), over) for m in models}, "model"
    )


def _model_curves(results: xr.Dataset, over: str) -> hv.Overlay:
    layers = []
    for name in results[over].values:
        auc = results["auc"].sel({over: name}).dropna("step", how="all")
        thin = dict(color=MARKS[name][0], alpha=0.35, line_width=1)
        steps = auc.step.values
        layers += [_curve(steps, auc.sel(seed=s).values).opts(**thin) for s in auc.seed.values]
        mean = _curve(steps, auc.mean("seed").values, title(name))
        dots = hv.Scatter(mean.data, "step", "validation AUC", label=title(name))
        layers += [mean.opts(color=MARKS[name][0], line_width=3), dots.opts(size=7, **_mark(name))]
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
    inits = dict.fromkeys(results.init_a.values)
    return _by_block(results, {title(i): (before_after(results, i), i) for i in inits})


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
    def overlay(one: xr.Dataset) -> hv.Overlay:
        one = one.dropna("block", how="all", subset=["cca"]).sortby("depth")
        layers = [_pairs(one.isel(pair=mask), label, init) for label, (mask, init) in kinds.items()]
        # The same for all models, since one frame of a HoloMap sets the limits of all.
        limits = dict(xlim=(-0.5, float(results.depth.max()) + 0.5), ylim=(0, 1.02))
        axes = dict(xlabel="block", ylabel="mean CCA", xticks=_block_ticks(one), **limits)
        return hv.Overlay([_null(one, kinds), *layers]).opts(**axes)

    return _by_model(results, overlay)


def _by_model(results: xr.Dataset, draw: Callable[[xr.Dataset], hv.Overlay]) -> hv.HoloMap:
    """A figure a model to choose from, the last one first: studies name the large model last."""
    models = results.model.values[::-1]
    drawn = {title(model): draw(results.sel(model=model)) for model in models}
    # Without values of its own the widget would sort the names.
    return hv.HoloMap(drawn, hv.Dimension("model", values=list(drawn)), sort=False)


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
    line = hv.Curve(frame, "block", "mean CCA", label="null (chance)")
    return line.opts(color=NULL, line_dash="dashed")


def contact_sheet(images: np.ndarray) -> Image:
    """Images (row, column, channel, y, x) uint8 as one picture, which unlike a plot stays small."""
    rows, columns, _, height, width = images.shape
    framed = np.pad(images, ((0, 0), (0, 0), (0, 0), (0, 2), (0, 2)), constant_values=255)
    sheet = framed.transpose(0, 3, 1, 4, 2).reshape(rows * (height + 2), columns * (width + 2), 3)
    return _png(sheet)


def filters(weights: np.ndarray, columns: int = 16, scale: int = 8) -> Image:
    """First-layer filters (filter, channel, y, x) in grey, largest first, each in its own range."""
    grey = weights.mean(1)
    order = np.argsort(-np.linalg.norm(grey.reshape(len(grey), -1), axis=1))
    grey = grey[order] / np.abs(grey[order]).max((1, 2), keepdims=True)
    grey = grey[: len(grey) - len(grey) % columns].repeat(scale, 1).repeat(scale, 2)
    pixels = ((grey + 1) * 127.5).astype(np.uint8).reshape(-1, columns, 1, *grey.shape[1:])
    return contact_sheet(pixels.repeat(3, axis=2))


def _png(pixels: np.ndarray) -> Image:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "png", optimize=True)
    return Image(buffer.getvalue(), format="png")


def reached(results: xr.Dataset, level: float) -> xr.DataArray:
    """Steps to a validation AUC by model, init and seed; inf where a run never gets there."""
    return xr.apply_ufunc(
        lambda curve: metrics.steps_to(level, results.step.values, curve),
        results["auc"],
        input_core_dims=[["step"]],
        vectorize=True,
    )
