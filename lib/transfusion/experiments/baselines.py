"""What needs no training of ours: simple features of images, and a logistic regression on them.

An AUC of a network says little beside none; these are what it must exceed (book/scope.md).
"""

from __future__ import annotations

import time
import warnings

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor

from transfusion import config, store
from transfusion.images import folds, tasks
from transfusion.networks import models
from transfusion.similarity import activations, comparison
from transfusion.statistics import metrics
from transfusion.training import fit, loop

# Strengths of the penalty, as scikit-learn's C, among which validation images choose: from one
# that leaves thousands of standardised features next to nothing to say to one that hardly acts.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
THUMBNAIL = 8  # pixels, square: where light and dark lie, and no texture


def compute(spec: config.Baseline) -> xr.Dataset:
    """The scores of a baseline: read from the cache, or computed.

    Returns a Dataset as `fit.fit` does, without a curve: valid_logit, test_logit, targets and
    patients, and what `metrics.scored` reads off them. Raises ValueError as `check` does.
    """
    with store.lease(spec.key):
        found = store.read(spec.key)
        if found is None:
            torch.set_num_threads(1)
            start = time.perf_counter()
            found = _fit(spec)
            found = store.finish(spec, found, seconds=time.perf_counter() - start)
        return metrics.scored(found)


def _fit(spec: config.Baseline) -> xr.Dataset:
    images = tasks.load(spec.data)
    features = _features(spec, images)
    kept, strength = said(features, images)
    facts = {"device": loop.device_name(), "precision": "float32", "strength": strength}
    return kept.assign_attrs(fit.task(images) | facts)


def check(spec: config.Baseline) -> None:
    """Raise ValueError for whatever would stop this baseline: data, model, weights."""
    tasks.check(spec.data)
    if spec.model is not None:
        fit.check(config.Run(data=spec.data, model=spec.model, init=spec.init, optim=NONE))


NONE = config.Optim(steps=1)  # where a run is asked for, and none is trained


# --- features --------------------------------------------------------------------------------


def _features(spec: config.Baseline, images: xr.Dataset) -> np.ndarray:
    """(image, feature) float32."""
    if spec.features == "frozen":
        return frozen(spec, images)
    simple = {"statistics": statistics, "thumbnail": thumbnails}[spec.features]
    return np.concatenate([simple(pixels) for pixels in tasks.batches(images)])


def statistics(pixels: np.ndarray) -> np.ndarray:
    """18 numbers an image of (image, 3, y, x) uint8: mean, deviation and skewness of each channel,
    and of their mean the percentiles 5, 50 and 95 and, at three resolutions, mean and deviation of
    the length of the gradient. Of grey images a third of them repeat others."""
    values = pixels.astype(np.float32) / 255
    flat = values.reshape(*values.shape[:2], -1)
    mean, sd = flat.mean(-1), flat.std(-1)
    cubes = ((flat - mean[..., None]) ** 3).mean(-1)
    skewness = cubes / np.maximum(sd, 1e-3) ** 3
    grey = values.mean(1)
    percentiles = np.percentile(grey.reshape(len(grey), -1), (5, 50, 95), axis=1).T
    texture = [_gradient(_coarser(grey, by)) for by in (1, 2, 4)]
    return np.hstack([mean, sd, skewness, percentiles, *texture]).astype(np.float32)


def _gradient(grey: np.ndarray) -> np.ndarray:
    """Mean and deviation of the gradient's length, (image, 2)."""
    lengths = np.hypot(*np.gradient(grey, axis=(1, 2))).reshape(len(grey), -1)
    return np.stack([lengths.mean(1), lengths.std(1)], 1)


def _coarser(grey: np.ndarray, by: int) -> np.ndarray:
    side = min(grey.shape[1:]) // by * by
    cut = grey[:, :side, :side].reshape(len(grey), side // by, by, side // by, by)
    return cut.mean((2, 4))


def thumbnails(pixels: np.ndarray) -> np.ndarray:
    """Pixels of 8 x 8, means over areas, (image, 192)."""
    small = F.adaptive_avg_pool2d(torch.from_numpy(pixels).float() / 255, THUMBNAIL)
    return small.flatten(1).numpy()


def frozen(spec: config.Baseline, images: xr.Dataset) -> np.ndarray:
    """Outputs of all blocks of an untrained or pretrained network, averaged over positions.

    A pretrained network keeps its source's batch-norm statistics; a random one, which has none,
    takes those of training images, as it would in its first steps.
    """
    assert spec.model is not None
    run = config.Run(data=spec.data, model=spec.model, init=spec.init, optim=NONE, seed=spec.seed)
    net = fit.network(run, trained=False)
    if spec.init.name == "random":
        known = comparison.evenly(tasks.split_of(images, "train"), comparison.CALIBRATION)
        net = comparison.calibrate(net, known)
    blocks = activations.extractor(net)
    with torch.no_grad():
        parts = [_averaged(blocks(models.normalise(b, net))) for b in loop.batches(images)]
    return torch.cat(parts).cpu().numpy()


def _averaged(maps: dict[str, Tensor]) -> Tensor:
    return torch.cat([found.float().mean((2, 3)) for found in maps.values()], 1)


# --- logistic regression ---------------------------------------------------------------------


def said(features: np.ndarray, images: xr.Dataset) -> tuple[xr.Dataset, float]:
    """Logits and what belongs to them, as a run keeps them, of a logistic regression on features
    (image, feature), and the strength of its penalty: that of the best validation AUC."""
    from sklearn.preprocessing import StandardScaler  # loads for a second

    rows = {split: np.flatnonzero(images["split"].values == split) for split in folds.SPLITS}
    scale = StandardScaler().fit(features[rows["train"]])
    scaled = {split: scale.transform(features[r]) for split, r in rows.items()}
    asked = _asked(images)
    paths = [_path(scaled["train"][t >= 0], t[t >= 0], outputs) for t, outputs in asked]

    def answer(strength: int, split: str) -> np.ndarray:
        parts = [scaled[split] @ slope + level for slope, level in (p[strength] for p in paths)]
        return np.hstack([metrics.logits(part, "classes") for part in parts])

    valid, reached = tasks.split_of(images, "valid"), []
    for strength in range(len(STRENGTHS)):
        scores = metrics.probabilities(answer(strength, "valid"), images.attrs["task"])
        reached.append(loop.auc_with_error(valid, scores)[0])
    best = int(np.argmax(reached))
    return fit.split_logits(images, lambda split: answer(best, split)), STRENGTHS[best]


def _asked(images: xr.Dataset) -> list[tuple[np.ndarray, int]]:
    """Target of the training images, -1 where unknown, and number of answers, of each regression:
    one for grades or classes, one a finding."""
    target = tasks.split_of(images, "train")["target"].values
    if images.attrs["task"] == "findings":
        return [(column, 2) for column in target.T]
    return [(target, int(images.attrs["outputs"]))]


def _path(
    features: np.ndarray, target: np.ndarray, outputs: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Slopes (feature, output) and levels (output,) of the fits of all STRENGTHS, each begun where
    the one before ended. What has no training image is less likely than all that have."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    known = np.unique(target).astype(int)
    slope, level = np.zeros((features.shape[1], outputs)), np.full(outputs, -10.0)
    level[known] = 0.0
    if len(known) < 2:
        return [(slope, level)] * len(STRENGTHS)
    model, found = LogisticRegression(max_iter=300, warm_start=True), []
    for strength in STRENGTHS:
        with warnings.catch_warnings():  # far from its end a fit may stop: validation judges it
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
            model.set_params(C=strength).fit(features, target)
        slope, level = slope.copy(), level.copy()
        two = len(known) == 2  # of two answers the second is told, the first being 0
        slope[:, known[1:] if two else known] = model.coef_.T
        level[known[1:] if two else known] = model.intercept_
        found.append((slope, level))
    return found
