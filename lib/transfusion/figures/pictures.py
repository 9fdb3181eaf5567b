"""Pictures: contact sheets of images, first-layer filters, and how well Gabors fit them."""

from __future__ import annotations

import io

import holoviews as hv
import numpy as np
import pandas as pd
import PIL.Image
import xarray as xr
from IPython.display import Image

from transfusion import terms
from transfusion.experiments.tables import knobs_of
from transfusion.figures import style


def gabors(results: xr.Dataset) -> hv.HoloMap:
    """A first-layer filter a mark: how well a Gabor fits it, before and after training."""
    frames = {}
    for model in results.model.values[::-1]:
        one = results.sel(model=model)
        level = float(one["gabor_level"].max())
        dashed = dict(color=terms.NULL, line_dash="dashed", line_width=1)
        layers = [hv.VLine(level).opts(**dashed), hv.HLine(level).opts(**dashed)]
        for init in results.init.values:
            fits = one["gabor"].sel(init=init)
            before, after = (fits.sel(state=s).values.ravel() for s in ("initial", "final"))
            frame = pd.DataFrame({"before": before, "after": after}).dropna()
            marks = hv.Scatter(frame, "before", "after", label=terms.title(init))
            layers.append(marks.opts(size=6, **style.mark(init)))
        labels = dict(xlabel="Gabor fit before training", ylabel="Gabor fit after training")
        frames[terms.title(model)] = hv.Overlay(layers).opts(
            xlim=(0, 1.02), ylim=(0, 1.02), **labels
        )
    return hv.HoloMap(frames, hv.Dimension("model", values=list(frames)), sort=False)


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
    last = knobs_of(results)["steps"]
    models, inits = results.model.values[::-1], results.init.values[::-1]  # the most telling first
    rows = -(-results.sizes["filter"] // columns)
    grey = results["grey"].sel(state=["initial", "final"]).assign_coords(state=[0, last])
    drawn = {
        (terms.title(model), terms.title(init), step): _tiles(
            grey.sel(model=model, init=init, state=step), rows, columns
        )
        for model in models
        for init in inits
        for step in (0, last)
    }
    dimensions = [
        hv.Dimension("model", values=[terms.title(model) for model in models]),
        hv.Dimension("start", values=[terms.title(init) for init in inits]),
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
