"""What is read off scores and curves: AUC, intervals over seeds, equivalence, steps to a level."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

VERDICTS = ("holds", "holds in part", "differs", "inconclusive")


class Interval(NamedTuple):
    """A mean over `n` repetitions with its 95 % interval (Student t) and standard deviation."""

    mean: float
    low: float
    high: float
    sd: float
    n: int


def auc(target: np.ndarray, scores: np.ndarray, positive_from: int | None = None) -> float:
    """Area under the ROC curve, nan where only one class occurs.

    Grades: target (image,), scores (image, grade) as probabilities, the AUC of grade >=
    `positive_from`. Findings: target and scores (image, finding), mean over findings. Classes
    (`positive_from` None, target (image,)): mean of each class against the rest.
    """
    if target.ndim == 2:
        return float(np.mean([_binary(t, s) for t, s in zip(target.T, scores.T, strict=True)]))
    if positive_from is not None:
        return _binary(target >= positive_from, scores[:, positive_from:].sum(1))
    classes = range(scores.shape[1])
    return float(np.nanmean([_binary(target == c, scores[:, c]) for c in classes]))


def average_precision(target: np.ndarray, scores: np.ndarray, positive_from: int) -> float:
    """Area under the precision-recall curve of grade >= `positive_from`."""
    return float(average_precision_score(target >= positive_from, scores[:, positive_from:].sum(1)))


def _binary(target: np.ndarray, scores: np.ndarray) -> float:
    return float(roc_auc_score(target, scores)) if np.ptp(np.asarray(target, int)) else np.nan


def interval(values: np.ndarray) -> Interval:
    """Mean over repetitions and its 95 % t interval; nan repetitions (failed runs) are left out."""
    values = np.asarray(values, float).ravel()
    values = values[np.isfinite(values)]
    if len(values) < 2:
        mean = float(values.mean()) if len(values) else np.nan
        return Interval(mean, -np.inf, np.inf, np.nan, len(values))
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * sd / np.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, sd, len(values))


def equivalence(effect: Interval, margin: float) -> str:
    """`holds` if the 95 % interval lies within +- margin, `differs` if beyond it, else neither.

    Stricter than two one-sided tests at 5 %, which would ask this of the 90 % interval.
    """
    if -margin < effect.low and effect.high < margin:
        return "holds"
    return "differs" if effect.low > margin or effect.high < -margin else "inconclusive"


def positive(effect: Interval, margin: float = 0.0) -> str:
    """`holds` if the 95 % interval lies above `margin`, `differs` if below it."""
    if effect.low > margin:
        return "holds"
    return "differs" if effect.high < margin else "inconclusive"


def overall(verdicts: list[str]) -> str:
    """One verdict on a claim about all networks.

    `holds` if it holds for each, `holds in part` if for some, `differs` if it holds for none and
    fails for at least one, else `inconclusive`.
    """
    found = set(verdicts)
    if "holds" in found:
        return "holds" if found == {"holds"} else "holds in part"
    return "differs" if "differs" in found else "inconclusive"


def steps_to(level: float, steps: np.ndarray, curve: np.ndarray) -> float:
    """First step at which a curve reaches `level`, linear between points; inf if it never does."""
    reached = np.flatnonzero(curve >= level)
    if len(reached) == 0:
        return np.inf
    i = int(reached[0])
    if i == 0:
        return float(steps[0])
    share = (level - curve[i - 1]) / (curve[i] - curve[i - 1])
    return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))
