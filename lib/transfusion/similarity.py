"""Canonical correlations from streamed second moments, with their image-shift null.

Activations are never stored: each batch adds to the covariance of all networks' neurons, from
which any pair is compared. A datapoint is an image, or a position of an image in a convolutional
layer. Raghu et al. 2017 (SVCCA) define the measure; this is the one-pass float64 route.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class CCA(NamedTuple):
    """Canonical correlations of two layers, in [0, 1], descending; `rank` of each layer."""

    coefficients: np.ndarray
    rank: tuple[int, int]

    @property
    def mean(self) -> float:
        """Mean CCA: the mean of all canonical correlations, nan if there are none."""
        return float(self.coefficients.mean()) if len(self.coefficients) else np.nan


class SecondMoments:
    """Second moments of one layer in several networks, over shared datapoints; a monoid.

    `widths` are the numbers of neurons. Sums are float64 around a pilot mean, so that large means
    cost no digits; `shifted` pairs each image with the next one, which destroys all relation but
    keeps the dependence of positions within an image: the null of the similarity.
    """

    def __init__(self, widths: tuple[int, ...]):
        self.widths = tuple(widths)
        self.edges = np.cumsum([0, *self.widths])
        total = int(self.edges[-1])
        self.n = 0
        self.images = 0
        self.pilot: np.ndarray | None = None
        self.sums = np.zeros(total)
        self.products = np.zeros((total, total))
        self.shifted = np.zeros((total, total))
        self.eps = 2.0**-52

    def update(self, activations: list[np.ndarray]) -> None:
        """Add a batch: one array (images, positions, neurons) or (images, neurons) a network.

        Raises ValueError for other shapes, differing datapoints, one image, or values not finite.
        """
        arrays = [self._checked(a, i) for i, a in enumerate(activations)]
        if len(arrays) != len(self.widths) or len({a.shape[:2] for a in arrays}) != 1:
            shapes, count = [a.shape for a in arrays], len(self.widths)
            raise ValueError(f"expected the same datapoints in {count} networks, got {shapes}")
        block = np.concatenate(arrays, axis=2, dtype=np.float64)  # (image, position, neuron)
        if self.pilot is None:
            self.pilot = block.mean((0, 1))
        block -= self.pilot
        flat = block.reshape(-1, block.shape[2])
        rolled = np.roll(block, -1, axis=0).reshape(flat.shape)
        self.sums += flat.sum(0)
        self.products += flat.T @ flat
        self.shifted += flat.T @ rolled
        self.n += len(flat)
        self.images += len(block)
        self.eps = max(self.eps, *(float(np.finfo(a.dtype).eps) for a in arrays))

    def _checked(self, array: np.ndarray, network: int) -> np.ndarray:
        array = np.asarray(array)
        array = array if array.dtype.kind == "f" else array.astype(np.float64)
        array = array[:, None] if array.ndim == 2 else array
        if array.ndim != 3 or array.shape[2] != self.widths[network]:
            raise ValueError(
                f"network {network}: expected (images, positions, {self.widths[network]}), "
                f"got {array.shape}"
            )
        if len(array) < 2:
            raise ValueError("a batch needs at least 2 images (the null pairs neighbours)")
        finite = np.isfinite(array).all((1, 2))
        if not finite.all():
            raise ValueError(f"network {network}: image {int(np.argmin(finite))} is not finite")
        return array

    def merge(self, other: SecondMoments) -> None:
        """Add what another state has seen, as if its batches had been given to this one."""
        if other.widths != self.widths:
            raise ValueError(f"cannot merge widths {other.widths} into {self.widths}")
        if other.pilot is None:
            return
        if self.pilot is None:
            self.pilot = other.pilot
        d = other.pilot - self.pilot
        correction = np.outer(other.sums, d) + np.outer(d, other.sums) + other.n * np.outer(d, d)
        self.products += other.products + correction
        self.shifted += other.shifted + correction  # a roll keeps both factors' sums
        self.sums += other.sums + other.n * d
        self.n += other.n
        self.images += other.images
        self.eps = max(self.eps, other.eps)

    def cca(self, a: int = 0, b: int = 1) -> CCA:
        """Canonical correlations of networks `a` and `b`."""
        return self._correlate(self.products, a, b)

    def null(self, a: int = 0, b: int = 1) -> CCA:
        """The same after pairing image i of `a` with image i + 1 of `b`: what chance gives."""
        return self._correlate(self.shifted, a, b)

    def forced(self, a: int = 0, b: int = 1) -> int:
        """How many canonical correlations are 1 whatever the data, for lack of datapoints."""
        rank = self.cca(a, b).rank
        return int(np.clip(sum(rank) - (self.n - 1), 0, min(rank)))

    def _correlate(self, cross: np.ndarray, a: int, b: int) -> CCA:
        if self.n < 2:
            raise ValueError(f"canonical correlations need at least 2 datapoints, got {self.n}")
        white_a, white_b = self._whitener(a), self._whitener(b)
        covariance = self._covariance(cross)[self._of(a), self._of(b)]
        values = np.linalg.svd(white_a.T @ covariance @ white_b, compute_uv=False)
        return CCA(np.minimum(values, 1.0), (white_a.shape[1], white_b.shape[1]))

    def _of(self, network: int) -> slice:
        return slice(int(self.edges[network]), int(self.edges[network + 1]))

    def _covariance(self, products: np.ndarray) -> np.ndarray:
        return (products - np.outer(self.sums, self.sums) / self.n) / (self.n - 1)

    def _whitener(self, network: int) -> np.ndarray:
        """W (neurons, rank) with W' C W = 1.

        Neurons are scaled to unit deviation first (CCA does not see scales, the eigenvalues do),
        constant ones left out, and directions below the arithmetic's resolution cut.
        """
        of = self._of(network)
        covariance = self._covariance(self.products)[of, of]
        assert self.pilot is not None
        mean = (self.pilot + self.sums / self.n)[of]
        deviation = np.sqrt(np.maximum(np.diag(covariance), 0))
        alive = np.flatnonzero(deviation > 8 * self.eps * np.abs(mean))
        alive = alive[deviation[alive] > 0]
        scale = deviation[alive]
        values, vectors = np.linalg.eigh(covariance[np.ix_(alive, alive)] / np.outer(scale, scale))
        keep = values > 4 * len(alive) * 2.0**-53 * values.max(initial=0)
        white = np.zeros((len(mean), int(keep.sum())))
        white[alive] = vectors[:, keep] / scale[:, None] / np.sqrt(values[keep])
        return white


def mean_cca(x: np.ndarray, y: np.ndarray) -> float:
    """Mean CCA of two activation arrays, (datapoints, neurons) or (images, positions, neurons)."""
    moments = SecondMoments((x.shape[-1], y.shape[-1]))
    moments.update([x, y])
    return moments.cca().mean


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
