"""What is read off scores and curves: AUC and its errors, intervals, verdicts, steps to a level.

One rule decides every claim: its 95 % interval lies where the claim says. That is a one-sided test
at 2.5 %; the p values here are twice the one-sided ones, so a claim is decided where p < 0.05.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy  # which loads `scipy.stats` when it is first used
import xarray as xr

VERDICTS = ("holds", "holds in part", "differs", "inconclusive")
LEVEL = 0.05


class Interval(NamedTuple):
    """A mean over `n` repetitions with its 95 % interval (Student t, `df` degrees of freedom) and
    the standard deviation of the repetitions; a `df` of nan stands for n - 1."""

    mean: float
    low: float
    high: float
    sd: float
    n: int
    df: float = np.nan

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


class Speedup(NamedTuple):
    """Steps of one arm over steps of another: log2 of the ratio, which is only a `bound` ("",
    "at least", "at most" or "unknown") where `never` > 0 runs do not get there."""

    log2: Interval
    bound: str
    never: int
    decision: Decision


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
    from sklearn.metrics import roc_auc_score  # loads for a second

    known = target >= 0
    if len(np.unique(target[known])) < 2:
        return np.nan
    return float(roc_auc_score(target[known], scores[known]))


def average_precision(target: np.ndarray, scores: np.ndarray, positive_from: int) -> float:
    """Area under the precision-recall curve of grade >= `positive_from`."""
    from sklearn.metrics import average_precision_score  # loads for a second

    return float(average_precision_score(target >= positive_from, scores[:, positive_from:].sum(1)))


def accuracy(target: np.ndarray, scores: np.ndarray, top: int = 1) -> float:
    """Share of images whose class (image,) is among the `top` of its scores (image, class).

    Raises ValueError for a target that is no class, or scores that are not finite.
    """
    from sklearn.metrics import top_k_accuracy_score  # loads for a second

    # One more class, never chosen, spares two classes, or as many as `top`, a rule of their own.
    padded = np.column_stack([scores, np.full(len(scores), np.min(scores) - 1.0)])
    classes = np.arange(padded.shape[1])
    top = min(top, len(classes) - 1)
    return float(top_k_accuracy_score(target, padded, k=top, labels=classes))


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
    return scipy.stats.rankdata(np.where(chosen, scores, np.nan), axis=-1, nan_policy="omit")


def _count(chosen: np.ndarray) -> np.ndarray:
    """How many are chosen in each row, nan for none."""
    count = chosen.sum(-1, keepdims=True)
    return np.where(count > 0, count, np.nan)


def patients_covariance(
    target: np.ndarray, placements: np.ndarray, patient: np.ndarray
) -> tuple[np.ndarray, int]:
    """Covariance (arm, arm) that AUCs owe to the test patients they share, and how many these are.

    Target and placements are (arm, image); images of a patient (image,) are a cluster, as in
    Obuchowski (Biometrics 53:567, 1997), and with one image a patient this is the covariance of
    DeLong et al. Placements may be means over seeds. A weighted sum of AUCs has the variance
    w' covariance w. inf for fewer than two patients of a class, or an arm without placements.
    """
    cluster = np.unique(patient, return_inverse=True)[1]
    positive, negative = (_by_patient(placements, target == c, cluster) for c in (1, 0))
    patients = len(np.unique(cluster[(target >= 0).any(0)]))
    both = _product(positive[0], negative[0], patients)
    found = sum(_product(parts, parts, n) for parts, n in (positive, negative)) + both + both.T
    missing = ~np.isfinite(placements).any(1) | (min(positive[1], negative[1]) < 2)
    return np.where(missing[:, None] | missing, np.inf, found), patients


def patients_error(
    target: np.ndarray, placements: np.ndarray, patient: np.ndarray
) -> tuple[float, int]:
    """Standard error of one AUC (image,), or the mean of several (..., image), from
    `patients_covariance`; those that are nan throughout are left out. 0, by the method, where every
    order is right."""
    rows = placements.reshape(-1, placements.shape[-1])
    target = np.broadcast_to(target, placements.shape).reshape(rows.shape)
    kept = np.isfinite(rows).any(1)
    if not kept.any():
        return np.inf, 0
    covariance, patients = patients_covariance(target[kept], rows[kept], patient)
    return float(np.sqrt(max(covariance.mean(), 0))), patients


def _by_patient(
    rows: np.ndarray, chosen: np.ndarray, cluster: np.ndarray
) -> tuple[np.ndarray, int]:
    """Each patient's part (arm, patient) in the error of the chosen images' mean; how many patients
    have any."""
    chosen = chosen & np.isfinite(rows)
    count = _count(chosen)
    means = np.sum(rows, 1, keepdims=True, where=chosen) / count
    parts = np.where(chosen, rows - means, 0) / count
    sums = np.stack([np.bincount(cluster, np.nan_to_num(part)) for part in parts])
    return sums, len(np.unique(cluster[chosen.any(0)]))


def _product(a: np.ndarray, b: np.ndarray, n: int) -> np.ndarray:
    return a @ b.T * n / max(n - 1, 1)


# --- intervals -------------------------------------------------------------------------------


def interval(values: np.ndarray, step: float = 0.0) -> Interval:
    """Mean over repetitions and its 95 % t interval; nan repetitions (failed runs) are left out.

    Values that are counted in steps get the variance within a step (Sheppard's step^2 / 12) added:
    repetitions that happen to agree are not known exactly. With fewer than two repetitions the
    interval is infinite.
    """
    values = np.asarray(values, float).ravel()
    values = values[np.isfinite(values)]
    n = len(values)
    if n < 2:
        return Interval(float(values.mean()) if n else np.nan, -np.inf, np.inf, np.nan, n)
    sd = float(np.hypot(values.std(ddof=1), step / np.sqrt(12)))
    return _students(float(values.mean()), sd / np.sqrt(n), sd, n, n - 1)


def _students(mean: float, se: float, sd: float, n: int, df: float) -> Interval:
    half = float(_quantile(df) * se)
    return Interval(mean, mean - half, mean + half, sd, n, df)


def _quantile(df: float) -> float:
    return float(scipy.stats.t.ppf(1 - LEVEL / 2, df))


def with_patients(effect: Interval, error: float, patients: int) -> Interval:
    """The interval over seeds widened by the `error` that they share, that of `patients_error`.

    Variances add, with degrees of freedom by Welch (1947) and Satterthwaite (1946). Noise of single
    seeds on single patients enters both, so the interval is if anything a little too wide.
    """
    if error == 0:
        return effect
    if not np.isfinite(effect.se + error):
        return effect._replace(low=-np.inf, high=np.inf, df=np.nan)
    seeds, shared = effect.se**2, error**2
    df = (seeds + shared) ** 2 / (seeds**2 / effect.freedom + shared**2 / (patients - 1))
    return _students(effect.mean, np.sqrt(seeds + shared), effect.sd, effect.n, df)


def detectable(effect: Interval, power: float = 0.8) -> float:
    """Smallest true effect that a two-sided 5 % t test of this standard error finds with `power`
    (0.05 to 0.99): what an inconclusive result could have shown. inf for fewer than two runs.

    Exact by the noncentral t distribution; a finding of the wrong sign does not count.
    """
    if not np.isfinite(effect.se):
        return np.inf
    df, least = effect.freedom, _quantile(effect.freedom)
    excess = scipy.optimize.brentq(lambda d: scipy.stats.nct.sf(least, df, d) - power, 0, 6 * least)
    return float(excess * effect.se)


def rank_correlation(x: np.ndarray, y: np.ndarray) -> Correlation:
    """Spearman's rho of two (point,) arrays; points with a nan are left out.

    The interval is by Fisher's z of the ranks, (-1, 1) for fewer than four points. p is by
    permutation, exact up to seven points. Constant ranks have no correlation: nan, p = 1.
    """
    there = np.isfinite(x) & np.isfinite(y)
    x, y = (scipy.stats.rankdata(np.asarray(values)[there]) for values in (x, y))
    n = len(x)
    if n < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(np.nan, -1.0, 1.0, n, 1.0)
    shuffled = scipy.stats.PermutationMethod(n_resamples=9999, rng=np.random.default_rng(0))
    rho, p = scipy.stats.pearsonr(x, y, method=shuffled)
    return Correlation(float(rho), *_fisher(float(rho), n), n, float(p))


def _fisher(rho: float, n: int) -> tuple[float, float]:
    """As scipy's `pearsonr`, which however is certain of +-1: that counts as half a step less."""
    if n < 4:
        return -1.0, 1.0
    most = 1 - 6 / (n**3 - n)
    z = np.arctanh(np.clip(rho, -most, most))
    half = scipy.stats.norm.ppf(1 - LEVEL / 2) / np.sqrt(n - 3)
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
    return float(2 * scipy.stats.t.sf(excess / effect.se, effect.freedom)) if effect.se else 0.0


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


def overall(verdicts: list[str]) -> str:
    """One verdict on a claim about all networks.

    `holds` if it holds for each, `holds in part` if for some, `differs` if it holds for none and
    fails for at least one, else `inconclusive`.
    """
    found = set(verdicts)
    if "holds" in found:
        return "holds" if found == {"holds"} else "holds in part"
    return "differs" if "differs" in found else "inconclusive"


def adjusted(p: np.ndarray) -> np.ndarray:
    """p values of any shape, adjusted for the false discovery rate among them (Benjamini & Hochberg
    1995); nan stays nan and does not count."""
    found = np.array(p, float)
    known = np.isfinite(found)
    found[known] = scipy.stats.false_discovery_control(found[known])
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


def log_rank(a: np.ndarray, b: np.ndarray, end: float) -> float:
    """Two-sided p for runs (run,) of two arms reaching a level equally fast, by the log-rank test
    (Mantel 1966).

    Steps of inf are runs that never do, right-censored at their length `end`; nan, failed runs, are
    left out. The statistic's distribution is that over ways to deal the runs to the arms (all of
    them up to six runs an arm), as the usual normal one finds too much in so few runs: three
    against three, all faster, are 0.02 by it, yet happen by chance one time in ten.
    """
    return _log_rank(a, b, end)[1]


def _log_rank(a: np.ndarray, b: np.ndarray, end: float) -> tuple[float, float]:
    """Statistic, positive where `a` is the faster, and p."""
    a, b = _known(a), _known(b)
    if min(len(a), len(b)) < 2 or len(np.unique(np.concatenate([a, b]))) < 2:
        return 0.0, 1.0
    found = scipy.stats.permutation_test(
        (a, b),
        lambda a, b: scipy.stats.logrank(_censored(a, end), _censored(b, end)).statistic,
        n_resamples=2000,
        rng=np.random.default_rng(0),
    )
    return float(found.statistic), float(found.pvalue)


def _known(steps: np.ndarray) -> np.ndarray:
    steps = np.asarray(steps, float)
    return steps[~np.isnan(steps)]


def _censored(steps: np.ndarray, end: float) -> scipy.stats.CensoredData:
    return scipy.stats.CensoredData.right_censored(np.minimum(steps, end), np.isinf(steps))


def speedup(random: np.ndarray, other: np.ndarray, end: float) -> Speedup:
    """Steps of random init over steps of another, both (seed,), and whether the other is faster.

    If all runs get there, the mean log2 ratio of paired seeds, its t interval, and the verdict of
    `decide_positive`. A run that never does (inf) counts with its length `end`, so that the ratio
    is a bound, its interval open to one side or both; `log_rank` decides then. nan, failed runs,
    are left out; fewer than two runs of an arm are inconclusive.
    """
    ratio = interval(np.log2(np.minimum(random, end) / np.minimum(other, end)))
    slow, late = np.isinf(random).sum(), np.isinf(other).sum()
    if slow + late == 0:
        return Speedup(ratio, "", 0, decide_positive(ratio))
    bound = "unknown" if slow and late else "at least" if slow else "at most"
    ratio = ratio._replace(
        low=-np.inf if late else ratio.low, high=np.inf if slow else ratio.high, df=np.nan
    )
    return Speedup(ratio, bound, int(slow + late), _faster(random, other, end))


def decide_faster(random: np.ndarray, other: np.ndarray, end: float) -> Decision:
    """`holds` if the other init reaches the level sooner than random init; as in `speedup`."""
    return speedup(random, other, end).decision


def _faster(random: np.ndarray, other: np.ndarray, end: float) -> Decision:
    lead, p = _log_rank(other, random, end)
    return _decide(p, 1.0) if lead > 0 else _decide(1.0, p)
