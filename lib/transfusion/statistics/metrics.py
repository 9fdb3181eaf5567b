"""What is read off scores: AUC and its error by patients, accuracy, average precision."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy  # which loads its parts when they are first used; `stats` takes half a second
import xarray as xr


def auc(target: np.ndarray, scores: np.ndarray, positive_from: int | None = None) -> float:
    """Area under the ROC curve: the mean of `aucs`, nan where no question has both answers."""
    found = aucs(target, scores, positive_from)
    found = found[np.isfinite(found)]
    return float(found.mean()) if len(found) else np.nan


def aucs(target: np.ndarray, scores: np.ndarray, positive_from: int | None = None) -> np.ndarray:
    """Area under the ROC curve of each question of `binary`, nan where only one answer occurs."""
    asked = binary(target, scores, positive_from)
    return np.array([_auc(t, s) for t, s in zip(*asked, strict=True)])


def binary(
    target: np.ndarray, scores: np.ndarray, positive_from: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The yes-no questions whose AUC is taken: target (question, image) of 0, 1 or, unknown, -1,
    and scores (..., question, image). The input's form says which they are:

    Grades, target (image,), scores (..., image, grade) as probabilities: one question, whether the
    grade is `positive_from` or more. Findings, target (image, finding), scores (..., image,
    finding): each finding. Classes, target (image,) without `positive_from`: each against the rest.
    """
    asked, scores = target.T, np.swapaxes(scores, -1, -2)
    if target.ndim == 1 and positive_from is not None:
        scores = scores[..., positive_from:, :].sum(-2, keepdims=True)
        asked = target[None] >= positive_from
    elif target.ndim == 1:
        asked = target == np.arange(scores.shape[-2])[:, None]
    return np.where(target.T < 0, -1, asked), scores


def _auc(target: np.ndarray, scores: np.ndarray) -> float:
    """From the ranks of the positives among all (Mann and Whitney); scikit-learn's is the same and
    takes twenty times as long, most of it to look at what it is given."""
    known = target >= 0
    positive, ranks = target[known] > 0, pd.Series(scores[known]).rank().to_numpy()
    count, pairs = positive.sum(), positive.sum() * (~positive).sum()
    if not pairs:
        return np.nan
    return float((ranks[positive].sum() - count * (count + 1) / 2) / pairs)


def average_precision(target: np.ndarray, scores: np.ndarray, positive_from: int) -> float:
    """Precision of grade >= `positive_from` at every distinct score, weighted by the recall that it
    adds, as scikit-learn has it, which would be all of it that reading results takes."""
    positive, said = target >= positive_from, scores[:, positive_from:].sum(1)
    order = np.argsort(-said, kind="stable")
    found = np.cumsum(positive[order])
    last = np.flatnonzero(np.append(np.diff(said[order]) != 0, True))  # of each distinct score
    precision, recall = found[last] / (last + 1), found[last] / max(found[-1], 1)
    return float(np.diff(recall, prepend=0.0) @ precision)


def accuracy(target: np.ndarray, scores: np.ndarray, top: int = 1) -> float:
    """Share of images whose class (image,) is among the `top` of its scores (image, class).

    Raises ValueError for a target that is no class, or scores that are not finite.
    """
    if not np.isfinite(scores).all():
        raise ValueError("expected finite scores, got nan or infinity")
    if not np.isin(target, np.arange(scores.shape[1])).all():
        raise ValueError(f"expected classes 0 to {scores.shape[1] - 1}, got {np.unique(target)}")
    best = np.argsort(scores, axis=1, kind="stable")[:, ::-1][:, :top]
    return float((best == target[:, None]).any(1).mean())


def logits(said: np.ndarray, task: str) -> np.ndarray:
    """What a network says (image, output) as it is kept: half precision, and of grades and classes
    relative to the first output, which is the same answer in a column less."""
    kept = said if task == "findings" else (said - said[:, :1])[:, 1:]
    largest = np.finfo(np.float16).max
    return np.clip(kept, -largest, largest).astype(np.float16)


def probabilities(kept: np.ndarray, task: str) -> np.ndarray:
    """Of `logits`: (image, output) in float64, for close to 1 lesser numbers tie."""
    if task == "findings":
        return scipy.special.expit(kept.astype(float))
    return scipy.special.softmax(np.pad(kept.astype(float), ((0, 0), (1, 0))), axis=1)


def scored(result: xr.Dataset) -> xr.Dataset:
    """A result with what its `test_logit` says: test_score (test_image, output) and, by the task
    in its attrs, test_auc, test_ap of grades, test_top1 and test_top5 of classes."""
    if "test_logit" not in result:
        return result
    task, positive_from = result.attrs["task"], result.attrs.get("positive_from")
    target, score = result["test_target"].values, probabilities(result["test_logit"].values, task)
    found: dict = {"test_score": (("test_image", "output"), score)}
    found["test_auc"] = auc(target, score, positive_from)
    if positive_from is not None:
        found["test_ap"] = average_precision(target, score, positive_from)
    if task == "classes":
        found |= {f"test_top{top}": accuracy(target, score, top) for top in (1, 5)}
    return result.assign(found)


def placements(target: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Share of the images of the other class to which each image stands in the right order, ties
    counting half: the AUC is their mean over positives, and over negatives.

    Target (..., image) of 0, 1 or, unknown, below 0 broadcasts against scores (..., image). The
    result has the shape of both; nan for unknown labels, and throughout a row of one class only or
    of scores with a nan (a failed run). These are the structural components of DeLong, DeLong &
    Clarke-Pearson (Biometrics 44:837, 1988).
    """
    failed = np.isnan(scores).any(-1, keepdims=True)
    target, scores = np.broadcast_arrays(target, np.where(failed, np.nan, scores))
    positive, negative = target > 0, target == 0
    within = np.where(positive, _ranks(scores, positive), _ranks(scores, negative))
    below = _ranks(scores, positive | negative) - within  # images of the other class
    return np.where(positive, below / _count(negative), 1 - below / _count(positive))


def _ranks(scores: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Among the chosen images of each row; nan for the others."""
    among = np.where(chosen, scores, np.nan)
    rows = among.reshape(-1, among.shape[-1]).T  # as columns, which pandas ranks faster
    return pd.DataFrame(rows).rank().to_numpy().T.reshape(among.shape)


def _count(chosen: np.ndarray) -> np.ndarray:
    """How many are chosen in each row, nan for none."""
    count = chosen.sum(-1, keepdims=True)
    return np.where(count > 0, count, np.nan)


def influence(target: np.ndarray, placements: np.ndarray, patient: np.ndarray) -> np.ndarray:
    """What each test patient adds to the error of an AUC: (..., patient), patients in sorted order.

    Target and placements are (..., image), patient (image,). This is the AUC's influence curve over
    the number of images, summed over a patient's images, which are a cluster (LeDell, Petersen and
    van der Laan, Electronic Journal of Statistics 9:1583, 2015). It is linear: a weighted sum of
    AUCs, or a mean over repetitions, has the weighted sum of these. nan throughout where there are
    no placements, or fewer than two patients of a class.
    """
    cluster = np.unique(patient, return_inverse=True)[1]
    target = np.broadcast_to(target, placements.shape)
    parts = [_by_patient(placements, target == answer, cluster) for answer in (1, 0)]
    few = np.minimum(*(count for _, count in parts)) < 2
    found = parts[0][0] + parts[1][0]
    return np.where(few[..., None] | np.isnan(placements).all(-1, keepdims=True), np.nan, found)


def _by_patient(
    placements: np.ndarray, chosen: np.ndarray, cluster: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each patient's part in the error of the chosen images' mean, and how many have any."""
    chosen = chosen & np.isfinite(placements)
    count = _count(chosen)
    means = np.sum(placements, -1, keepdims=True, where=chosen) / count
    parts = np.where(chosen, placements - means, 0) / count
    rows = np.arange(len(cluster))
    member = scipy.sparse.csr_array((np.ones(len(cluster)), (rows, cluster)))  # (image, patient)
    return np.nan_to_num(parts) @ member, ((chosen @ member) > 0).sum(-1)


def patients_variance(influence: np.ndarray, patients: np.ndarray | int) -> np.ndarray:
    """Variance that a sum of AUCs owes to its test patients, from its influence (..., patient).

    Padding is 0; `patients` says how many there are. One fewer are free, as in any variance.
    """
    return np.square(influence).sum(-1) * patients / np.maximum(np.subtract(patients, 1), 1)


def patients_error(target: np.ndarray, placements: np.ndarray, patient: np.ndarray) -> float:
    """Standard error of one AUC (image,), or the mean of several (question, image), over patients;
    those that are nan throughout are left out. 0, by the method, where every order is right."""
    found = influence(target, placements, patient).reshape(-1, len(np.unique(patient)))
    found = found[np.isfinite(found).all(-1)]
    if not len(found):
        return np.inf
    return float(np.sqrt(patients_variance(found.mean(0), found.shape[-1])))
