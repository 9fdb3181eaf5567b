"""What is measured of test AUC and of learning, and how it is decided (rules in book/scope.md).

An effect is a table, one row a network (or network and init), with its mean, 95 % interval (`low`,
`high`), `sd` and `n` over seeds, and where a rule decides it, `verdict` and `p`. What was not run,
or never without failing, has no row.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pandas as pd
import scipy
import xarray as xr

from transfusion import config, figures, metrics

# Fixed before the runs, with their reasons in book/scope.md.
MARGIN = 0.01  # AUC: one point, the paper's gains on full data being at most 0.3
REACH = 0.9  # of the random init's final gain over chance, as 0.91 is of the paper's 0.953
LEARNED = 0.05  # a gain over chance below this is not worth a threshold
LOOSE = 0.5  # a rank correlation
LARGE = "resnet50"
NOT_SMALL = (LARGE, "inception_v3")
BOTH = ["random", "transfer"]
SIGNS = {"transfer": 100.0, "random": -100.0}  # of a gain in points

Decide = Callable[[metrics.Interval], metrics.Decision]
Arms = list[tuple[float, xr.Dataset]]  # with their weights in a sum


# --- differences in test AUC -----------------------------------------------------------------


def equivalent(effect: metrics.Interval) -> metrics.Decision:
    """In points of AUC: no more than the margin, either way."""
    return metrics.decide_equivalent(effect, 100 * MARGIN)


def not_worse(effect: metrics.Interval) -> metrics.Decision:
    """In points of AUC: not behind by more than the margin."""
    return metrics.decide_positive(effect, -100 * MARGIN)


def above(effect: metrics.Interval) -> metrics.Decision:
    return metrics.decide_positive(effect)


def gains(results: xr.Dataset) -> pd.DataFrame:
    """Transfer minus random, test AUC in points, by model: paired over seeds, with verdict (E2).

    The interval covers other seeds and, where scores are kept, other test patients.
    """
    results = having(results, init=BOTH)
    rows = []
    for model in results.model.values:
        one = results.sel(model=model)
        row = contrast(one.sel(init="transfer"), one.sel(init="random"), "gain", equivalent)
        rows.append({"model": model, **_means(100 * one["test_auc"]), **row})
    return as_table(rows, ["model"], "gain")


def contrast(one: xr.Dataset, other: xr.Dataset, name: str, decide: Decide) -> dict:
    """One arm's test AUC minus another's, in points, paired over seeds; patients count too."""
    return effect_row(name, combined([(100, one), (-100, other)]), decide)


def combined(arms: Arms) -> metrics.Interval:
    """A weighted sum of arms' test AUCs: paired over seeds, less those in which any arm failed.

    Where scores were kept, the interval is wider by what the same sum owes to its test patients
    (DeLong, clustered; of each arm's mean over all seeds that did not fail).
    """
    weights = np.array([weight for weight, _ in arms])
    effect = metrics.interval(weights @ np.stack([arm["test_auc"].values for _, arm in arms]))
    if "covariance" not in arms[0][1] or effect.n < 2:
        return effect
    shared = np.array([[_shared(one, other) for _, other in arms] for _, one in arms])
    if np.isnan(shared).any():  # no scores of an arm
        return effect
    variance = np.inf if np.isinf(shared).any() else max(0.0, weights @ shared @ weights)
    return metrics.with_patients(effect, float(np.sqrt(variance)), int(arms[0][1].patients))


def _shared(one: xr.Dataset, other: xr.Dataset) -> float:
    """Covariance that two arms' mean AUCs owe to the test patients they share; that of different
    training sets was not kept, and counts as none."""
    if "train_images" in one.coords and one.train_images != other.train_images:
        return 0.0
    names = {"model_": other.model.item(), "init_": other.init.item()}
    return float(one["covariance"].sel(names).mean())  # over findings


def finding_gains(results: xr.Dataset) -> pd.DataFrame:
    """Transfer minus random for each finding of chest films, by model (E5, Table 2).

    `adjusted` is p for the number of rows (Benjamini and Hochberg); the verdict, whether there is
    any effect, is by it.
    """
    rows = []
    for finding in _findings(results):
        one = _of_finding(results, finding)
        rows += [
            {"model": model, "finding": finding, **effect_row("gain", combined(arms), above)}
            for model, arms in _gain_arms(one).items()
        ]
    rows.sort(key=lambda row: list(results.model.values).index(row["model"]))
    table = as_table(rows, ["model", "finding"], "gain")
    table["adjusted"] = metrics.adjusted(table["p"].to_numpy()) if len(table) else table["p"]
    up = np.where(table["gain"] > 0, "up", "down")
    table["verdict"] = np.where(table["adjusted"] < metrics.LEVEL, up, "inconclusive")
    return table


def _findings(results: xr.Dataset) -> list[str]:
    """None where a task has but one question, or no scores were kept."""
    return list(results.finding.values) if "finding_auc" in results else []


def _of_finding(results: xr.Dataset, finding: str) -> xr.Dataset:
    """With the test AUC of one finding in place of the mean over all."""
    names = {d: finding for d in ("finding", "finding_") if d in results.dims}
    one = results.sel(names)
    return having(one.assign(test_auc=one["finding_auc"]), init=BOTH)


def _gain_arms(one: xr.Dataset) -> dict[str, Arms]:
    """Of each model that has both: transfer less random, in points."""
    return {
        model: [(sign, one.sel(model=model, init=init)) for init, sign in SIGNS.items()]
        for model in one.model.values
        if all(_ran(one.sel(model=model), init) for init in BOTH)
    }


def mean_finding_gains(results: xr.Dataset) -> pd.DataFrame:
    """Each finding's gain as a mean over models, and whether its sign is the paper's (E5)."""
    rows = []
    for finding in [f for f in _findings(results) if str(f).lower() in PAPER_SIGNS]:
        by_model = _gain_arms(_of_finding(results, finding))
        arms = [(w / len(by_model), arm) for pair in by_model.values() for w, arm in pair]
        sign = PAPER_SIGNS[str(finding).lower()]
        if arms:
            rows.append({"finding": finding, **effect_row("gain", combined(arms), signed(sign))})
    return as_table(rows, ["finding"], "gain")


# Of Table 2 as the paper's text sums it up.
PAPER_SIGNS = {
    "edema": 1,
    "effusion": 1,
    "pleural effusion": 1,
    "cardiomegaly": -1,
    "consolidation": -1,
}


def signed(sign: int) -> Decide:
    """As `above`, or below 0 for a sign of -1."""

    def decide(effect: metrics.Interval) -> metrics.Decision:
        ends = sorted([sign * effect.low, sign * effect.high])
        return above(effect._replace(mean=sign * effect.mean, low=ends[0], high=ends[1]))

    return decide


def keeping_up(results: xr.Dataset, reference: str = LARGE) -> pd.DataFrame:
    """Each small network minus the reference, test AUC in points, by init, paired over seeds (E3).

    `holds` if the interval lies above minus the margin: not worse by more than that.
    """
    results = having(results, model=[reference])
    rows = []
    for model in [m for m in results.model.values if m not in NOT_SMALL]:
        for init in results.init.values:
            one, other = (results.sel(model=m, init=init) for m in (model, reference))
            row = contrast(one, other, "difference", not_worse)
            rows.append({"model": model, "init": init, **row})
    return as_table(rows, ["model", "init"], "difference")


def source_rank(results: xr.Dataset) -> metrics.Correlation:
    """Rank correlation over networks between accuracy on the source task and test AUC after
    transfer (E4); of networks pretrained on the same source."""
    if "source_auc" not in results:
        return metrics.rank_correlation(np.array([]), np.array([]))
    target = having(results, init=BOTH)["test_auc"].sel(init="transfer").mean("seed")
    return metrics.rank_correlation(results["source_auc"].values, target.values)


def loose(rho: metrics.Correlation) -> metrics.Decision:
    """`holds` if the interval lies within +-LOOSE: no more than a loose relation, which takes 16
    networks at least. `differs` if it does not, and there is a relation."""
    if rho.n < 4 or np.isnan(rho.mean):
        return metrics.Decision("inconclusive", 1.0)
    inside = np.arctanh(LOOSE) - np.arctanh(min(abs(rho.mean), 1 - 1e-9))
    p = min(1.0, 2 * float(scipy.stats.norm.sf(inside * np.sqrt(rho.n - 3))))
    if p < metrics.LEVEL:
        return metrics.Decision("holds", p)
    return metrics.Decision("differs" if rho.p < metrics.LEVEL else "inconclusive", rho.p)


def best_rates(results: xr.Dataset) -> dict[str, float]:
    """The learning rate with the best validation AUC, as `tuned` wants it: "model init": rate."""
    best = figures.best_validation(results)
    arms = [(m, i) for m in best.model.values for i in best.init.values]
    values = {f"{m} {i}": best.sel(model=m, init=i) for m, i in arms}
    return {n: float(v.lr[int(v.argmax("lr"))]) for n, v in values.items() if v.notnull().any()}


def clearest(table: pd.DataFrame) -> pd.Series:
    """The row whose interval lies farthest from 0: the one that decides, not the largest mean.

    Raises ValueError for a table without rows.
    """
    if table.empty:
        raise ValueError("expected an effect, got a table without rows: nothing ran, or all failed")
    return table.loc[np.maximum(table["low"], -table["high"]).idxmax()]


# --- little data -----------------------------------------------------------------------------


def gains_by_size(results: xr.Dataset) -> pd.DataFrame:
    """`gains` for each number of training images (E6)."""
    parts = {int(n): gains(results.sel(train_images=n)) for n in results.train_images.values}
    return _stacked(parts, "train_images")


def interactions(results: xr.Dataset, large: str = LARGE) -> pd.DataFrame:
    """How much more the large network gains from transfer than each other, points of AUC, at each
    number of training images (E6). `holds` if above 0."""
    results = having(results, model=[large], init=BOTH)
    rows = []
    for size, model in itertools.product(results.train_images.values, results.model.values):
        if model in NOT_SMALL:
            continue
        one = results.sel(train_images=size)
        arms = [
            (weight * sign, one.sel(model=name, init=init))
            for weight, name in ((1, large), (-1, model))
            for init, sign in SIGNS.items()
        ]
        row = effect_row("difference", combined(arms), above)
        rows.append({"model": model, "train_images": int(size), **row})
    return as_table(rows, ["model", "train_images"], "difference")


def slopes(results: xr.Dataset) -> pd.DataFrame:
    """Change of the gain from transfer with each doubling of the training set, points of AUC, by
    model (E7): the least-squares slope, over seeds that have all its sizes. `holds` if below 0: the
    gain shrinks."""
    results = having(results, init=BOTH)
    there = results["test_auc"].sel(init=BOTH).notnull().any("seed").all("init")
    rows = []
    for model in results.model.values:
        one = results.sel(model=model)
        sizes = one.train_images.values[there.sel(model=model).values]
        if len(sizes) < 2:
            continue
        doublings = np.log2(sizes) - np.log2(sizes).mean()
        arms = [
            (weight * sign, one.sel(train_images=size, init=init))
            for size, weight in zip(sizes, doublings / (doublings**2).sum(), strict=True)
            for init, sign in SIGNS.items()
        ]
        rows.append({"model": model, **effect_row("slope", combined(arms), signed(-1))})
    return as_table(rows, ["model"], "slope")


def fine_tuning(results: xr.Dataset) -> pd.DataFrame:
    """Fine-tuned minus frozen pretrained features, test AUC in points, by model, number of training
    images and how much is frozen (E7). `holds` if above 0."""
    results = having(results, init=BOTH)
    frozen = [i for i in results.init.values if str(i).startswith("frozen:")]
    sizes = results.train_images.values
    rows = []
    for model, size, init in itertools.product(results.model.values, sizes, frozen):
        one = results.sel(model=model, train_images=size)
        row = contrast(one.sel(init="transfer"), one.sel(init=init), "difference", above)
        rows.append({"model": model, "train_images": int(size), "init": init, **row})
    return as_table(rows, ["model", "train_images", "init"], "difference")


# --- convergence -----------------------------------------------------------------------------


def level(results: xr.Dataset, model: str) -> float:
    """The AUC that counts as converged: REACH of the random init's mean final gain over chance, or
    of transfer's where random init did not learn; nan where neither did."""
    final = results["auc"].sel(model=model).isel(step=-1).mean("seed")
    for init in BOTH:
        gain = final.sel(init=init).item() - 0.5 if init in final.init else 0.0
        if gain >= LEARNED:
            return 0.5 + REACH * gain
    return np.nan


def speedups(results: xr.Dataset) -> pd.DataFrame:
    """Steps of the random init over steps of another, to the same validation AUC (E13).

    A geometric mean over seeds with its 95 % interval, or a bound where a run never gets there and
    the log-rank test decides; `never` says how many. `holds` if the other is faster.
    """
    rows = []
    for model in results.model.values:
        one = results.sel(model=model)
        for init in [i for i in one.init.values if _ran(one, "random") and _ran(one, i)]:
            if init != "random":
                row = faster(results, model, "random", init)
                rows.append({"model": model, "init": init, **row})
    # Without a level nothing is measured, which is an answer.
    rows = [row for row in rows if row["n"] or np.isnan(row["level"])]
    return _frame(rows, ["model", "init"], "speed-up")


def faster(results: xr.Dataset, model: str, slow: str, fast: str) -> dict:
    """One row of `speedups`: steps of one init over those of another."""
    goal = level(results, model)
    steps = figures.reached(results.sel(model=model), goal).where(np.isfinite(goal))
    end = float(results.step[-1])
    found = metrics.speedup(steps.sel(init=slow).values, steps.sel(init=fast).values, end)
    ends = {n: 2.0 ** getattr(found.log2, n) for n in ("low", "high")}
    row = {"speed-up": 2.0**found.log2.mean, **ends, "n": found.log2.n, "level": goal}
    return row | {"bound": found.bound, "never": found.never, **found.decision._asdict()}


def ahead(results: xr.Dataset) -> xr.DataArray:
    """Mean validation AUC over the whole training, in points: early learning counts, and no run
    need reach a level."""
    return 100 * results["auc"].mean("step")


def _lead(area: xr.DataArray, init: str, other: str) -> metrics.Interval:
    """How far one init is `ahead` of another, paired over seeds."""
    return metrics.interval((area.sel(init=init) - area.sel(init=other)).values)


def variants(results: xr.Dataset, than: str = "batch_norm") -> pd.DataFrame:
    """Mean Var against the control that keeps pretrained batch norm over random weights, by model:
    mean validation AUC over training, in points (E14). `holds` if Mean Var is ahead."""
    area = ahead(having(results, init=["mean_var", than]))
    rows = []
    for model in results.model.values:
        effect = _lead(area.sel(model=model), "mean_var", than)
        rows.append({"model": model, **effect_row("difference", effect, above)})
    return as_table(rows, ["model"], "difference")


# --- transfusion and hybrids -----------------------------------------------------------------


def prefixes(one: xr.Dataset) -> list[str]:
    """The inits of one model from nothing pretrained to everything, block by block."""
    return ["random", *_blockwise(one, "transfusion"), "transfer"]


def _blockwise(one: xr.Dataset, base: str) -> list[str]:
    """The inits of one model that are written `base:block`, in their order."""
    return [str(i) for i in one.init.values if str(i).startswith(f"{base}:") and _ran(one, i)]


def marginal(results: xr.Dataset) -> pd.DataFrame:
    """What each further pretrained block adds, by model: points of mean validation AUC over
    training (E15)."""
    results = having(results, init=BOTH)
    rows = []
    for model in results.model.values:
        one = results.sel(model=model)
        for without, with_ in itertools.pairwise(prefixes(one)):
            effect = _lead(ahead(one), with_, without)
            rows.append({"model": model, "init": with_, **effect_row("added", effect, above)})
    return as_table(rows, ["model", "init"], "added")


def first_block(results: xr.Dataset) -> pd.DataFrame:
    """What the first pretrained block adds, minus what each later one adds (E15). `holds` if above
    0."""
    results = having(results, init=BOTH)
    rows = []
    for model in results.model.values:
        one = results.sel(model=model)
        added = ahead(one).sel(init=prefixes(one)).diff("init")
        for init in added.init.values[1:]:
            effect = metrics.interval((added.isel(init=0) - added.sel(init=init)).values)
            rows.append({"model": model, "init": init, **effect_row("difference", effect, above)})
    return as_table(rows, ["model", "init"], "difference")


def low_against_many(results: xr.Dataset) -> pd.DataFrame:
    """The first pretrained block alone, few weights, minus the last one alone, most weights: points
    of mean validation AUC over training, by model (E16). `holds` if above 0."""
    rows = []
    for model in results.model.values:
        one = results.sel(model=model)
        first, last = _blockwise(one, "transfusion")[:1], _blockwise(one, "suffix")[-1:]
        for low, high in zip(first, last, strict=False):
            row = effect_row("difference", _lead(ahead(one), low, high), above)
            rows.append({"model": model, "init": high, **row})
    return as_table(rows, ["model", "init"], "difference")


def slim(results: xr.Dataset) -> pd.DataFrame:
    """Slim ResNet-50 with two pretrained blocks minus others, test AUC in points (E17): against
    full transfer (`holds` within the margin), and against its own random init (`holds` above 0)."""
    cut = "transfusion:block2"
    results = having(results, model=[config.SLIM, LARGE], init=[*BOTH, cut])
    hybrid = results.sel(model=config.SLIM, init=cut)
    others = {
        (LARGE, "transfer"): equivalent,
        (LARGE, cut): equivalent,
        (config.SLIM, "random"): above,
    }
    rows = []
    for (model, init), decide in others.items():
        row = contrast(hybrid, results.sel(model=model, init=init), "difference", decide)
        rows.append({"model": model, "init": init, **row})
    return as_table(rows, ["model", "init"], "difference")


def synthetic_gabors(results: xr.Dataset) -> pd.DataFrame:
    """Synthetic Gabors as first layer, the rest random, minus others, by model: points of mean
    validation AUC over training (E18). Against the pretrained first layer, `holds` within the
    margin; against a Gaussian one of the same moments and against random init, above 0."""
    others = {"transfusion:conv1": equivalent, "mean_var:conv1": above, "random": above}
    area = ahead(having(results, init=["gabor", *others]))
    rows = []
    for model, (init, decide) in itertools.product(results.model.values, others.items()):
        effect = _lead(area.sel(model=model), "gabor", init)
        rows.append({"model": model, "init": init, **effect_row("difference", effect, decide)})
    return as_table(rows, ["model", "init"], "difference")


# --- other conditions ------------------------------------------------------------------------


def gains_by_variant(results: xr.Dataset) -> pd.DataFrame:
    """`gains` under each variant of the recipe (E19)."""
    parts = {str(v): gains(results.sel(variant=v)) for v in results.variant.values}
    return _stacked(parts, "variant")


def speedups_by_variant(results: xr.Dataset) -> pd.DataFrame:
    """`speedups` of Mean Var under each variant (E19, E20)."""
    parts = {}
    for variant in results.variant.values:
        one = results.sel(variant=variant).dropna("step", how="all", subset=["auc"])
        table = speedups(one) if one.sizes["step"] else _frame([], ["model", "init"], "speed-up")
        of_mean_var = table.index.get_level_values("init") == "mean_var"
        parts[str(variant)] = table[of_mean_var].droplevel("init")
    return _stacked(parts, "variant")


def stable(table: pd.DataFrame) -> metrics.Decision:
    """Whether all variants, of which there are two at least, give each model the same decided
    answer: `differs` if two decided answers contradict each other, `inconclusive` if any is
    undecided.

    Nothing is estimated, so there is no p.
    """
    answers = [list(group["verdict"]) for _, group in table.groupby(level="model")]
    if any({"holds", "differs"} <= set(found) for found in answers):
        return metrics.Decision("differs", np.nan)
    told = all(len(found) > 1 and "inconclusive" not in found for found in answers)
    return metrics.Decision("holds" if answers and told else "inconclusive", np.nan)


# --- arms that may lack ----------------------------------------------------------------------


def having(results: xr.Dataset, **labels: list[str]) -> xr.Dataset:
    """With nan for models and inits that these results lack, so that they can be asked for."""
    for dim, wanted in labels.items():
        for name in {dim, f"{dim}_"} & set(results.dims):  # the latter of `covariance`
            there = list(results[name].values)
            absent = [label for label in wanted if label not in there]
            results = results.reindex({name: [*there, *absent]}) if absent else results
    return results


def _ran(one: xr.Dataset, init: str) -> bool:
    """Whether a model has this init: not every network of a chapter need have each."""
    name = "auc" if "auc" in one else "test_auc"
    return init in one.init and bool(one[name].sel(init=init).notnull().any())


def as_table(rows: list[dict], keys: list[str], name: str) -> pd.DataFrame:
    """Rows by their keys, less what no seed tells of: arms never run, or failed each time."""
    return _frame([row for row in rows if row["n"]], keys, name)


def _frame(rows: list[dict], keys: list[str], name: str) -> pd.DataFrame:
    """Rows by their keys; without any, a table with its columns all the same."""
    if rows:
        return pd.DataFrame(rows).set_index(keys)
    numbers = [name, "low", "high", "sd", "n", "df", "p", "level", "never"]
    columns = {key: pd.Series(dtype=object) for key in [*keys, "verdict", "bound"]}
    return pd.DataFrame(columns | {n: pd.Series(dtype=float) for n in numbers}).set_index(keys)


def _stacked(parts: dict, name: str) -> pd.DataFrame:
    """Tables by model as one, by model and what tells them apart."""
    full = {key: part for key, part in parts.items() if len(part)} or parts
    return pd.concat(full, names=[name]).reorder_levels(["model", name])


# --- effects as rows -------------------------------------------------------------------------


def effect_row(name: str, effect: metrics.Interval, decide: Decide | None = None) -> dict:
    """An interval spread over columns, with the decision."""
    low, high = effect.low, effect.high
    row = {name: effect.mean, "low": low, "high": high, "sd": effect.sd, "n": effect.n}
    row["df"] = effect.df
    return row | (decide(effect)._asdict() if decide else {})


def as_interval(row: pd.Series, name: str) -> metrics.Interval:
    """The inverse of `effect_row`."""
    return metrics.Interval(
        row[name], row["low"], row["high"], row["sd"], int(row["n"]), row.get("df", np.nan)
    )


def _means(auc: xr.DataArray) -> dict[str, float]:
    found: dict[str, float] = {}
    for init in BOTH:
        values = metrics.interval(auc.sel(init=init).values)
        found |= {init: values.mean, f"{init} sd": values.sd}
    return found


def overall(table: pd.DataFrame) -> metrics.Decision:
    """One decision on a claim about all rows. p is that of all holding together, or of any row
    being as it is, times the number of rows (Bonferroni); nan for no rows."""
    if table.empty:
        return metrics.Decision("inconclusive", np.nan)
    verdict = metrics.overall(list(table["verdict"]))
    if verdict == "holds":
        return metrics.Decision(verdict, float(table["p"].max()))
    return metrics.Decision(verdict, min(1.0, len(table) * float(telling(table)["p"].min())))


def telling(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that a claim's verdict rests on: those that hold, or differ; all where undecided."""
    verdict = metrics.overall(list(table["verdict"]))
    decisive = {"holds in part": "holds", "differs": "differs"}.get(verdict)
    return table if decisive is None else table[table["verdict"] == decisive]


def spread(mean: float, low: float, high: float, n: int, digits: int = 1, unit: str = "") -> str:
    """`+0.4 points [-0.1, 0.9] (n = 4)`: a number never travels alone."""
    # `z`: what rounds to nought is +0.0, never -0.0.
    values = f"{mean:+z.{digits}f}{unit} [{low:+z.{digits}f}, {high:+z.{digits}f}]"
    return f"{values} (n = {n})"


def ratio(row: pd.Series) -> str:
    """`2.3 times [1.1, 4.6] (n = 4)`, `at least ...` where runs never got there, or why there is no
    such number."""
    if np.isnan(row["level"]):
        return "no level to reach, no init learned"
    if row["bound"] == "unknown":
        return f"not to be told, {row['never']} of {2 * int(row['n'])} runs never got there"
    bound = f"{row['bound']} " if row["bound"] else ""
    ends = "" if row["bound"] else f" [{row['low']:.1f}, {row['high']:.1f}]"
    return f"{bound}{row['speed-up']:.1f} times{ends} (n = {int(row['n'])})"
