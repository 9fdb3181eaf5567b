"""Figures of what networks compute: similarity by block, against size, foretold, by chance."""

from __future__ import annotations

from collections.abc import Callable

import holoviews as hv
import numpy as np
import pandas as pd
import xarray as xr

from transfusion import terms
from transfusion.experiments import tables
from transfusion.figures import style

Kinds = dict[str, tuple[np.ndarray, str]]  # label: mask of pairs, init that they are coloured by
# `framewise`, since networks have other blocks.
HEAT = dict(framewise=True, responsive=True, tools=["hover"], toolbar=None, fontscale=1.15)
HEAT |= dict(cmap="Blues", clim=(0, 1), colorbar=True, colorbar_position="bottom", title="")


def similarity(results: xr.Dataset) -> hv.HoloMap:
    """Similarity of trained networks by block: two random inits, and random against transfer."""
    kinds = {
        "random, random": (tables.between(results, "random", "random"), "random"),
        "random, transfer": (tables.between(results, "random", "transfer"), "transfer"),
    }
    return _by_model(results, lambda one, measure: _by_block(results, one, measure, kinds))


def change(results: xr.Dataset) -> hv.HoloMap:
    """Similarity of each network to itself before training, by block."""
    inits = dict.fromkeys(results.init_a.values)
    kinds = {terms.title(i): (tables.before_after(results, i), i) for i in inits}
    return _by_model(results, lambda one, measure: _by_block(results, one, measure, kinds))


def _by_block(results: xr.Dataset, one: xr.Dataset, measure: str, kinds: Kinds) -> hv.Overlay:
    layers = [_null(one, kinds)]
    layers += [_pairs(one.isel(pair=mask), label, init) for label, (mask, init) in kinds.items()]
    few, colors = (
        len(kinds) <= style.FEW,
        [terms.NULL, *(terms.look(init)[0] for _, init in kinds.values())],
    )
    if few:
        top = len(one.block) - 1
        ends = [m.data["similarity"][m.data["block"] > top - 0.5].mean() for m in layers]
        heights = zip(style.apart(ends, 0.16), layers, colors, strict=True)
        places = [(top + 0.4, h, m.label.replace(", ", ",\n"), color) for h, m, color in heights]
        layers.append(style.name_marks(places, ["block", "similarity"], "left"))
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
        (terms.title(model), terms.MEASURES[measure]): draw(
            tables.blocks_of(results, model, measure), measure
        )
        for model in models
        for measure in measures
    }
    # Without values of their own the widgets would sort the names.
    dimensions = [
        hv.Dimension("model", values=[terms.title(model) for model in models]),
        hv.Dimension("measure", values=[terms.MEASURES[measure] for measure in measures]),
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
    return hv.Scatter(table, "block", "similarity", label=label).opts(size=8, **style.mark(init))


def _null(one: xr.Dataset, kinds: Kinds) -> hv.Curve:
    shown = np.logical_or.reduce([mask for mask, _ in kinds.values()])
    values = one["corrected_null"].isel(pair=shown).mean("pair").values
    frame = pd.DataFrame({"block": np.arange(len(values)), "similarity": values})
    line = hv.Curve(frame, "block", "similarity", label="chance")
    return line.opts(color=terms.NULL, line_dash="dashed")


def seed_pairs(results: xr.Dataset) -> hv.HoloMap:
    """Similarity above chance, block by block, of every pair of trained networks: a row a pair,
    such as `r0 t1`, the random network of seed 0 and the transferred one of seed 1."""

    def draw(one: xr.Dataset, measure: str) -> hv.HeatMap:
        excess = one["corrected"] - one["corrected_null"]
        cells = []
        for kind in ("transfer", "random"):
            for pair in one.pair.values[tables.between(one, "random", kind)]:
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
        frame["model"] = frame["model"].map(terms.title)
        marks = hv.Scatter(
            frame,
            "parameters",
            ["similarity to the start", "model", "seed"],
            label=terms.title(init),
        )
        layers.append(marks.opts(tools=["hover"], size=11, **style.mark(init)))
    found = kept.mean("depth")
    layers.append(
        style.columns(millions.to_series(), found, ["parameters", "similarity to the start"])
    )
    labels = dict(xlabel="parameters (millions)", ylabel="similarity to the start, above chance")
    return hv.Overlay(layers).opts(**labels, **style.LOG_AXIS)


def foretold(results: xr.Dataset) -> hv.HoloMap:
    """A neuron a mark: how well another network predicts it, before and after training."""
    frames = {}
    for model in results.model.values[::-1]:
        one = tables.blocks_of(results, model, "cca")
        for place, block in (("first block", 0), ("last block", -1)):
            layers = []
            for kind in ("transfer", "random"):
                before, after = tables.neurons(one.isel(block=block), kind)
                frame = pd.DataFrame({"before": before.ravel(), "after": after.ravel()}).dropna()
                marks = hv.Scatter(frame, "before", "after", label=f"random, {terms.title(kind)}")
                layers.append(marks.opts(size=5, **style.mark(kind)))
            axes = dict(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
            labels = dict(xlabel="predicted before training", ylabel="predicted after training")
            frames[terms.title(model), place] = hv.Overlay(layers).opts(**axes, **labels)
    dimensions = [
        hv.Dimension("model", values=[terms.title(model) for model in results.model.values[::-1]]),
        hv.Dimension("block", values=["first block", "last block"]),
    ]
    return hv.HoloMap(frames, dimensions, sort=False)


def few_datapoints(simulated: xr.Dataset) -> hv.Overlay:
    """Mean CCA of drawn layers against the number of images, before and after correction."""
    layers = []
    marks = {"unrelated": "random", "related": "transfer"}
    for relation, look in marks.items():
        one = simulated.sel(relation=relation)
        truth = float(one["population"])
        layers.append(
            hv.HLine(truth).opts(color=terms.look(look)[0], line_dash="dotted", line_width=2)
        )
        for name, label, alpha in (("value", "as computed", 0.35), ("corrected", "corrected", 1.0)):
            frame = one[name].to_dataframe().reset_index()
            color = dict(color=terms.look(look)[0], marker=terms.look(look)[1], alpha=alpha)
            label = f"{relation}, {label}"
            dots = hv.Scatter(frame, "images", name, label=label).opts(size=8, **color)
            layers.append(dots.redim(**{name: "mean CCA"}))
    return hv.Overlay(layers).opts(ylim=(-0.02, 1.0), **_images(simulated))


def chance(simulated: xr.Dataset) -> hv.Overlay:
    """Mean CCA of unrelated layers against the number of images, and two ways to foretell it."""
    one = simulated.sel(relation="unrelated")
    real = hv.Scatter(one["value"].to_dataframe().reset_index(), "images", "value",
                      label="unrelated layers").opts(size=9, **style.mark("random"))  # fmt: skip
    frame = simulated["null"].sel(relation="related").mean("repeat").to_dataframe().reset_index()
    shifted = hv.Curve(frame, "images", "null", label="null: each image with the next one")
    formula = simulated["independent"].to_dataframe().reset_index()
    closed = hv.Curve(formula, "images", "independent", label="closed form, independent datapoints")
    name = "mean CCA"
    layers = [
        shifted.opts(color=terms.look("transfer")[0]).redim(null=name),
        closed.opts(color=terms.NULL, line_dash="dashed").redim(independent=name),
        real.redim(value=name),
    ]
    return hv.Overlay(layers).opts(ylim=(0, None), **_images(simulated))


def _images(simulated: xr.Dataset) -> dict:
    """Axes: every other number of images that was drawn, and mean CCA."""
    counts = simulated.images.values
    ticks = [(int(count), f"{count:,}") for count in counts[::2]]
    ends = dict(xlim=(0.85 * int(counts[0]), 1.18 * int(counts[-1])))
    return dict(logx=True, xticks=ticks, xlabel="images", ylabel="mean CCA", **ends)
