"""Intervals over folds and patients, and verdicts.

One rule decides every claim: its 95 % interval lies where the claim says. That is a one-sided test
at 2.5 %; the p values here are twice the one-sided ones, so a claim is decided where p < 0.05.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy  # which loads its parts when they are first used; `stats` takes half a second

from transfusion.statistics import metrics

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
    shared = metrics.patients_variance(influence, patients)
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


def auc_interval(
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
