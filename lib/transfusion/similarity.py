"""Similarity of layers from streamed second moments, with its null and its standard error.

Activations are not stored: each batch adds to the second moments of all networks' neurons, from
which every measure of any pair follows. A datapoint is an image, or a position of an image in a
convolutional layer; positions of one image are alike, so null and error go by whole images.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy
import xarray as xr

from transfusion import config, store

ROWS = 2048  # datapoints a product; from 256 to 16,384 its speed differs by less than 10 %
ENOUGH = 50  # datapoints a neuron, below which chance and bias outweigh most differences
TRUST = 1e-6  # bound on the error of a coefficient above which the data are read a second time
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24}  # half the distance from 1 to the next number
Array = Any  # numpy, torch on any device, or whatever numpy makes an array of
Kept = Literal["variance", "singular values"]


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
        self._sums = {name: _Sums.empty(tuple(w), **self.options) for name, w in neurons.items()}
        self._second: dict[str, _Sums] = {}

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
        """Keep the first pass as zarr, atomically and with its checksum."""
        parts: dict[str, Any] = {}
        for i, sums in enumerate(self._sums.values()):
            pilot = np.full(sum(sums.widths), np.nan) if sums.pilot is None else sums.pilot
            parts[f"products{i}"] = ((f"block{i}", f"row{i}", f"column{i}"), sums.products)
            parts[f"images{i}"], parts[f"pilot{i}"] = (f"block{i}", sums.images), (f"p{i}", pilot)
            parts[f"eps{i}"] = sums.eps
        attrs = {"neurons": json.dumps(self.neurons), "options": json.dumps(self.options)}
        store.write_zarr(xr.Dataset(parts, attrs=attrs), Path(path))

    @classmethod
    def load(cls, path: str | Path) -> SecondMoments:
        """What `save` kept; raises FileNotFoundError, or store.Damaged if it is not whole."""
        kept = store.read_zarr(Path(path))
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
        pairs = pairs or list(itertools.combinations(range(len(self.neurons[layer])), 2))
        parts = [self._state(m, layer).replicates([m], pairs) for m in measures]
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
        sizes, values = sums.replicates([measure], [(a, b)], view, **options)
        if np.isnan(values[0, 0, 0, 0]):
            text = f"it needs at least 4 datapoints that differ, got {view.n}"
            raise ValueError(f"layer {layer!r}: {measure} is undefined: {text}")
        bias_free = jackknife(values[0, 0, 0], values[1:, 0, 0], sizes)
        return self._judged(view, measure, a, b, values[0, 0, 0], bias_free, options)

    def _judged(
        self,
        view: _View,
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
            coefficients=_correlations(view, white, a, b) if canonical else np.empty(0),
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

    def _sums_of(self, layer: str) -> _Sums:
        sums = self._sums[config.one_of(layer, self._sums, "layer")]
        if sums.images.sum() == 0:
            raise ValueError(f"layer {layer!r}: no activations were read")
        return sums

    def _second_of(self, layer: str) -> _Sums:
        return self._second.get(layer, self._sums_of(layer))

    def _state(self, measure: str, layer: str) -> _Sums:
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


# --- the sums --------------------------------------------------------------------------------


@dataclass(eq=False)
class _Sums:
    """The sums of one layer, by block of images.

    Each network's neurons (less a pilot mean, so that large means cost no digits) are followed by
    their squared norm, and a last column is 1; so one matrix of products holds all sums. On and
    above its diagonal blocks are the products of datapoints, below them those of a datapoint with
    the same position of the next image.
    """

    widths: tuple[int, ...]
    products: np.ndarray  # (block, column, column)
    images: np.ndarray  # (block,)
    null: bool
    dtype: str
    pilot: np.ndarray | None = None  # (neurons of all networks,)
    eps: float = 2.0**-52  # of the coarsest activations seen
    second: list[np.ndarray] | None = None  # coordinates of a second pass, one matrix a network

    @classmethod
    def empty(cls, widths: tuple[int, ...], *, blocks: int, null: bool, dtype: str) -> _Sums:
        columns = sum(widths) + len(widths) + 1
        products = np.zeros((blocks, columns, columns))
        return cls(widths, products, np.zeros(blocks, int), null and len(widths) > 1, dtype)

    @property
    def datapoints(self) -> int:
        return round(self.products[:, -1, -1].sum())

    @cached_property
    def columns(self) -> list[slice]:
        """Of each network, its norm included."""
        edges = np.cumsum([0, *(width + 1 for width in self.widths)])
        return [slice(int(i), int(j)) for i, j in itertools.pairwise(edges)]

    def checked(self, layer: str, activations: Sequence[Array]) -> list[Array]:
        """As floating-point (images, positions, neurons), all of the same datapoints."""
        if len(activations) != len(self.widths):
            raise ValueError(
                f"layer {layer!r}: expected {len(self.widths)} networks, got {len(activations)}"
            )
        arrays = [_datapoints(activation) for activation in activations]
        for i, (array, width) in enumerate(zip(arrays, self.widths, strict=True)):
            where = f"layer {layer!r}, network {i}"
            if array.ndim != 3 or array.shape[2] != width:
                expected = f"expected (images, positions, {width})"
                raise ValueError(f"{where}: {expected}, got {tuple(array.shape)}")
            if len(array) < 2:
                raise ValueError(f"{where}: a batch needs at least 2 images, got {len(array)}")
            finite = _library(array).isfinite(array).all(2).all(1)
            if not finite.all():
                bad = int(self.images.sum()) + finite.tolist().index(False)
                raise ValueError(f"{where}: activations of image {bad} are not finite")
        if len({tuple(array.shape[:2]) for array in arrays}) != 1:
            shapes = [tuple(array.shape) for array in arrays]
            raise ValueError(f"layer {layer!r}: expected the same datapoints, got {shapes}")
        return arrays

    def add(self, arrays: list[Array]) -> None:
        """Add datapoints in pieces of whole images, each to the block with the fewest images.

        The more images are in, the fewer pieces it takes to keep the blocks of a size.
        """
        images, positions, _ = arrays[0].shape
        even = len(self.images) * images / (self.images.sum() + images)
        pieces = max(math.ceil(images * positions / ROWS), math.ceil(even))
        for piece in np.array_split(np.arange(images), min(pieces, images // 2)):
            rows = slice(int(piece[0]), int(piece[-1]) + 1)
            self._add([array[rows] for array in arrays])

    def _add(self, arrays: list[Array]) -> None:
        if self.pilot is None:
            means = [_host(_double(array).mean((0, 1))) for array in arrays]
            self.pilot = np.concatenate(means)
        eps = [float(_library(a).finfo(a.dtype).eps) for a in arrays]
        self.eps = max(self.eps, *eps)
        block = int(np.argmin(self.images))
        self.products[block] += self._products(self._augmented(arrays))
        self.images[block] += len(arrays[0])

    def _augmented(self, arrays: list[Array]) -> Array:
        """(image, position, column), in the type of the products."""
        assert self.pilot is not None
        xp = _library(arrays[0])
        shape = (*arrays[0].shape[:2], self.products.shape[1])
        columns = np.ones(shape) if xp is np else arrays[0].new_ones(shape, dtype=xp.float64)
        edges = np.cumsum([len(b) for b in self.second] if self.second else self.widths)[:-1]
        for i, (array, mean) in enumerate(zip(arrays, np.split(self.pilot, edges), strict=True)):
            neurons = slice(self.columns[i].start, self.columns[i].stop - 1)
            z = columns[..., neurons]
            if self.second:
                centred = _double(array) - _beside(mean, columns)
                z[...] = centred @ _beside(self.second[i], columns)
            else:
                xp.subtract(array, _beside(mean, columns), out=z)
            columns[..., neurons.stop] = xp.einsum("ijk,ijk->ij", z, z)
        return xp.asarray(columns, dtype=getattr(xp, self.dtype))

    def _products(self, augmented: Array) -> np.ndarray:
        flat = augmented.reshape(-1, augmented.shape[2])
        products = _host(flat.T @ flat)
        if self.null:
            rolled = _library(augmented).roll(augmented, -1, 0).reshape(flat.shape)
            for of in self.columns[:-1]:
                rest = slice(of.stop, -1)
                products[rest, of] = _host(rolled[:, rest].T @ flat[:, of])
        return products

    def merge(self, other: _Sums) -> None:
        if other.pilot is None:
            return
        if self.pilot is None:
            self.pilot = other.pilot
        change = self._change(other.pilot - self.pilot)
        self.products += change.T @ other.products @ change
        self.images += other.images
        self.eps = max(self.eps, other.eps)

    def _change(self, shift: np.ndarray) -> np.ndarray:
        """What moving the pilot does to the columns: z + d, |z|^2 + 2 z'd + |d|^2, and 1."""
        change = np.eye(self.products.shape[1])
        edges = np.cumsum(self.widths)[:-1]
        for of, d in zip(self.columns, np.split(shift, edges), strict=True):
            norm = of.stop - 1
            change[-1, of.start : norm] = d
            change[of.start : norm, norm] = 2 * d
            change[-1, norm] = d @ d
        return change

    def whitened(self) -> _Sums:
        """Empty sums for a second pass, in the eigenvectors of the correlations, nothing cut."""
        view = self.view()
        bases = [view.basis(i) for i in range(len(self.widths))]
        widths = tuple(base.shape[1] for base in bases)
        blocks = len(self.images)
        empty = _Sums.empty(widths, blocks=blocks, null=self.null, dtype="float64")
        empty.pilot = np.concatenate([view.mean(i) for i in range(len(bases))])
        empty.second = bases
        return empty

    def only(self, networks: list[int]) -> _Sums:
        """The sums of some networks, in this order."""
        if networks == list(range(len(self.widths))):
            return self
        columns = np.concatenate([np.r_[self.columns[i]] for i in networks] + [[-1]])
        second = self.second and [self.second[i] for i in networks]
        sizes = [len(b) for b in self.second] if self.second else self.widths
        pilot = np.split(self.pilot, np.cumsum(sizes)[:-1]) if self.pilot is not None else []
        return _Sums(
            tuple(self.widths[i] for i in networks),
            self.products[:, columns[:, None], columns],
            self.images,
            self.null and len(networks) > 1,
            self.dtype,
            np.concatenate([pilot[i] for i in networks]),
            self.eps,
            second,
        )

    def view(self, without: int | None = None) -> _View:
        """All images, or all but a block."""
        total = self.products.sum(0)
        return _View(self, total if without is None else total - self.products[without])

    def replicates(
        self,
        measures: list[str],
        pairs: Sequence[tuple[int, int]],
        whole: _View | None = None,
        **options: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sizes of the blocks, and (all and each block left out, measure, pair, value and null)."""
        full = np.flatnonzero(self.images)
        left_out = full.tolist() if len(full) > 1 else []
        shape = (1 + len(left_out), len(measures), len(pairs), 2)
        values = np.full(shape, np.nan)
        for r, without in enumerate([None, *left_out]):
            view = whole if whole and without is None else self.view(without)
            for m, measure in enumerate(measures):
                for p, (a, b) in enumerate(pairs):
                    values[r, m, p, 0] = MEASURES[measure](view, a, b, False, **options)
                    if self.null and a != b:
                        values[r, m, p, 1] = MEASURES[measure](view, a, b, True, **options)
        return self.images[left_out], values


def _library(array: Array) -> Any:
    """numpy, or torch for its tensors; whoever has a tensor has loaded torch."""
    return np if isinstance(array, np.ndarray) else sys.modules["torch"]


def _datapoints(array: Array) -> Array:
    """As floating-point (images, positions, neurons), if it has a shape that can be read so."""
    array = array.detach() if hasattr(array, "detach") else np.asarray(array)
    xp = _library(array)
    real = array.is_floating_point() if xp is not np else array.dtype.kind == "f"
    array = array if real else _double(array)
    if array.ndim == 4:
        array = xp.moveaxis(array, 1, -1).reshape(len(array), -1, array.shape[1])
    return array[:, None] if array.ndim == 2 else array


def _double(array: Array) -> Array:
    xp = _library(array)
    return xp.asarray(array, dtype=xp.float64)


def _beside(values: np.ndarray, array: Array) -> Array:
    """On the device of another array."""
    return values if isinstance(array, np.ndarray) else array.new_tensor(values)


def _host(array: Array) -> np.ndarray:
    return array if isinstance(array, np.ndarray) else array.cpu().numpy()


# --- measures --------------------------------------------------------------------------------


class _White(NamedTuple):
    """W (neurons, rank) with W' C W = 1, and a bound on what rounding does to it."""

    matrix: np.ndarray
    certificate: float


@dataclass(eq=False)
class _View:
    """Covariances of a layer over some of its datapoints; what whitens a network is kept."""

    sums: _Sums
    total: np.ndarray  # (column, column)
    _whites: dict = field(default_factory=dict)

    @property
    def n(self) -> int:
        return round(self.total[-1, -1])

    def products(self, a: int, b: int, shifted: bool = False) -> np.ndarray:
        """Of two networks' columns, uncentred; `shifted` pairs each image with the next."""
        low, high = self.sums.columns[min(a, b)], self.sums.columns[max(a, b)]
        block = self.total[high, low].T if shifted else self.total[low, high]
        return block if a <= b else block.T

    def sum(self, network: int) -> np.ndarray:
        return self.total[self.sums.columns[network], -1]

    def covariance(self, a: int, b: int, shifted: bool = False) -> np.ndarray:
        centred = self.products(a, b, shifted) - np.outer(self.sum(a), self.sum(b)) / self.n
        return centred[:-1, :-1] / (self.n - 1)

    def mean(self, network: int) -> np.ndarray:
        assert self.sums.pilot is not None
        start = self.sums.columns[network].start - network
        pilot = self.sums.pilot[start : start + self.sums.widths[network]]
        return pilot + self.sum(network)[:-1] / self.n

    def alive(self, network: int) -> np.ndarray:
        """Mask (neurons,) of those that are not constant, within the precision they came in."""
        deviation = np.sqrt(np.maximum(np.diag(self.covariance(network, network)), 0))
        if self.sums.second:
            return deviation > 0
        return (deviation > 8 * self.sums.eps * np.abs(self.mean(network))) & (deviation > 0)

    def eigen(self, network: int) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues of the correlations of the neurons alive, ascending, and the directions
        (neurons, alive) that they belong to, of unit deviation a neuron.

        CCA does not see the scales of neurons, the rounding of eigenvalues does.
        """
        alive = np.flatnonzero(self.alive(network))
        covariance = self.covariance(network, network)[np.ix_(alive, alive)]
        scale = np.ones(len(alive)) if self.sums.second else np.sqrt(np.diag(covariance))
        values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
        directions = np.zeros((self.sums.widths[network], len(alive)))
        directions[alive] = vectors / scale[:, None]
        return values, directions

    @property
    def unit(self) -> float:
        return UNIT[self.sums.dtype]

    def white(self, network: int) -> _White:
        """All directions that the arithmetic can tell from none."""
        if network not in self._whites:
            values, directions = self.eigen(network)
            keep = values > 4 * len(values) * self.unit * values.max(initial=0)
            matrix = directions[:, keep] / np.sqrt(values[keep])
            condition = values[keep].max() / values[keep].min() if keep.any() else 0.0
            bound = self.unit * np.sqrt(len(values)) * condition
            self._whites[network] = _White(matrix, float(bound))
        return self._whites[network]

    def principal(self, network: int, keep: float = 0.99, of: Kept = "variance") -> _White:
        """The leading principal components alone; these do depend on the scales of neurons."""
        config.one_of(of, ("variance", "singular values"), "share")
        key = (network, keep, of)
        if key not in self._whites:
            values, vectors = np.linalg.eigh(self.covariance(network, network))
            values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
            parts = np.cumsum(values if of == "variance" else np.sqrt(values))
            enough = int(np.searchsorted(parts, keep * (1 - 1e-12) * parts[-1])) + 1
            rank = int((values > 4 * len(values) * self.unit * values[0]).sum())
            kept = min(enough, rank)
            matrix = vectors[:, :kept] / np.sqrt(values[:kept])
            bound = self.unit * np.sqrt(len(values)) * values[0] / values[kept - 1] if kept else 0
            self._whites[key] = _White(matrix, float(bound))
        return self._whites[key]

    def basis(self, network: int) -> np.ndarray:
        """Coordinates for a second pass: small eigenvalues are raised to a floor, none is cut."""
        values, directions = self.eigen(network)
        floor = len(values) * self.unit * values.max(initial=0)
        return directions / np.sqrt(np.maximum(values, floor))

    def doubtful(self) -> bool:
        """Whether a second look at the data may change a canonical correlation by over TRUST.

        A cut direction raises no certificate, so a rank below what the data allow counts too.
        """
        if self.sums.second:
            return False
        for network in range(len(self.sums.widths)):
            white, possible = self.white(network), min(self.alive(network).sum(), self.n - 1)
            if white.certificate > TRUST / 2 or white.matrix.shape[1] < possible:
                return True
        return False


def _correlations(
    view: _View, white: Sequence[_White], a: int, b: int, shifted: bool = False
) -> np.ndarray:
    whitened = white[0].matrix.T @ view.covariance(a, b, shifted) @ white[1].matrix
    return np.minimum(np.linalg.svd(whitened, compute_uv=False), 1.0)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else np.nan


def _cca(view: _View, a: int, b: int, shifted: bool) -> float:
    return _mean(_correlations(view, [view.white(a), view.white(b)], a, b, shifted))


def _svcca(view: _View, a: int, b: int, shifted: bool, **kept: Any) -> float:
    white = [view.principal(network, **kept) for network in (a, b)]
    return _mean(_correlations(view, white, a, b, shifted))


def _r2_cca(view: _View, a: int, b: int, shifted: bool) -> float:
    white = [view.white(a), view.white(b)]
    whitened = white[0].matrix.T @ view.covariance(a, b, shifted) @ white[1].matrix
    return float((whitened**2).sum() / min(whitened.shape)) if min(whitened.shape) else np.nan


def _pwcca(view: _View, a: int, b: int, shifted: bool, side: str = "smaller") -> float:
    config.one_of(side, ("smaller", "a", "b"), "side")
    white_a, white_b = view.white(a).matrix, view.white(b).matrix
    whitened = white_a.T @ view.covariance(a, b, shifted) @ white_b
    left, values, right = np.linalg.svd(whitened, full_matrices=False)
    if side == "a" or (side == "smaller" and white_a.shape[1] <= white_b.shape[1]):
        explained = view.covariance(a, a) @ white_a @ left
    else:
        explained = view.covariance(b, b) @ white_b @ right.T
    weights = np.abs(explained).sum(0)  # sum over neurons of |<canonical variable, neuron>|
    return float(weights @ np.minimum(values, 1) / weights.sum()) if len(values) else np.nan


def _plain_cka(view: _View, a: int, b: int, shifted: bool) -> float:
    own = [np.linalg.norm(view.covariance(i, i)) for i in (a, b)]
    cross = np.linalg.norm(view.covariance(a, b, shifted))
    return float(cross**2 / (own[0] * own[1])) if min(own) else np.nan


def _cka(view: _View, a: int, b: int, shifted: bool) -> float:
    own = [_hsic(view, i, i, False) for i in (a, b)]
    return _hsic(view, a, b, shifted) / np.sqrt(own[0] * own[1]) if min(own) > 0 else np.nan


def _hsic(view: _View, a: int, b: int, shifted: bool) -> float:
    """Unbiased HSIC with linear kernels (Song et al. 2012, equation 5), from sums over datapoints:
    of products of neurons, of neurons times squared norms, and of squared norms."""
    n, block = view.n, view.products(a, b, shifted)
    if n < 4:
        return np.nan
    cross, norms = block[:-1, :-1], block[-1, -1]
    (*sum_a, norm_a), (*sum_b, norm_b) = view.sum(a), view.sum(b)
    s_a, s_b = np.array(sum_a), np.array(sum_b)
    off_a, off_b = s_a @ s_a - norm_a, s_b @ s_b - norm_b
    rows = s_a @ cross @ s_b - s_a @ block[:-1, -1] - s_b @ block[-1, :-1] + norms
    pairs = (cross**2).sum() - norms
    off = off_a * off_b / ((n - 1) * (n - 2))
    return float((pairs + off - 2 * rows / (n - 2)) / (n * (n - 3)))


def _procrustes(view: _View, a: int, b: int, shifted: bool) -> float:
    scale = np.sqrt(np.trace(view.covariance(a, a)) * np.trace(view.covariance(b, b)))
    values = np.linalg.svd(view.covariance(a, b, shifted), compute_uv=False)
    return float(values.sum() / scale) if scale else np.nan


MEASURES: dict[str, Callable[..., float]] = {
    "cca": _cca,
    "svcca": _svcca,
    "pwcca": _pwcca,
    "r2_cca": _r2_cca,
    "cka": _cka,
    "plain_cka": _plain_cka,
    "procrustes": _procrustes,
}
INVARIANT = ("cca", "r2_cca")  # to invertible linear maps, and so measured on a second pass too


# --- what is known without data --------------------------------------------------------------


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
