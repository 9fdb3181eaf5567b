"""What is read off scores and curves: AUC and its errors, intervals, verdicts, steps to a level.

One rule decides every claim: its 95 % interval lies where the claim says. That is a one-sided test
at 2.5 %; the p values here are twice the one-sided ones, so a claim is decided where p < 0.05.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy  # which loads its parts when they are first used; `stats` takes half a second
import xarray as xr

VERDICTS = ("holds", "differs", "inconclusive", "not testable")
LEVEL = 0.05


class Interval(NamedTuple):
    """A mean over `n` repetitions with its 95 % interval (Student t, `df` degrees of freedom), the
    standard deviation of the repetitions, and of how many test `patients` it is, where these count;
    a `df` of nan stands for n - 1."""

    mean: float
    low: float
    high: float
    sd: float
    n: int
    df: float = np.nan
    patients: int = 0

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the t interval."""
        return self.n - 1 if np.isnan(self.df) else self.df

    @property
    def se(self) -> float:
        """Standard error of the mean, whatever it is made of: the half width over the t quantile;
        inf where the interval is infinite."""
        half = (self.high - self.low) / 2
        return float(half / _quantile(self.freedom)) if np.isfinite(half) else np.inf


class Decision(NamedTuple):
    """A verdict with the p value that decides it where below 0.05."""

    verdict: str
    p: float


class Correlation(NamedTuple):
    """A correlation over `n` points with its 95 % interval and two-sided p value."""

    mean: float
    low: float
    high: float
    n: int
    p: float


# --- scores ----------------------------------------------------------------------------------


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


# --- intervals -------------------------------------------------------------------------------


def interval(values: np.ndarray) -> Interval:
    """Mean over repetitions and its 95 % t interval; nan repetitions (failed runs) are left out.

    With fewer than two repetitions the interval is infinite.
    """
    values = np.asarray(values, float).ravel()
    values = values[np.isfinite(values)]
    n = len(values)
    if n < 2:
        return Interval(float(values.mean()) if n else np.nan, -np.inf, np.inf, np.nan, n)
    sd = float(values.std(ddof=1))
    return students(float(values.mean()), sd / np.sqrt(n), sd, n, n - 1)


def students(mean: float, se: float, sd: float, n: int, df: float) -> Interval:
    """A 95 % interval from a standard error and its degrees of freedom."""
    half = float(_quantile(df) * se)
    return Interval(mean, mean - half, mean + half, sd, n, df)


def _quantile(df: float) -> float:
    return float(scipy.special.stdtrit(df, 1 - LEVEL / 2))


def over_folds(
    values: np.ndarray, influence: np.ndarray | None = None, patients: np.ndarray | None = None
) -> Interval:
    """Mean of an effect (fold, repetition) with its 95 % interval; rules in book/scope.md.

    With the influence (fold, patient) of the effect, averaged over repetitions, and how many
    `patients` each fold tests, the variance is that of the patients and that of training. Training
    varies by what folds vary more than their patients make them, or as repetitions within folds do,
    whichever is more. Without, folds stand for themselves, and where there is but one,
    its repetitions. Runs that failed are nan and left out. Degrees of freedom are those of both
    parts (Welch 1947, Satterthwaite 1946): of few patients with most of the influence they are few.
    """
    values = np.asarray(values, float)
    there = np.isfinite(values).any(1)
    values = values[there]
    counts = np.isfinite(values).sum(1)
    if not len(values):
        return interval(np.array([]))
    means = np.nanmean(values, 1)
    if influence is None or patients is None:
        found = interval(means if len(means) > 1 else values)
        return found._replace(n=int(counts.sum()))
    influence, patients = influence[there], patients[there]
    shared = patients_variance(influence, patients)
    repeated = counts.sum() > len(counts)
    if not (np.isfinite(shared).all() and (repeated or len(means) > 1)):
        return Interval(means.mean(), -np.inf, np.inf, np.nan, int(counts.sum()))
    seen = shared.sum() / len(means) ** 2
    trained, uncertain, free = _training(values, counts, shared.mean())
    total = seen + trained
    inner = seen**2 / _effective(influence, patients) + uncertain**2 / free
    df = total**2 / inner if inner else np.inf
    spread = float(np.nanstd(values, ddof=1))
    found = students(float(means.mean()), float(np.sqrt(total)), spread, int(counts.sum()), df)
    return found._replace(patients=int(patients.sum()))


def _training(values: np.ndarray, counts: np.ndarray, shared: float) -> tuple[float, float, int]:
    """Variance that the mean owes to training, that of which it is (a part of) an estimate, and the
    latter's degrees of freedom."""
    folds, free = len(values), int((counts - 1).sum())
    found = [(0.0, 0.0, 1)]
    if free:
        within = np.nansum((values - np.nanmean(values, 1, keepdims=True)) ** 2) / free
        repeated = float(within * (1 / counts).sum() / folds**2)
        found.append((repeated, repeated, free))
    if folds > 1:
        between = float(np.nanmean(values, 1).var(ddof=1)) / folds
        found.append((between - shared / folds, between, folds - 1))
    return max(found)


def _effective(influence: np.ndarray, patients: np.ndarray) -> float:
    """How many patients there would be if each had the same influence: of a sum of squares of which
    a few are most, the error is that of a few. At most those that are free."""
    squares = np.square(influence)
    fourth = np.square(squares).sum()
    same = squares.sum() ** 2 / fourth if fourth else np.inf
    return float(np.clip(same, 1, (patients - 1).sum()))


def level(
    values: np.ndarray, influence: np.ndarray | None = None, patients: np.ndarray | None = None
) -> Interval:
    """`over_folds` of an AUC itself, its interval taken on the scale of log odds: near 1 an AUC
    falls short by more than it exceeds."""
    found = over_folds(values, influence, patients)
    if not (0 < found.mean < 1 and np.isfinite(found.low)):
        return found._replace(low=max(0.0, found.low), high=min(1.0, found.high))
    half = (found.high - found.low) / 2 / (found.mean * (1 - found.mean))
    ends = scipy.special.expit(scipy.special.logit(found.mean) + np.array([-half, half]))
    return found._replace(low=float(ends[0]), high=float(ends[1]))


def detectable(effect: Interval, power: float = 0.8) -> float:
    """Smallest true effect that a two-sided 5 % t test of this standard error finds with `power`
    (0.05 to 0.99): what an inconclusive result could have shown. inf for fewer than two runs.

    Exact by the noncentral t distribution; a finding of the wrong sign does not count.
    """
    if not np.isfinite(effect.se):
        return np.inf
    least = _quantile(effect.freedom)
    return float(scipy.special.nctdtrinc(effect.freedom, 1 - power, least) * effect.se)


def rank_correlation(x: np.ndarray, y: np.ndarray) -> Correlation:
    """Spearman's rho of two (point,) arrays; points with a nan are left out.

    The interval is by Fisher's z of the ranks, (-1, 1) for fewer than four points. p is by
    permutation, exact up to seven points. Constant ranks have no correlation: nan, p = 1.
    """
    there = np.isfinite(x) & np.isfinite(y)
    x, y = (pd.Series(np.asarray(values)[there]).rank().to_numpy() for values in (x, y))
    n = len(x)
    if n < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(np.nan, -1.0, 1.0, n, 1.0)
    if n == 2:  # in one order or the other
        return Correlation(float(np.sign((x[1] - x[0]) * (y[1] - y[0]))), -1.0, 1.0, n, 1.0)
    shuffled = scipy.stats.PermutationMethod(n_resamples=9999, rng=np.random.default_rng(0))
    rho, p = scipy.stats.pearsonr(x, y, method=shuffled)
    return Correlation(float(rho), *_fisher(float(rho), n), n, float(p))


def _fisher(rho: float, n: int) -> tuple[float, float]:
    """As scipy's `pearsonr`, which however is certain of +-1: that counts as half a step less."""
    if n < 4:
        return -1.0, 1.0
    most = 1 - 6 / (n**3 - n)
    z = np.arctanh(np.clip(rho, -most, most))
    half = scipy.special.ndtri(1 - LEVEL / 2) / np.sqrt(n - 3)
    return min(rho, float(np.tanh(z - half))), max(rho, float(np.tanh(z + half)))


# --- verdicts --------------------------------------------------------------------------------


def p_positive(effect: Interval, margin: float = 0.0) -> float:
    """p for an effect above `margin`; below 0.05 where the interval lies above it."""
    return _p(effect.mean - margin, effect)


def p_negative(effect: Interval, margin: float = 0.0) -> float:
    """p for an effect below `margin`; below 0.05 where the interval lies below it."""
    return _p(margin - effect.mean, effect)


def p_equivalent(effect: Interval, margin: float) -> float:
    """p for an effect within +- `margin`: two one-sided tests (Schuirmann 1987), at 2.5 % each."""
    return max(p_positive(effect, -margin), p_negative(effect, margin))


def p_beyond(effect: Interval, margin: float) -> float:
    """p for an effect beyond +- `margin`, on the side of the mean."""
    return min(p_positive(effect, margin), p_negative(effect, -margin))


def _p(excess: float, effect: Interval) -> float:
    """Twice the one-sided p of a mean that exceeds a bound; 1 where it does not, or has no error
    to compare with."""
    if not (excess > 0 and np.isfinite(effect.se)):
        return 1.0
    return float(2 * scipy.special.stdtr(effect.freedom, -excess / effect.se)) if effect.se else 0.0


def decide_equivalent(effect: Interval, margin: float) -> Decision:
    """`holds` if the 95 % interval lies within +- margin, `differs` if beyond it, else neither.

    Stricter than two one-sided tests at 5 %, which would ask this of the 90 % interval.
    """
    return _decide(p_equivalent(effect, margin), p_beyond(effect, margin))


def decide_positive(effect: Interval, margin: float = 0.0) -> Decision:
    """`holds` if the 95 % interval lies above `margin`, `differs` if below it."""
    return _decide(p_positive(effect, margin), p_negative(effect, margin))


def _decide(holds: float, differs: float) -> Decision:
    p = min(holds, differs)
    if p >= LEVEL:
        return Decision("inconclusive", p)
    return Decision("holds" if holds < differs else "differs", p)


def equivalence(effect: Interval, margin: float) -> str:
    """The verdict of `decide_equivalent`."""
    return decide_equivalent(effect, margin).verdict


def positive(effect: Interval, margin: float = 0.0) -> str:
    """The verdict of `decide_positive`."""
    return decide_positive(effect, margin).verdict


def adjusted(p: np.ndarray) -> np.ndarray:
    """p values of any shape, adjusted for the false discovery rate among them (Benjamini & Hochberg
    1995); nan stays nan and does not count. As scipy.stats has it, which takes half a second to
    load, at every page."""
    found = np.array(p, float)
    known = np.flatnonzero(np.isfinite(found))
    falling = known[np.argsort(found.flat[known])[::-1]]
    share = len(known) / np.arange(len(known), 0, -1)
    found.flat[falling] = np.minimum.accumulate(found.flat[falling] * share).clip(max=1.0)
    return found


# --- steps to a level ------------------------------------------------------------------------


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
