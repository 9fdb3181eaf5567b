"""Sums over datapoints from which every measure follows, kept by blocks of whole images.

`Sums` adds up batches; a `View` of it is what one measure reads, with the covariances of a pair.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from transfusion import config

ROWS = 2048  # datapoints a product; from 256 to 16,384 its speed differs by less than 10 %
TRUST = 1e-6  # bound on the error of a coefficient above which the data are read a second time
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24}  # half the distance from 1 to the next number
Array = Any  # numpy, torch on any device, or whatever numpy makes an array of
Kept = Literal["variance", "singular values"]


@dataclass(eq=False)
class Sums:
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
    def empty(cls, widths: tuple[int, ...], *, blocks: int, null: bool, dtype: str) -> Sums:
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
        arrays = _alike([_datapoints(activation) for activation in activations])
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

    def merge(self, other: Sums) -> None:
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

    def whitened(self) -> Sums:
        """Empty sums for a second pass, in the eigenvectors of the correlations, nothing cut."""
        view = self.view()
        bases = [view.basis(i) for i in range(len(self.widths))]
        widths = tuple(base.shape[1] for base in bases)
        blocks = len(self.images)
        empty = Sums.empty(widths, blocks=blocks, null=self.null, dtype="float64")
        empty.pilot = np.concatenate([view.mean(i) for i in range(len(bases))])
        empty.second = bases
        return empty

    def only(self, networks: list[int]) -> Sums:
        """The sums of some networks, in this order."""
        if networks == list(range(len(self.widths))):
            return self
        columns = np.concatenate([np.r_[self.columns[i]] for i in networks] + [[-1]])
        second = self.second and [self.second[i] for i in networks]
        sizes = [len(b) for b in self.second] if self.second else self.widths
        pilot = np.split(self.pilot, np.cumsum(sizes)[:-1]) if self.pilot is not None else []
        return Sums(
            tuple(self.widths[i] for i in networks),
            self.products[:, columns[:, None], columns],
            self.images,
            self.null and len(networks) > 1,
            self.dtype,
            np.concatenate([pilot[i] for i in networks]),
            self.eps,
            second,
        )

    def view(self, without: int | None = None) -> View:
        """All images, or all but a block."""
        total = self.products.sum(0)
        return View(self, total if without is None else total - self.products[without])


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


def _alike(arrays: list[Array]) -> list[Array]:
    """Tensors alone or numpy arrays alone: of both, all as numpy arrays."""
    if len({isinstance(array, np.ndarray) for array in arrays}) == 1:
        return arrays
    return [_host(array) for array in arrays]


def _double(array: Array) -> Array:
    xp = _library(array)
    return xp.asarray(array, dtype=xp.float64)


def _beside(values: np.ndarray, array: Array) -> Array:
    """On the device of another array."""
    return values if isinstance(array, np.ndarray) else array.new_tensor(values)


def _host(array: Array) -> np.ndarray:
    return array if isinstance(array, np.ndarray) else array.cpu().numpy()


class White(NamedTuple):
    """W (neurons, rank) with W' C W = 1, and a bound on what rounding does to it."""

    matrix: np.ndarray
    certificate: float


@dataclass(eq=False)
class View:
    """Covariances of a layer over some of its datapoints; what whitens a network is kept."""

    sums: Sums
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

    def white(self, network: int) -> White:
        """All directions that the arithmetic can tell from none."""
        if network not in self._whites:
            values, directions = self.eigen(network)
            keep = values > 4 * len(values) * self.unit * values.max(initial=0)
            matrix = directions[:, keep] / np.sqrt(values[keep])
            condition = values[keep].max() / values[keep].min() if keep.any() else 0.0
            bound = self.unit * np.sqrt(len(values)) * condition
            self._whites[network] = White(matrix, float(bound))
        return self._whites[network]

    def principal(self, network: int, keep: float = 0.99, of: Kept = "variance") -> White:
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
            self._whites[key] = White(matrix, float(bound))
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
