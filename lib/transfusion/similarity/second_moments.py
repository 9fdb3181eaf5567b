"""Similarity of layers from streamed second moments, with its null and its standard error.

Activations are not stored: each batch adds to the second moments of all networks' neurons, from
which every measure of any pair follows. A datapoint is an image, or a position of an image in a
convolutional layer; positions of one image are alike, so null and error go by whole images.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy
import xarray as xr

from transfusion import config, provenance, store
from transfusion.similarity.measures import INVARIANT, MEASURES, correlations, replicates
from transfusion.similarity.sums import UNIT, Array, Kept, Sums, View

ENOUGH = 50  # datapoints a neuron, below which chance and bias outweigh most differences


@dataclass(frozen=True)
class Similarity:
    """One measure of a layer in two networks, and what is needed to judge it.

    `null` pairs each image with the next one: what chance gives. `corrected` and `corrected_null`
    are without the first-order bias of few datapoints; `se` is the standard error over images.
    All three come from the jackknife over blocks of whole images and are nan without blocks.
    """

    measure: str
    value: float
    coefficients: np.ndarray  # canonical correlations, descending; empty for other measures
    rank: tuple[int, int]  # directions that the arithmetic can tell apart
    forced: int  # coefficients that are 1 whatever the data, for lack of datapoints
    certificate: float  # bound on the rounding error of a canonical correlation
    null: float
    se: float
    corrected: float
    corrected_null: float
    n: int  # datapoints
    images: int
    blocks: int
    enough: bool  # whether there are ENOUGH datapoints a neuron

    @property
    def mean(self) -> float:
        """Mean CCA, the mean of all canonical correlations: `value` as CCA calls it."""
        return self.value

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Of the value that ever more images would give: corrected +- t se."""
        half = float(scipy.special.stdtrit(self.blocks - 1, (1 + level) / 2)) * self.se
        return self.corrected - half, self.corrected + half


class Jackknife(NamedTuple):
    """A value without its first-order bias, and its standard error."""

    corrected: np.ndarray
    se: np.ndarray


class SecondMoments:
    """Second moments of layers, each in several networks over shared datapoints; a monoid.

    `neurons` tells the width of each layer in each network, `{"block4": (64, 64)}`. `blocks` of
    whole images serve the jackknife (1: none); `null` also keeps the products with the next image.
    Sums are float64; `dtype` is that of the products, of which float32 asks for a second pass in
    practice. Memory is 8 bytes x blocks x (sum of a layer's widths) squared, however many images
    come.
    """

    def __init__(
        self,
        neurons: Mapping[str, Sequence[int]],
        *,
        blocks: int = 10,
        null: bool = True,
        dtype: str = "float64",
    ):
        config.one_of(dtype, UNIT, "dtype")
        self.options: dict[str, Any] = {"blocks": blocks, "null": null, "dtype": dtype}
        self._sums = {name: Sums.empty(tuple(w), **self.options) for name, w in neurons.items()}
        self._second: dict[str, Sums] = {}

    @property
    def neurons(self) -> dict[str, tuple[int, ...]]:
        return {name: sums.widths for name, sums in self._sums.items()}

    def images(self, layer: str) -> int:
        return int(self._sums_of(layer).images.sum())

    def datapoints(self, layer: str) -> int:
        return self._sums_of(layer).datapoints

    # --- what comes in ---

    def update(self, activations: Mapping[str, Sequence[Array]]) -> None:
        """Add a batch: for each layer one array a network, of the same datapoints in the same
        order: (images, neurons), (images, positions, neurons) or (images, channel, y, x).

        Raises ValueError, and adds nothing, for a layer that is missing or unknown, other shapes,
        differing numbers of images or positions, fewer than 2 images, or values not finite.
        """
        for name, arrays in self._checked(activations).items():
            self._sums[name].add(arrays)
        self._second = {}  # is of other data now

    def refine(
        self,
        batches: Iterable[Mapping[str, Sequence[Array]]],
        layers: Sequence[str] | None = None,
    ) -> None:
        """Read the same data again for some layers (default: the doubtful ones), in coordinates in
        which rounding costs nothing (CholeskyQR2); `cca` and `r2_cca` use that from then on.

        Raises ValueError, and leaves things as they were, if these are not as many datapoints.
        """
        chosen = self.doubtful() if layers is None else layers
        second = {name: self._sums_of(name).whitened() for name in chosen}
        for batch in batches if second else ():
            for name, arrays in self._checked(batch).items():
                if name in second:
                    second[name].add(arrays)
        for name, sums in second.items():
            if sums.datapoints != self.datapoints(name):
                counts = f"{self.datapoints(name)} datapoints as at first, got {sums.datapoints}"
                raise ValueError(f"layer {name!r}: expected the same {counts}")
        self._second = second

    def doubtful(self) -> list[str]:
        """Layers whose canonical correlations rounding may have spoilt: near-singular ones."""
        return [name for name in self._sums if self._second_of(name).view().doubtful()]

    def _checked(self, activations: Mapping[str, Sequence[Array]]) -> dict[str, list[Array]]:
        for name in activations:
            config.one_of(name, self._sums, "layer")
        if lacking := [name for name in self._sums if name not in activations]:
            raise ValueError(f"no activations of {', '.join(lacking)} in this batch")
        found = {name: self._sums[name].checked(name, a) for name, a in activations.items()}
        counts = {name: len(arrays[0]) for name, arrays in found.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"expected the same images in every layer, got {counts}")
        return found

    def merge(self, other: SecondMoments) -> None:
        """Add what another state has seen, as if its batches had been given to this one."""
        if (other.neurons, other.options) != (self.neurons, self.options):
            mine, theirs = (self.neurons, self.options), (other.neurons, other.options)
            raise ValueError(f"cannot merge moments of {theirs} into those of {mine}")
        for name, sums in other._sums.items():
            self._sums[name].merge(sums)
        self._second = {}

    def save(self, path: str | Path) -> None:
        """Keep the first pass as zarr, atomically, with its checksum and the code's identity."""
        parts: dict[str, Any] = {}
        for i, sums in enumerate(self._sums.values()):
            pilot = np.full(sum(sums.widths), np.nan) if sums.pilot is None else sums.pilot
            parts[f"products{i}"] = ((f"block{i}", f"row{i}", f"column{i}"), sums.products)
            parts[f"images{i}"], parts[f"pilot{i}"] = (f"block{i}", sums.images), (f"p{i}", pilot)
            parts[f"eps{i}"] = sums.eps
        attrs = {"neurons": json.dumps(self.neurons), "options": json.dumps(self.options)}
        attrs["code"] = provenance.identity()
        store.write_zarr(xr.Dataset(parts, attrs=attrs), Path(path))

    @classmethod
    def load(cls, path: str | Path, *, own: bool = False) -> SecondMoments:
        """What `save` kept, or only what this very code has kept (`own`).

        Raises FileNotFoundError, or store.Damaged if it is not whole, or not that.
        """
        kept = store.read_zarr(Path(path))
        if own and kept.attrs.get("code") != provenance.identity():
            raise store.Damaged(f"{path} is of other code")
        found = cls(json.loads(kept.attrs["neurons"]), **json.loads(kept.attrs["options"]))
        for i, sums in enumerate(found._sums.values()):
            sums.products, sums.images = kept[f"products{i}"].values, kept[f"images{i}"].values
            sums.eps, pilot = float(kept[f"eps{i}"]), kept[f"pilot{i}"].values
            sums.pilot = None if np.isnan(pilot).any() else pilot
        return found

    # --- what comes out ---

    def cca(self, layer: str, a: int = 0, b: int = 1) -> Similarity:
        """Canonical correlations and their mean (Raghu et al. 2017); sees no invertible map."""
        return self._one("cca", layer, a, b)

    def svcca(
        self, layer: str, a: int = 0, b: int = 1, *, keep: float = 0.99, of: Kept = "variance"
    ) -> Similarity:
        """CCA between the leading principal components alone (Raghu et al. 2017).

        Kept are those that make up the share `keep` of the variance (the paper's words), or of
        the sum of singular values (the authors' tutorial), which keeps more.
        """
        return self._one("svcca", layer, a, b, keep=keep, of=of)

    def pwcca(
        self, layer: str, a: int = 0, b: int = 1, *, side: Literal["smaller", "a", "b"] = "smaller"
    ) -> Similarity:
        """Canonical correlations weighted by how much of a layer each direction accounts for
        (Morcos et al. 2018, section 2); depends on the scales of that layer's neurons."""
        return self._one("pwcca", layer, a, b, side=side)

    def r2_cca(self, layer: str, a: int = 0, b: int = 1) -> Similarity:
        """Mean squared canonical correlation (Kornblith et al. 2019, table 1)."""
        return self._one("r2_cca", layer, a, b)

    def linear_cka(
        self, layer: str, a: int = 0, b: int = 1, *, unbiased: bool = True
    ) -> Similarity:
        """Linear CKA (Kornblith et al. 2019), by default from the unbiased HSIC of all datapoints
        (Song et al. 2012); raises ValueError where that leaves it undefined."""
        return self._one("cka" if unbiased else "plain_cka", layer, a, b)

    def procrustes(self, layer: str, a: int = 0, b: int = 1) -> Similarity:
        """Nuclear norm of the cross-covariance, between 0 and 1 (Williams et al. 2021); the
        squared distance of the normalised layers is 2 - 2 x this."""
        return self._one("procrustes", layer, a, b)

    def explained(self, layer: str, a: int = 0, b: int = 1) -> np.ndarray:
        """Share of each neuron's variance in network `b` (neurons,) that `a` predicts linearly;
        nan for a constant neuron."""
        a, b = self._place(layer, a), self._place(layer, b)
        view = self._sums_of(layer).view()
        variance = np.diag(view.covariance(b, b))
        found = ((view.white(a).matrix.T @ view.covariance(a, b)) ** 2).sum(0)
        return np.divide(found, variance, out=np.full_like(found, np.nan), where=view.alive(b))

    def table(
        self,
        layer: str,
        measures: Sequence[str] = ("cca",),
        pairs: Sequence[tuple[int, int]] | None = None,
    ) -> xr.Dataset:
        """Several measures of many pairs of networks (default: all) at once.

        Returns value, null, corrected, corrected_null, se (measure, pair); nan where a layer is
        constant or unbiased CKA undefined. Each network is whitened once, however many pairs.
        """
        for measure in measures:
            config.one_of(measure, MEASURES, "measure")
        every = itertools.combinations(range(len(self._sums_of(layer).widths)), 2)
        pairs = [(self._place(layer, a), self._place(layer, b)) for a, b in pairs or every]
        parts = [replicates(self._state(m, layer), [m], pairs) for m in measures]
        sizes, values = parts[0][0], np.concatenate([part for _, part in parts], axis=1)
        bias_free = jackknife(values[0], values[1:], sizes)
        found = {
            "value": values[0, ..., 0],
            "null": values[0, ..., 1],
            "corrected": bias_free.corrected[..., 0],
            "corrected_null": bias_free.corrected[..., 1],
            "se": bias_free.se[..., 0],
        }
        coords: dict[str, Any] = {"measure": list(measures)}
        coords |= {"a": ("pair", [a for a, _ in pairs]), "b": ("pair", [b for _, b in pairs])}
        return xr.Dataset({n: (("measure", "pair"), v) for n, v in found.items()}, coords)

    def _one(self, measure: str, layer: str, a: int, b: int, **options: Any) -> Similarity:
        a, b = self._place(layer, a), self._place(layer, b)
        networks = sorted({a, b})
        sums = self._state(measure, layer).only(networks)
        a, b = networks.index(a), networks.index(b)
        view = sums.view()
        for network in (a, b):
            if not view.alive(network).any():
                width = sums.widths[network]
                raise ValueError(f"layer {layer!r}: all {width} neurons of a network are constant")
        if sums.second is None and measure in INVARIANT and view.doubtful():
            text = f"layer {layer!r} is near-singular: read the data again with `refine`"
            warnings.warn(text, RuntimeWarning, stacklevel=3)
        sizes, values = replicates(sums, [measure], [(a, b)], view, **options)
        if np.isnan(values[0, 0, 0, 0]):
            text = f"it needs at least 4 datapoints that differ, got {view.n}"
            raise ValueError(f"layer {layer!r}: {measure} is undefined: {text}")
        bias_free = jackknife(values[0, 0, 0], values[1:, 0, 0], sizes)
        return self._judged(view, measure, a, b, values[0, 0, 0], bias_free, options)

    def _judged(
        self,
        view: View,
        measure: str,
        a: int,
        b: int,
        value: np.ndarray,
        bias_free: Jackknife,
        options: dict[str, Any],
    ) -> Similarity:
        white = (
            [view.principal(i, **options) for i in (a, b)]
            if measure == "svcca"
            else [view.white(i) for i in (a, b)]
        )
        canonical = measure in ("cca", "svcca")
        rank = (white[0].matrix.shape[1], white[1].matrix.shape[1])
        return Similarity(
            measure=" ".join([measure, *map(str, options.values())]),
            value=float(value[0]),
            coefficients=correlations(view, white, a, b) if canonical else np.empty(0),
            rank=rank,
            forced=int(np.clip(sum(rank) - (view.n - 1), 0, min(rank))),
            certificate=white[0].certificate + white[1].certificate,
            null=float(value[1]),
            se=float(bias_free.se[0]),
            corrected=float(bias_free.corrected[0]),
            corrected_null=float(bias_free.corrected[1]),
            n=view.n,
            images=int(view.sums.images.sum()),
            blocks=int((view.sums.images > 0).sum()),
            enough=bool(view.n >= ENOUGH * max(view.sums.widths)),
        )

    def _place(self, layer: str, network: int) -> int:
        """A network's number from 0; one below counts from the last, as in a list."""
        count = len(self._sums_of(layer).widths)
        if not -count <= network < count:
            raise ValueError(f"layer {layer!r} has networks 0 to {count - 1}, got {network}")
        return network % count

    def _sums_of(self, layer: str) -> Sums:
        sums = self._sums[config.one_of(layer, self._sums, "layer")]
        if sums.images.sum() == 0:
            raise ValueError(f"layer {layer!r}: no activations were read")
        return sums

    def _second_of(self, layer: str) -> Sums:
        return self._second.get(layer, self._sums_of(layer))

    def _state(self, measure: str, layer: str) -> Sums:
        return self._second_of(layer) if measure in INVARIANT else self._sums_of(layer)


def mean_cca(x: Array, y: Array) -> float:
    """Mean CCA of two activation arrays, (datapoints, neurons) or (images, positions, neurons)."""
    moments = SecondMoments({"layer": (x.shape[-1], y.shape[-1])}, blocks=1, null=False)
    moments.update({"layer": (x, y)})
    return moments.cca("layer").mean


def jackknife(whole: np.ndarray, left_out: np.ndarray, sizes: np.ndarray) -> Jackknife:
    """Correct a statistic (...) by its values (block, ...) with each block of datapoints left out.

    `sizes` (block,) may differ: Busing, Meijer and van der Leeden 1999, equations 5 and 8. The
    bootstrap would not do: repeated datapoints raise canonical correlations.
    """
    if len(sizes) < 2:
        return Jackknife(np.full_like(whole, np.nan), np.full_like(whole, np.nan))
    h = (sizes.sum() / sizes).reshape(-1, *[1] * whole.ndim)
    corrected = len(h) * whole - ((1 - 1 / h) * left_out).sum(0)
    pseudo = h * whole - (h - 1) * left_out
    return Jackknife(corrected, np.sqrt((((pseudo - corrected) ** 2) / (h - 1)).mean(0)))


def independent(n: int, p: int, q: int) -> float:
    """Mean CCA of independent layers of `p` and `q` neurons at `n` independent datapoints.

    Wachter's law for the limit spectrum, with n - 1 for the centring; by numerical quadrature.
    Positions of one image are not independent datapoints: for convolutional layers use the null.
    """
    n, p, q = n - 1, min(p, q), max(p, q)
    ones = max(p + q - n, 0) / p
    if ones >= 1:
        return 1.0
    x, y = p / n, q / n
    middle = np.sqrt(x * (1 - y)), np.sqrt(y * (1 - x))
    low, high = (middle[0] - middle[1]) ** 2, min((middle[0] + middle[1]) ** 2, 1.0)
    angle = np.pi * (np.arange(20001) + 0.5) / 20001
    v = (low + high) / 2 + (high - low) / 2 * np.cos(angle)
    density = np.sqrt((v - low) * (high - v)) / (v * (1 - v)) * np.sin(angle)
    return float(ones + (1 - ones) * np.sum(density * np.sqrt(v)) / density.sum())
