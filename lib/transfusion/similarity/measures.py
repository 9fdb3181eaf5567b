"""Measures of similarity of two layers, each read off a View of their second moments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from transfusion import config
from transfusion.similarity import sums


def correlations(
    view: sums.View, white: Sequence[sums.White], a: int, b: int, shifted: bool = False
) -> np.ndarray:
    whitened = white[0].matrix.T @ view.covariance(a, b, shifted) @ white[1].matrix
    return np.minimum(np.linalg.svd(whitened, compute_uv=False), 1.0)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else np.nan


def _cca(view: sums.View, a: int, b: int, shifted: bool) -> float:
    return _mean(correlations(view, [view.white(a), view.white(b)], a, b, shifted))


def _svcca(view: sums.View, a: int, b: int, shifted: bool, **kept: Any) -> float:
    white = [view.principal(network, **kept) for network in (a, b)]
    return _mean(correlations(view, white, a, b, shifted))


def _r2_cca(view: sums.View, a: int, b: int, shifted: bool) -> float:
    white = [view.white(a), view.white(b)]
    whitened = white[0].matrix.T @ view.covariance(a, b, shifted) @ white[1].matrix
    return float((whitened**2).sum() / min(whitened.shape)) if min(whitened.shape) else np.nan


def _pwcca(view: sums.View, a: int, b: int, shifted: bool, side: str = "smaller") -> float:
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


def _plain_cka(view: sums.View, a: int, b: int, shifted: bool) -> float:
    own = [np.linalg.norm(view.covariance(i, i)) for i in (a, b)]
    cross = np.linalg.norm(view.covariance(a, b, shifted))
    return float(cross**2 / (own[0] * own[1])) if min(own) else np.nan


def _cka(view: sums.View, a: int, b: int, shifted: bool) -> float:
    own = [_hsic(view, i, i, False) for i in (a, b)]
    return _hsic(view, a, b, shifted) / np.sqrt(own[0] * own[1]) if min(own) > 0 else np.nan


def _hsic(view: sums.View, a: int, b: int, shifted: bool) -> float:
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


def _procrustes(view: sums.View, a: int, b: int, shifted: bool) -> float:
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


def replicates(
    total: sums.Sums,
    names: list[str],
    pairs: Sequence[tuple[int, int]],
    whole: sums.View | None = None,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Sizes of the blocks, and (all and each block left out, measure, pair, value and null)."""
    full = np.flatnonzero(total.images)
    left_out = full.tolist() if len(full) > 1 else []
    shape = (1 + len(left_out), len(names), len(pairs), 2)
    values = np.full(shape, np.nan)
    for r, without in enumerate([None, *left_out]):
        view = whole if whole and without is None else total.view(without)
        for m, measure in enumerate(names):
            for p, (a, b) in enumerate(pairs):
                values[r, m, p, 0] = MEASURES[measure](view, a, b, False, **options)
                if total.null and a != b:
                    values[r, m, p, 1] = MEASURES[measure](view, a, b, True, **options)
    return total.images[left_out], values
