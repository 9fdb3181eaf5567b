"""What is measured of test AUC and of learning, and how it is decided (rules in book/scope.md).

An `Effect` has a number a row, each a weighted sum of arms, and is decided by one: their mean over
the rows whose networks have learned. Rows that compare networks of which none has are not testable.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy
import xarray as xr

from transfusion import config, figures, metrics

# Fixed before the runs, with their reasons in book/scope.md.
POINT = 1.0  # of AUC: the margin of "no difference", the paper's gains on full data being below 0.3
ERROR_SHARE = 0.25  # of 1 - AUC of the random arms: the margin where that is smaller
REACH = 0.9  # of the random init's final gain over chance, as 0.91 is of the paper's 0.953
LOOSE = 0.5  # a rank correlation
LARGE = "resnet50"
NOT_SMALL = (LARGE, "inception_v3", config.SLIM)
BOTH = ["random", "transfer"]
SIMPLE = ["statistics", "thumbnail"]  # the baselines that a network must exceed to have learned
POINTS = " points"

Decide = Callable[[metrics.Interval], metrics.Decision]
Arms = list[tuple[float, xr.Dataset]]  # with their weights in a sum


class Effect(NamedTuple):
    """Rows of what is measured, each a sum of arms under its labels (`keys`), and how they are
    decided; `testable` are the rows whose networks have learned."""

    name: str
    keys: tuple[str, ...]
    rows: dict[tuple, Arms]
    testable: set[tuple]
    decide: Decide
    unit: str = POINTS
    digits: int = 1


# --- sums of arms ----------------------------------------------------------------------------


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


def combined(arms: Arms) -> metrics.Interval:
    """A weighted sum of arms, paired over folds and repetitions, less those in which any failed."""
    return metrics.over_folds(*_summed(arms))


def _summed(arms: Arms) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Values (fold, repetition), influence (fold, patient) and patients (fold,) of a sum."""
    values = _add([weight * one["value"] for weight, one in arms])
    if "seed" not in values.dims:
        values = values.expand_dims(seed=[0])
    found = values.transpose("fold", "seed").values
    if not all("influence" in one for _, one in arms):
        return found, None, None
    influence = _add([weight * _padded(one["influence"]) for weight, one in arms])
    return found, influence.transpose("fold", "patient").values, arms[0][1]["patients"].values


def _padded(influence: xr.DataArray) -> xr.DataArray:
    """0 for patients that a fold has not; nan for all where none is known."""
    return influence.fillna(0).where(influence.notnull().any("patient"))


def _add(parts: list[xr.DataArray]) -> xr.DataArray:
    return functools.reduce(operator.add, parts)


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


# --- the gate --------------------------------------------------------------------------------


def learned(results: xr.Dataset) -> set[tuple[str, str]]:
    """The arms (model, init) that have learned: test AUC above that of both simple baselines, each
    difference with its 95 % interval. None where no baseline was computed."""
    table = levels(results)
    return {key for key, row in table.iterrows() if row["learned"]}


def levels(results: xr.Dataset) -> pd.DataFrame:
    """Test AUC of every arm in percent with its 95 % interval, what it is above each simple
    baseline, in points, and whether it has learned."""
    rows = []
    for model, init in itertools.product(results.model.values, results.init.values):
        if has(results, model=model, init=init):
            one = arm(results, model=model, init=init)
            row = {"model": str(model), "init": str(init), **effect_row("AUC", level([one]))}
            rows.append(row | _above(results, one))
    return as_table(rows, ["model", "init"], "AUC")


def _above(results: xr.Dataset, one: xr.Dataset) -> dict:
    if "baseline_auc" not in results:
        return {"learned": False}
    more = {
        name: combined([(100, one), (-100, baseline(results, name))])
        for name in SIMPLE
        if name in results.baseline.values
    }
    found = {f"above {name}": effect.mean for name, effect in more.items()}
    found |= {f"above {name} from": effect.low for name, effect in more.items()}
    return found | {"learned": len(more) == len(SIMPLE) and all(e.low > 0 for e in more.values())}


def level(arms: list[xr.Dataset]) -> metrics.Interval:
    """Mean AUC of arms in percent, its interval on the scale of log odds."""
    found = metrics.level(*_summed(mean([(1.0, one)] for one in arms)))
    ends = {name: 100 * getattr(found, name) for name in ("mean", "low", "high", "sd")}
    return found._replace(**ends)


def baseline_levels(results: xr.Dataset) -> pd.DataFrame:
    """AUC of every baseline in percent: statistics, the thumbnail, and frozen features by model.
    On one split its interval is over patients alone."""
    rows = []
    for name in results.baseline.values if "baseline_auc" in results else []:
        row = effect_row("AUC", level([_same_again(baseline(results, name))]))
        rows.append({"model": "", "init": str(name), **row})
    if "probe_auc" in results:
        for model, init in itertools.product(results.model.values, results.probe.values):
            one = probe(results, model=model, probe=init)
            if one["value"].notnull().any():
                row = effect_row("AUC", level([_same_again(one)]))
                rows.append({"model": str(model), "init": f"probe:{init}", **row})
    return as_table(rows, ["model", "init"], "AUC")


def _same_again(one: xr.Dataset) -> xr.Dataset:
    """A baseline of one split as it would come out again: nothing of it is left to chance."""
    return (
        one.assign(value=one["value"].expand_dims(seed=[0, 1])) if one.sizes["fold"] == 1 else one
    )


def _testable(results: xr.Dataset, compared: dict[tuple, list], every: bool = False) -> set[tuple]:
    """Rows of whose compared arms (model, init) some, or all, have learned. An arm written as a
    list stands for several of one network, of which one must have."""
    there = learned(results)
    judge = all if every else any

    def has_learned(one) -> bool:
        return any(each in there for each in one) if isinstance(one, list) else one in there

    return {row for row, arms in compared.items() if judge(map(has_learned, arms))}


# --- an effect, decided ----------------------------------------------------------------------


def contrast(effect: Effect) -> metrics.Interval | None:
    """The one number that decides: the mean over testable rows; None where there is none."""
    rows = [arms for label, arms in effect.rows.items() if label in effect.testable]
    return combined(mean(rows)) if rows else None


def decide(effect: Effect) -> metrics.Decision:
    found = contrast(effect)
    return metrics.Decision("not testable", 1.0) if found is None else effect.decide(found)


def table(effect: Effect) -> pd.DataFrame:
    """All rows: each with its 95 % interval and what it would say by itself."""
    rows = []
    for label, arms in effect.rows.items():
        found = combined(arms)
        row = dict(zip(effect.keys, label, strict=True)) | effect_row(effect.name, found)
        decision = effect.decide(found)
        if label not in effect.testable:
            decision = metrics.Decision("not testable", 1.0)
        rows.append(row | decision._asdict())
    return as_table(rows, list(effect.keys), effect.name)


def tally(effect: Effect) -> tuple[int, int, int]:
    """How many rows hold by themselves, how many differ, and how many there are."""
    verdicts = list(table(effect)["verdict"])
    return verdicts.count("holds"), verdicts.count("differs"), len(verdicts)


def without_fold(effect: Effect, fold: int) -> Effect | None:
    """The same without one fold; None where that leaves fewer than two."""

    def left(one: xr.Dataset) -> xr.Dataset:
        return one.sel(fold=one.fold != fold)

    rows = {label: [(w, left(one)) for w, one in arms] for label, arms in effect.rows.items()}
    folds = {one.sizes["fold"] for arms in rows.values() for _, one in arms}
    return effect._replace(rows=rows) if min(folds, default=0) > 1 else None


def equivalent(margin: float) -> Decide:
    """No more than the margin, either way."""
    return lambda effect: metrics.decide_equivalent(effect, margin)


def above(effect: metrics.Interval) -> metrics.Decision:
    return metrics.decide_positive(effect)


def below(effect: metrics.Interval) -> metrics.Decision:
    """As `above`, of what is claimed to be negative."""
    turned = effect._replace(mean=-effect.mean, low=-effect.high, high=-effect.low)
    return above(turned)


def margin(results: xr.Dataset, models: Iterable[str]) -> float:
    """Points of AUC that make no difference: one, or less where random init leaves little error."""
    there = [m for m in models if has(results, model=m, init="random")]
    error = 100 * (1 - results["test_auc"].sel(model=there, init="random"))
    found = float(error.mean()) * ERROR_SHARE
    return min(POINT, found) if np.isfinite(found) else POINT


# --- differences in test AUC -----------------------------------------------------------------


def gains(results: xr.Dataset) -> Effect:
    """Transfer minus random, test AUC in points, by model: no difference (E2)."""
    rows = _gain_rows(results)
    compared = {(m,): [(m, init) for init in BOTH] for (m,) in rows}
    testable = _testable(results, compared, every=True)
    return Effect("gain", ("model",), rows, testable, equivalent(margin(results, _names(rows))))


def _names(rows: Iterable[tuple]) -> list[str]:
    return [label[0] for label in rows]


def _gain_rows(results: xr.Dataset) -> dict[tuple, Arms]:
    """Of each model that has both: transfer less random, in points."""
    found = {(str(m),): gain(results, m) for m in results.model.values}
    return {label: arms for label, arms in found.items() if arms}


def gain(results: xr.Dataset, model: str, init: str = "transfer") -> Arms:
    return difference(results, {"model": model, "init": init}, {"model": model, "init": "random"})


def keeping_up(results: xr.Dataset, reference: str = LARGE) -> Effect:
    """Each small network minus the reference, test AUC in points, by init: not behind by more than
    the margin (E3)."""
    rows, compared = {}, {}
    for model, init in itertools.product(_small(results), BOTH):
        pair = [(model, str(init)), (reference, str(init))]
        arms = difference(results, *(dict(model=m, init=i) for m, i in pair))
        if arms:
            rows[model, str(init)], compared[model, str(init)] = arms, pair
    testable, least = _testable(results, compared, every=True), margin(results, [reference])
    decide = lambda effect: metrics.decide_positive(effect, -least)  # noqa: E731
    return Effect("difference", ("model", "init"), rows, testable, decide)


def _small(results: xr.Dataset) -> list[str]:
    return [str(m) for m in results.model.values if m not in NOT_SMALL]


def fine_tuning(results: xr.Dataset) -> Effect:
    """Fine-tuned networks minus a regression on their frozen pretrained features, test AUC in
    points, by model: above 0 (E7)."""
    rows = {}
    for model in results.model.values if "probe_auc" in results else []:
        if has(results, model=model, init="transfer"):
            frozen = probe(results, model=model, probe="transfer")
            tuned = arm(results, model=model, init="transfer")
            rows[(str(model),)] = [(100.0, tuned), (-100.0, frozen)]
    compared = {(m,): [(m, "transfer")] for (m,) in rows}
    return Effect("difference", ("model",), rows, _testable(results, compared), above)


# Of Table 2 as the paper's text sums it up.
PAPER_SIGNS = {
    "edema": 1,
    "effusion": 1,
    "pleural effusion": 1,
    "cardiomegaly": -1,
    "consolidation": -1,
}


def findings(results: xr.Dataset) -> Effect:
    """Gain of each finding that the paper names, a mean over models, with the paper's sign (E5)."""
    names = list(results.finding.values) if "finding_auc" in results else []
    rows, there = {}, learned(results)
    models = [m for (m,) in _gain_rows(results)]
    able = [m for m in models if any((m, init) in there for init in BOTH)]
    for finding in [f for f in names if str(f).lower() in PAPER_SIGNS]:
        one = of_finding(results, finding)
        sums = [arms for m in able or models if (arms := gain(one, m))]
        if sums:
            rows[(str(finding),)] = scaled(PAPER_SIGNS[str(finding).lower()], mean(sums))
    testable = set(rows) if able else set()
    return Effect("gain with the paper's sign", ("finding",), rows, testable, above)


def of_finding(results: xr.Dataset, finding: str) -> xr.Dataset:
    """With the test AUC of one finding in place of the mean over all."""
    one = results.sel(finding=finding, drop=True)
    return one.assign(test_auc=one["finding_auc"], influence=one["finding_influence"])


def finding_gains(results: xr.Dataset) -> pd.DataFrame:
    """Transfer minus random for each finding of chest films, by model (E5, Table 2).

    `adjusted` is p for the number of rows (Benjamini and Hochberg); the verdict, whether there is
    any effect, is by it.
    """
    rows = []
    names = results.finding.values if "finding_auc" in results else []
    for model, finding in itertools.product(results.model.values, names):
        arms = gain(of_finding(results, finding), model)
        if arms:
            found = combined(arms)
            row = {"model": str(model), "finding": str(finding), **effect_row("gain", found)}
            rows.append(row | {"p": above(found).p})
    found = as_table(rows, ["model", "finding"], "gain")
    found["adjusted"] = metrics.adjusted(found["p"].to_numpy()) if len(found) else found["p"]
    up = np.where(found["gain"] > 0, "up", "down")
    found["verdict"] = np.where(found["adjusted"] < metrics.LEVEL, up, "inconclusive")
    return found


def source_rank(results: xr.Dataset) -> metrics.Correlation:
    """Rank correlation over networks between accuracy on the source task and test AUC after
    transfer (E4); of networks pretrained on the same source that have learned."""
    there = learned(results)
    models = [m for m in results.model.values if (m, "transfer") in there]
    if "source_auc" not in results or not models:
        return metrics.rank_correlation(np.array([]), np.array([]))
    one = results.sel(model=models)
    target = one["test_auc"].sel(init="transfer").mean(["fold", "seed"])
    return metrics.rank_correlation(one["source_auc"].values, target.values)


def loose(rho: metrics.Correlation) -> metrics.Decision:
    """`holds` if the interval lies within +-LOOSE: no more than a loose relation, which takes 16
    networks at least. `differs` if it does not, and there is a relation."""
    if rho.n < 4 or np.isnan(rho.mean):
        return metrics.Decision("not testable", 1.0)
    inside = np.arctanh(LOOSE) - np.arctanh(min(abs(rho.mean), 1 - 1e-9))
    p = min(1.0, 2 * float(scipy.stats.norm.sf(inside * np.sqrt(rho.n - 3))))
    if p < metrics.LEVEL:
        return metrics.Decision("holds", p)
    return metrics.Decision("differs" if rho.p < metrics.LEVEL else "inconclusive", rho.p)


# --- learning rates --------------------------------------------------------------------------


def last_validation(results: xr.Dataset) -> xr.DataArray:
    """Validation AUC at the end, in percent, mean over repetitions: learning rates are chosen by
    it."""
    return 100 * results["auc"].isel(step=-1).mean(["fold", "seed"])


def best_rates(results: xr.Dataset) -> dict[str, float]:
    """The learning rate with the best last validation AUC, as `tuned` wants it: "model init": rate.
    A rate at which any repetition failed is none."""
    reached = last_validation(results)
    failed = results["test_auc"].isnull().any(["fold", "seed"])
    found = {}
    for model, init in itertools.product(results.model.values, results.init.values):
        one = reached.where(~failed).sel(model=model, init=init)
        if one.notnull().any():
            found[f"{model} {init}"] = float(one.lr[int(one.argmax("lr"))])
    return found


def at_best_rates(results: xr.Dataset) -> xr.Dataset:
    """Each arm of a tuning at its best rate: what pilots of the final AUC are."""
    best = best_rates(results)
    parts = []
    for name, rate in best.items():
        model, init = name.split(" ")
        one = results.sel(lr=rate, drop=True).sel(model=[model], init=[init])
        parts.append(one.stack(arm=["model", "init"]))
    joined = xr.concat(parts, "arm", data_vars="all", coords="minimal")
    return joined.unstack("arm")


def foreseen(effect: Effect, folds: int, repetitions: int) -> metrics.Interval:
    """What the mean of all rows would be known by from so many folds and repetitions, if patients
    and trainings vary as in the repetitions of these folds."""
    values, influence, patients = _summed(mean(effect.rows.values()))
    found = metrics.over_folds(values, influence, patients)
    if influence is None or patients is None or not np.isfinite(found.low):
        return found
    seen = float(metrics.patients_variance(influence, patients).mean()) / folds
    trained = float(np.nanvar(values, axis=1, ddof=1).mean()) / folds / repetitions
    repeated = folds * (repetitions - 1) or max(1, folds - 1)
    known = folds * max(1, int(patients.mean()) - 1)
    df = (seen + trained) ** 2 / (seen**2 / known + trained**2 / repeated)
    se = float(np.sqrt(seen + trained))
    return metrics.students(found.mean, se, found.sd, folds * repetitions, df)


def at_an_end(results: xr.Dataset) -> list[str]:
    """Arms whose best rate is the least or largest tried: there the grid must grow by a step."""
    tried = results["auc"].notnull().any(["fold", "seed", "step"])
    found = []
    for name, rate in best_rates(results).items():
        model, init = name.split(" ")
        rates = tried.lr.values[tried.sel(model=model, init=init).values]
        found += [name] if rate in (rates.min(), rates.max()) else []
    return found


def longer(results: xr.Dataset) -> pd.DataFrame:
    """What twice as many steps add to the last validation AUC, in points, by arm and source, and
    whether that is less than half a point's margin: then a training counts as converged."""
    last = 100 * results["last_auc"]
    rows = []
    for model, init in itertools.product(results.model.values, results.init.values):
        more = last.sel(model=model, init=init, length=2) - last.sel(
            model=model, init=init, length=1
        )
        found = metrics.interval(more.values)
        row = {"model": str(model), "init": str(init), **effect_row("added", found)}
        rows.append(row | {"verdict": "converged" if found.mean < POINT / 2 else "not converged"})
    return as_table(rows, ["model", "init"], "added")


# --- little data -----------------------------------------------------------------------------


def gains_by_size(results: xr.Dataset) -> pd.DataFrame:
    """`gains` for each number of training images (E6)."""
    parts = {int(n): table(gains(results.sel(train_images=n))) for n in results.train_images.values}
    return _stacked(parts, "train_images")


def little_data(results: xr.Dataset, images: int | None = None) -> Effect:
    """How much more the large network gains from transfer than each small one, points of AUC, at
    the fewest training images or so many: above 0 (E6)."""
    least = int(results.train_images.min()) if images is None else images
    one = results.sel(train_images=least)
    large, rows = gain(one, LARGE), {}
    for model in _small(one) if large else []:
        small = gain(one, model)
        if small:
            rows[(model,)] = [*large, *scaled(-1, small)]
    compared = {(m,): [_both(m), _both(LARGE)] for (m,) in rows}
    testable = _testable(one, compared, every=True)
    return Effect("difference", ("model",), rows, testable, above)


def _both(model: str) -> list[tuple[str, str]]:
    return [(model, init) for init in BOTH]


def shrinking(results: xr.Dataset) -> Effect:
    """Change of the gain with each doubling of the training images, by model, in points: below 0
    (E6). The least-squares slope on the logarithm of the number of images."""
    rows = {(str(m),): _slope(results, m) for m in results.model.values}
    rows = {label: arms for label, arms in rows.items() if arms}
    there = [learned(results.sel(train_images=n)) for n in results.train_images.values]
    testable = {(m,) for (m,) in rows if any({*_both(m)} & found for found in there)}
    return Effect("slope", ("model",), rows, testable, below, " points a doubling")


def _slope(results: xr.Dataset, model: str) -> Arms:
    parts = {n: gain(results.sel(train_images=n), model) for n in results.train_images.values}
    parts = {n: arms for n, arms in parts.items() if arms}
    if len(parts) < 2:
        return []
    doublings = np.log2(list(parts)) - np.log2(list(parts)).mean()
    weights = doublings / (doublings**2).sum()
    return [
        each
        for weight, arms in zip(weights, parts.values(), strict=True)
        for each in scaled(weight, arms)
    ]


# --- convergence -----------------------------------------------------------------------------


def area(results: xr.Dataset) -> xr.DataArray:
    """Validation AUC averaged over the logarithm of the steps, in points: learning twice as fast
    counts alike early and late, and no run need reach a level."""
    curve = 100 * results["auc"].dropna("step", how="all")
    place = np.log(curve.step.values)
    if len(place) < 2:
        return curve.mean("step", skipna=False)
    gaps = np.diff(place)
    widths = (np.append(gaps, 0) + np.append(0, gaps)) / 2  # the trapezium rule
    weights = xr.DataArray(widths / widths.sum(), {"step": curve.step}, ("step",))
    return (curve * weights).sum("step", skipna=False)


def _area_sum(results: xr.Dataset, model: str, parts: list[tuple[str, float]]) -> Arms:
    """A weighted sum of the areas of a model's inits; nothing where one was never run."""
    if not all(has(results, model=model, init=init) for init, _ in parts):
        return []
    found = area(results.sel(model=model))
    return [(w, found.sel(init=init, drop=True).to_dataset(name="value")) for init, w in parts]


def _by_area(
    results: xr.Dataset, parts: Callable[[str], list[tuple[str, float]]]
) -> tuple[dict[tuple, Arms], set[tuple]]:
    """Rows by model of weighted areas, and those of which an arm has learned."""
    rows, compared = {}, {}
    for model in map(str, results.model.values):
        wanted = parts(model)
        arms = _area_sum(results, model, wanted) if wanted else []
        if arms:
            rows[(model,)], compared[(model,)] = arms, [(model, init) for init, _ in wanted]
    return rows, _testable(results, compared)


def start_level(results: xr.Dataset, model: str) -> float:
    """The AUC that counts as converged: REACH of the random init's mean final gain over chance."""
    final = results["auc"].sel(model=model, init="random").dropna("step", how="all").isel(step=-1)
    return 0.5 + REACH * (float(final.mean()) - 0.5)


def speedups(results: xr.Dataset) -> pd.DataFrame:
    """Steps of the random init over steps of another, to the same validation AUC (E13).

    A geometric mean over folds with its 95 % interval, or a bound where a run never gets there;
    `never` says how many. `holds` if the other is faster.
    """
    rows, there = [], learned(results)
    for model, init in itertools.product(results.model.values, results.init.values):
        if init == "random" or not all(has(results, model=model, init=i) for i in ("random", init)):
            continue
        row = _speedup(results, str(model), str(init))
        if not {(model, "random"), (model, init)} & there:
            row |= {"verdict": "not testable", "p": 1.0}
        rows.append({"model": str(model), "init": str(init), **row})
    return as_table(rows, ["model", "init"], "speed-up")


def _speedup(results: xr.Dataset, model: str, init: str) -> dict:
    slow, late = (_steps(results, model, name) for name in ("random", init))
    found = combined(_faster(results, model, init))
    never = int(np.isinf(slow).sum()), int(np.isinf(late).sum())
    bound = "unknown" if all(never) else "at least" if never[0] else "at most" if never[1] else ""
    ends = {name: 2.0 ** getattr(found, name) for name in ("low", "high")}
    row = {"speed-up": 2.0**found.mean, **ends, "n": found.n, "bound": bound, "never": sum(never)}
    decision = metrics.Decision("inconclusive", 1.0) if never[1] else above(found)
    return row | {"level": start_level(results, model)} | decision._asdict()


def _steps(results: xr.Dataset, model: str, init: str) -> xr.DataArray:
    one = results.sel(model=model, init=init, drop=True)
    return figures.reached(one, start_level(results, model))


def _faster(results: xr.Dataset, model: str, init: str) -> Arms:
    """log2 of the steps of random init over those of another; who never gets there counts with its
    length."""
    end = float(results.step.max())
    slow, late = (_steps(results, model, name) for name in ("random", init))
    ratio = slow.clip(max=end) / late.clip(max=end)
    return [(1.0, xr.Dataset({"value": np.log2(ratio)}))]


def scaling(results: xr.Dataset) -> Effect:
    """How much faster Mean Var is than random init, doublings, by model: above 0 (E13); undecided
    where a run of Mean Var never gets to the level."""
    models = [
        str(m)
        for m in results.model.values
        if all(has(results, model=m, init=i) for i in ("random", "mean_var"))
    ]
    rows = {(m,): _faster(results, m, "mean_var") for m in models}
    compared = {(m,): [(m, "random"), (m, "mean_var")] for m in models}
    testable = _testable(results, compared)
    late = any(bool(np.isinf(_steps(results, m, "mean_var")).any()) for (m,) in testable)
    decide = (lambda effect: metrics.Decision("inconclusive", 1.0)) if late else above
    unit = " doublings of speed"
    return Effect("faster", ("model",), rows, testable, decide, unit, 2)


def scale_alone(results: xr.Dataset) -> Effect:
    """Mean Var against the control that keeps pretrained batch norm over random weights, area, by
    model: above 0 (E14)."""
    rows, testable = _by_area(results, lambda _: [("mean_var", 1.0), ("batch_norm", -1.0)])
    return Effect("difference", ("model",), rows, testable, above)


# --- transfusion and hybrids -----------------------------------------------------------------


def prefixes(results: xr.Dataset, model: str) -> list[str]:
    """The inits of one model from nothing pretrained to everything, block by block."""
    return ["random", *_blockwise(results, model, "transfusion"), "transfer"]


def _blockwise(results: xr.Dataset, model: str, base: str) -> list[str]:
    """The inits of one model that are written `base:block`, in their order."""
    names = [str(i) for i in results.init.values if str(i).startswith(f"{base}:")]
    return [init for init in names if has(results, model=model, init=init)]


def marginal(results: xr.Dataset) -> pd.DataFrame:
    """What each further pretrained block adds, by model, in area (E15)."""
    rows = []
    for model in map(str, results.model.values):
        for without, with_ in itertools.pairwise(prefixes(results, model)):
            arms = _area_sum(results, model, [(with_, 1.0), (without, -1.0)])
            if arms:
                found = effect_row("added", combined(arms))
                rows.append({"model": model, "init": with_, **found})
    return as_table(rows, ["model", "init"], "added")


def first_block(results: xr.Dataset) -> Effect:
    """What the first pretrained block adds, minus the mean of what each later one adds, area, by
    model: above 0 (E15)."""

    def parts(model: str) -> list[tuple[str, float]]:
        names = prefixes(results, model)
        later = len(names) - 2
        if later < 1:
            return []
        # The later steps add up to the last of all less the first block.
        return [(names[1], 1 + 1 / later), (names[0], -1.0), (names[-1], -1 / later)]

    rows, testable = _by_area(results, parts)
    return Effect("difference", ("model",), rows, testable, above)


def low_against_many(results: xr.Dataset) -> Effect:
    """The first pretrained block alone, few weights, minus the last one alone, most weights, area,
    by model: above 0 (E16)."""

    def parts(model: str) -> list[tuple[str, float]]:
        first = _blockwise(results, model, "transfusion")[:1]
        last = _blockwise(results, model, "suffix")[-1:]
        return [(first[0], 1.0), (last[0], -1.0)] if first and last else []

    rows, testable = _by_area(results, parts)
    return Effect("difference", ("model",), rows, testable, above)


CUT = "transfusion:block2"  # the two blocks that a hybrid keeps


def slim(results: xr.Dataset) -> Effect:
    """Slim ResNet-50 with two pretrained blocks minus full transfer, test AUC in points: no
    difference (E17)."""
    pair = [(config.SLIM, CUT), (LARGE, "transfer")]
    arms = difference(results, *(dict(model=m, init=i) for m, i in pair))
    rows = {(LARGE, "transfer"): arms} if arms else {}
    testable = _testable(results, {row: pair for row in rows}, every=True)
    least = equivalent(margin(results, [config.SLIM, LARGE]))
    return Effect("difference", ("model", "init"), rows, testable, least)


def slim_beside(results: xr.Dataset) -> pd.DataFrame:
    """The slim hybrid minus others, test AUC in points: full transfer, the large network with as
    many pretrained blocks, and its own random init."""
    rows = []
    for model, init in ((LARGE, "transfer"), (LARGE, CUT), (config.SLIM, "random")):
        arms = difference(
            results, {"model": config.SLIM, "init": CUT}, {"model": model, "init": init}
        )
        if arms:
            found = effect_row("difference", combined(arms))
            rows.append({"model": model, "init": init, **found})
    return as_table(rows, ["model", "init"], "difference")


def synthetic_gabors(results: xr.Dataset) -> Effect:
    """Synthetic Gabors as first layer, the rest random, minus a pretrained first layer, area, by
    model: no difference (E18)."""
    rows, testable = _by_area(results, lambda _: [("gabor", 1.0), ("transfusion:conv1", -1.0)])
    return Effect("difference", ("model",), rows, testable, equivalent(POINT))


def gabors_beside(results: xr.Dataset) -> pd.DataFrame:
    """Synthetic Gabors minus others, area, by model: a pretrained first layer, a Gaussian one of
    the same moments, and random init."""
    rows = []
    others = ("transfusion:conv1", "mean_var:conv1", "random")
    for model, init in itertools.product(map(str, results.model.values), others):
        arms = _area_sum(results, model, [("gabor", 1.0), (init, -1.0)])
        if arms:
            found = effect_row("difference", combined(arms))
            rows.append({"model": model, "init": init, **found})
    return as_table(rows, ["model", "init"], "difference")


# --- other conditions ------------------------------------------------------------------------


def gains_by_variant(results: xr.Dataset) -> pd.DataFrame:
    """`gains` under each variant of the recipe (E19)."""
    parts = {str(v): table(gains(results.sel(variant=v))) for v in results.variant.values}
    return _stacked(parts, "variant")


def any_recipe(results: xr.Dataset, own: str, others: Iterable[str]) -> Effect:
    """Mean gain under another recipe minus that under the study's own, points of AUC, each: no
    difference (E19)."""
    usual = results.sel(variant=own)
    rows, testable = {}, set()
    for variant in others:
        one = results.sel(variant=variant)
        models = [m for (m,) in _gain_rows(one) if gain(usual, m)]
        if models:
            here, there = (mean(gain(r, m) for m in models) for r in (one, usual))
            rows[(str(variant),)] = [*here, *scaled(-1, there)]
            arms = {pair for m in models for pair in _both(m)}
            if arms <= learned(one) and arms <= learned(usual):
                testable.add((str(variant),))
    least = equivalent(margin(usual, results.model.values))
    return Effect("difference", ("variant",), rows, testable, least)


def speedups_by_variant(results: xr.Dataset) -> pd.DataFrame:
    """`speedups` of Mean Var under each variant (E19, E20)."""
    parts = {}
    for variant in results.variant.values:
        one = results.sel(variant=variant).dropna("step", how="all", subset=["auc"])
        found = speedups(one) if one.sizes["step"] else as_table([], ["model", "init"], "speed-up")
        of_mean_var = found.index.get_level_values("init") == "mean_var"
        parts[str(variant)] = found[of_mean_var].droplevel("init")
    return _stacked(parts, "variant")


# --- rates, and effects as rows --------------------------------------------------------------


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
        parts[rate] = table(found) if isinstance(found, Effect) else found
    if list(parts) == [None]:
        return parts[None]
    return pd.concat(parts, names=["lr"])


def effect_row(name: str, effect: metrics.Interval) -> dict:
    """An interval spread over columns."""
    low, high = effect.low, effect.high
    row = {name: effect.mean, "low": low, "high": high, "sd": effect.sd, "n": effect.n}
    return row | {"df": effect.df, "patients": effect.patients}


def as_interval(row: pd.Series, name: str) -> metrics.Interval:
    """The inverse of `effect_row`."""
    ends = (row[name], row["low"], row["high"], row["sd"], int(row["n"]))
    return metrics.Interval(*ends, row.get("df", np.nan), int(row.get("patients", 0)))


def as_table(rows: list[dict], keys: list[str], name: str) -> pd.DataFrame:
    """Rows by their keys, less what no repetition tells of; without any, a table with its columns
    all the same."""
    rows = [row for row in rows if row["n"]]
    if rows:
        return pd.DataFrame(rows).set_index(keys)
    numbers = [name, "low", "high", "sd", "n", "df", "patients", "p", "level", "never"]
    columns = {key: pd.Series(dtype=object) for key in [*keys, "verdict", "bound", "learned"]}
    return pd.DataFrame(columns | {n: pd.Series(dtype=float) for n in numbers}).set_index(keys)


def _stacked(parts: dict, name: str) -> pd.DataFrame:
    """Tables by model as one, by model and what tells them apart."""
    full = {key: part for key, part in parts.items() if len(part)} or parts
    return pd.concat(full, names=[name]).reorder_levels(["model", name])


def spread(effect: metrics.Interval, digits: int = 1, unit: str = "") -> str:
    """`+0.4 points [-0.1, 0.9] (n = 5, 140 patients)`: a number never travels alone."""
    # `z`: what rounds to nought is +0.0, never -0.0.
    ends = f"[{effect.low:+z.{digits}f}, {effect.high:+z.{digits}f}]"
    of = f", {effect.patients:,} patients" if effect.patients else ""
    return f"{effect.mean:+z.{digits}f}{unit} {ends} (n = {effect.n}{of})"


def ratio(row: pd.Series) -> str:
    """`2.3 times [1.1, 4.6] (n = 4)`, `at least ...` where runs never got there, or why there is no
    such number."""
    if row["bound"] == "unknown":
        return f"not to be told, {row['never']} of {2 * int(row['n'])} runs never got there"
    bound = f"{row['bound']} " if row["bound"] else ""
    ends = "" if row["bound"] else f" [{row['low']:.1f}, {row['high']:.1f}]"
    return f"{bound}{row['speed-up']:.1f} times{ends} (n = {int(row['n'])})"
