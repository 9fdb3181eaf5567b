"""Sums of arms with their errors, and what decides a claim.

An `Effect` has a number a row, each a weighted sum of arms, and is decided by one: their mean over
the rows whose networks have learned. Rows that compare networks of which none has are not testable
(rules in book/scope.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from transfusion.statistics import intervals, metrics

Decide = Callable[[intervals.Interval], intervals.Decision]
NOT_TESTABLE = intervals.Decision("not testable", 1.0)
Arms = list[tuple[float, xr.Dataset]]  # with their weights in a sum


class Effect(NamedTuple):
    """Rows of what is measured, each a sum of arms under its labels (`keys`), and how they are
    decided; `testable` are the rows whose networks have learned."""

    name: str
    keys: tuple[str, ...]
    rows: dict[tuple, Arms]
    testable: set[tuple]
    decide: Decide
    unit: str = " points"
    digits: int = 1


# --- sums of arms --------------------------------------------------------------------------------


def arm(results: xr.Dataset, **labels: object) -> xr.Dataset:
    """Test AUC of one arm, `value` (fold, seed), with its influence (fold, patient)."""
    one = results.sel(labels, drop=True)
    names = [name for name in ("test_auc", "influence", "patients") if name in one]
    return one[names].rename(test_auc="value")


def baseline(results: xr.Dataset, name: str) -> xr.Dataset:
    """As `arm`, of statistics or the thumbnail; it has no repetitions."""
    return _without_training(results, "baseline", baseline=name)


def probe(results: xr.Dataset, **labels: object) -> xr.Dataset:
    """As `arm`, of frozen features."""
    return _without_training(results, "probe", **labels)


def _without_training(results: xr.Dataset, kind: str, **labels: object) -> xr.Dataset:
    one = results[[f"{kind}_auc", f"{kind}_influence", "patients"]].sel(labels, drop=True)
    names = {f"{kind}_auc": "value", f"{kind}_influence": "influence"}
    return one.rename(names)


def combined(arms: Arms) -> intervals.Interval:
    """A weighted sum of arms, paired over folds and repetitions, less those in which any failed."""
    return intervals.over_folds(*summed(arms))


def summed(arms: Arms) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Values (fold, repetition), influence (fold, patient) and patients (fold,) of a sum."""
    weights = [weight for weight, _ in arms]
    paired = xr.align(*(one["value"] for _, one in arms), join="inner")  # repetitions of all alone
    values = sum(w * _by_fold(one, "seed") for w, one in zip(weights, paired, strict=True))
    if not all("influence" in one for _, one in arms):
        return np.asarray(values), None, None
    influence = sum(weight * _padded(_by_fold(one["influence"], "patient")) for weight, one in arms)
    return np.asarray(values), np.asarray(influence), arms[0][1]["patients"].values


def _by_fold(values: xr.DataArray, other: str) -> np.ndarray:
    """(fold, other), of length 1 where values have no such dimension; numpy adds much faster."""
    if other not in values.dims:
        return values.transpose("fold").values[:, None]
    return values.transpose("fold", other).values


def _padded(influence: np.ndarray) -> np.ndarray:
    """0 for patients that a fold has not; nan for all where none is known."""
    known = ~np.isnan(influence).all(1, keepdims=True)
    return np.where(known, np.nan_to_num(influence), np.nan)


def scaled(weight: float, arms: Arms) -> Arms:
    return [(weight * w, one) for w, one in arms]


def mean(sums: Iterable[Arms]) -> Arms:
    """The mean of several sums, as one sum."""
    sums = list(sums)
    return [each for arms in sums for each in scaled(1 / len(sums), arms)]


def difference(results: xr.Dataset, one: dict, other: dict) -> Arms:
    """One arm's test AUC minus another's, in points; nothing where one was never run."""
    if not (has(results, **one) and has(results, **other)):
        return []
    return [(100, arm(results, **one)), (-100, arm(results, **other))]


def has(results: xr.Dataset, **labels: object) -> bool:
    """Whether these results have an arm that ended at least once."""
    name = "test_auc" if "test_auc" in results else "auc"
    if any(label not in results[dim].values for dim, label in labels.items()):
        return False
    return bool(results[name].sel(labels).notnull().any())


# --- an effect, decided --------------------------------------------------------------------------


def contrast(effect: Effect) -> intervals.Interval | None:
    """The one number that decides: the mean over testable rows; None where there is none."""
    rows = [arms for label, arms in effect.rows.items() if label in effect.testable]
    return combined(mean(rows)) if rows else None


def decision(effect: Effect) -> intervals.Decision:
    found = contrast(effect)
    return NOT_TESTABLE if found is None else effect.decide(found)


def listed(effect: Effect) -> pd.DataFrame:
    """All rows: each with its 95 % interval and what it would say by itself."""
    found = measured(effect.name, effect.keys, effect.rows)
    keys = [label if isinstance(label, tuple) else (label,) for label in found.index]
    said = [
        effect.decide(as_interval(row, effect.name)) if key in effect.testable else NOT_TESTABLE
        for key, (_, row) in zip(keys, found.iterrows(), strict=True)
    ]
    return found.assign(verdict=[d.verdict for d in said], p=[d.p for d in said])


def count_rows(effect: Effect) -> tuple[int, int, int]:
    """How many rows hold by themselves, how many differ, and how many there are."""
    verdicts = list(listed(effect)["verdict"])
    return verdicts.count("holds"), verdicts.count("differs"), len(verdicts)


def without_fold(effect: Effect, fold: int) -> Effect | None:
    """The same without one fold; None where that leaves fewer than two."""

    def left(one: xr.Dataset) -> xr.Dataset:
        return one.sel(fold=one.fold != fold)

    rows = {label: [(w, left(one)) for w, one in arms] for label, arms in effect.rows.items()}
    folds = {one.sizes["fold"] for arms in rows.values() for _, one in arms}
    return effect._replace(rows=rows) if min(folds, default=0) > 1 else None


def foreseen(effect: Effect, folds: int, repetitions: int) -> intervals.Interval:
    """What the mean of all rows would be known by from so many folds and repetitions, if patients
    and trainings vary as in the repetitions of these folds."""
    values, influence, patients = summed(mean(effect.rows.values()))
    found = intervals.over_folds(values, influence, patients)
    if influence is None or patients is None or not np.isfinite(found.low):
        return found
    seen = float(metrics.patients_variance(influence, patients).mean()) / folds
    trained = float(np.nanvar(values, axis=1, ddof=1).mean()) / folds / repetitions
    repeated = folds * (repetitions - 1) or max(1, folds - 1)
    known = folds * max(1, int(patients.mean()) - 1)
    df = (seen + trained) ** 2 / (seen**2 / known + trained**2 / repeated)
    se = float(np.sqrt(seen + trained))
    return intervals.students(found.mean, se, found.sd, folds * repetitions, df)


# --- rules ---------------------------------------------------------------------------------------


def equivalent(margin: float) -> Decide:
    """No more than the margin, either way."""
    return lambda effect: intervals.decide_equivalent(effect, margin)


def above(effect: intervals.Interval) -> intervals.Decision:
    return intervals.decide_positive(effect)


def below(effect: intervals.Interval) -> intervals.Decision:
    """As `above`, of what is claimed to be negative."""
    turned = effect._replace(mean=-effect.mean, low=-effect.high, high=-effect.low)
    return above(turned)


def not_worse(margin: float) -> Decide:
    """Not behind by more than the margin."""
    return lambda effect: intervals.decide_positive(effect, -margin)


# --- rates, and effects as rows ------------------------------------------------------------------


def rates(results: xr.Dataset) -> dict[float | None, xr.Dataset]:
    """Results at each of the equal rates of a chapter, or all under None where each arm has its
    own."""
    if "lr" not in results.dims:
        return {None: results}
    return {float(rate): results.sel(lr=rate, drop=True) for rate in results.lr.values}


def by_rate(
    measure: Callable[[xr.Dataset], pd.DataFrame | Effect], results: xr.Dataset
) -> pd.DataFrame:
    """A table, or that of an effect, at each equal rate, below each other."""
    parts = {}
    for rate, one in rates(results).items():
        found = measure(one)
        parts[rate] = listed(found) if isinstance(found, Effect) else found
    if list(parts) == [None]:
        return parts[None]
    return pd.concat(parts, names=["lr"])


def measured(name: str, keys: Iterable[str], rows: dict[tuple, Arms]) -> pd.DataFrame:
    """Sums of arms as a table, by their labels; those that lack an arm have none."""
    keys = list(keys)
    found = [
        dict(zip(keys, label, strict=True)) | effect_row(name, combined(arms))
        for label, arms in rows.items()
        if arms
    ]
    return as_table(found, keys, name)


def effect_row(name: str, effect: intervals.Interval) -> dict:
    """An interval spread over columns."""
    low, high = effect.low, effect.high
    row = {name: effect.mean, "low": low, "high": high, "sd": effect.sd, "n": effect.n}
    return row | {"df": effect.df, "patients": effect.patients}


def as_interval(row: pd.Series, name: str) -> intervals.Interval:
    """The inverse of `effect_row`."""
    ends = (row[name], row["low"], row["high"], row["sd"], int(row["n"]))
    return intervals.Interval(*ends, row.get("df", np.nan), int(row.get("patients", 0)))


def as_table(rows: list[dict], keys: list[str], name: str) -> pd.DataFrame:
    """Rows by their keys, less what no repetition tells of; without any, a table with its columns
    all the same."""
    rows = [row for row in rows if row["n"]]
    if rows:
        return pd.DataFrame(rows).set_index(keys)
    numbers = [name, "low", "high", "sd", "n", "df", "patients", "p", "level", "never"]
    columns = {key: pd.Series(dtype=object) for key in [*keys, "verdict", "bound", "learned"]}
    return pd.DataFrame(columns | {n: pd.Series(dtype=float) for n in numbers}).set_index(keys)


def stacked(parts: dict, name: str) -> pd.DataFrame:
    """Tables by model as one, by model and what tells them apart."""
    full = {key: part for key, part in parts.items() if len(part)} or parts
    return pd.concat(full, names=[name]).reorder_levels(["model", name])


def decimals(effect: intervals.Interval, digits: int) -> int:
    """How many to show: one more where the interval is narrower than ten steps of the last."""
    return digits + (effect.high - effect.low < 10.0 ** (1 - digits))


def interval_text(effect: intervals.Interval, digits: int = 1, unit: str = "") -> str:
    """`+0.4 points [-0.1, 0.9] (n = 5, 140 patients)`: a number never travels alone."""
    # `z`: what rounds to nought is +0.0, never -0.0.
    digits = decimals(effect, digits)
    ends = f"[{effect.low:+z.{digits}f}, {effect.high:+z.{digits}f}]"
    of = f", {effect.patients:,} patients" if effect.patients else ""
    return f"{effect.mean:+z.{digits}f}{unit} {ends} (n = {effect.n}{of})"
