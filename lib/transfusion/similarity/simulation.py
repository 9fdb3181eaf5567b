"""Layers drawn with a known relation, to see what the measures of similarity say of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from transfusion.similarity import second_moments


def related(
    rng: np.random.Generator, images: int, positions: int, correlations: np.ndarray, tau: float
) -> tuple[np.ndarray, np.ndarray]:
    """Two layers (images, positions, neurons) with known canonical correlations (neurons,).

    `tau` is the share of variance that the positions of an image have in common.
    """
    p = len(correlations)

    def normal() -> np.ndarray:
        image, own = rng.normal(size=(images, 1, p)), rng.normal(size=(images, positions, p))
        return np.sqrt(tau) * image + np.sqrt(1 - tau) * own

    z, other = normal(), normal()
    x, y = rng.normal(size=(2, p, p))
    return z @ x, (correlations * z + np.sqrt(1 - correlations**2) * other) @ y


def simulate(
    images: Sequence[int], *, neurons: int, positions: int, tau: float, repeats: int
) -> xr.Dataset:
    """Mean CCA of drawn layers (`related`), by relation and number of images.

    The layers are unrelated, or have canonical correlations spread evenly from 0.9 to 0. Returns
    value, null, corrected, corrected_null, se (relation, images, repeat), population (relation)
    and independent (images), the closed form for as many independent datapoints.
    """
    rng = np.random.default_rng(0)
    relations = {"unrelated": np.zeros(neurons), "related": np.linspace(0.9, 0, neurons)}
    tables = []
    for correlations in relations.values():
        for count in images:
            for _ in range(repeats):
                found = second_moments.SecondMoments({"layer": (neurons, neurons)})
                found.update({"layer": related(rng, count, positions, correlations, tau)})
                tables.append(found.table("layer").isel(measure=0, pair=0, drop=True))
    shape = (len(relations), len(images), repeats)
    stacked = xr.concat(tables, "draw")
    dims = ("relation", "images", "repeat")
    parts: dict[Any, Any] = {n: (dims, v.values.reshape(shape)) for n, v in stacked.items()}
    parts["population"] = ("relation", [values.mean() for values in relations.values()])
    chance = [second_moments.independent(count * positions, neurons, neurons) for count in images]
    parts["independent"] = ("images", chance)
    return xr.Dataset(parts, {"relation": list(relations), "images": list(images)})
