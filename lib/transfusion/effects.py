"""What is measured of collected results, and how it is decided (rules in book/scope.md).

An effect is a table, one row a network (or network and init), with its mean, 95 % interval (`low`,
`high`), `sd` and `n` over seeds, and where a rule decides it, `verdict` and `p`. What was not run,
or never without failing, has no row.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from transfusion import config, figures, metrics, similarity

# Fixed before the runs, with their reasons in book/scope.md.
MARGIN = 0.01  # AUC: one point, the paper's gains on full data being at most 0.3
REACH = 0.9  # of the random init's final gain over chance, as 0.91 is of the paper's 0.953
LEARNED = 0.05  # a gain over chance below this is not worth a threshold
CCA_MARGIN = 0.01  # the gaps of the paper's small networks are at most 0.006
GABORS = 0.05  # share of filters: one of 20, as many as noise of the 99 % level and a slip give
DEPTHS = np.linspace(0, 1, 5)  # of the blocks at which networks are compared
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
    results = _having(results, init=BOTH)
    rows = []
    for model in results.model.values:
        one = results.sel(model=model)
        row = contrast(one.sel(init="transfer"), one.sel(init="random"), "gain", equivalent)
        rows.append({"model": model, **_means(100 * one["test_auc"]), **row})
    return _table(rows, ["model"], "gain")


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
    table = _table(rows, ["model", "finding"], "gain")
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
    return _having(one.assign(test_auc=one["finding_auc"]), init=BOTH)


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
            rows.append({"finding": finding, **effect_row("gain", combined(arms), _signed(sign))})
    return _table(rows, ["finding"], "gain")


# Of Table 2 as the paper's text sums it up.
PAPER_SIGNS = {
    "edema": 1,
    "effusion": 1,
    "pleural effusion": 1,
    "cardiomegaly": -1,
    "consolidation": -1,
}


def _signed(sign: int) -> Decide:
    def decide(effect: metrics.Interval) -> metrics.Decision:
        ends = sorted([sign * effect.low, sign * effect.high])
        return above(effect._replace(mean=sign * effect.mean, low=ends[0], high=ends[1]))

    return decide


def keeping_up(results: xr.Dataset, reference: str = LARGE) -> pd.DataFrame:
    """Each small network minus the reference, test AUC in points, by init, paired over seeds (E3).

    `holds` if the interval lies above minus the margin: not worse by more than that.
    """
    results = _having(results, model=[reference])
    rows = []
    for model in [m for m in results.model.values if m not in NOT_SMALL]:
        for init in results.init.values:
            one, other = (results.sel(model=m, init=init) for m in (model, reference))
            row = contrast(one, other, "difference", not_worse)
            rows.append({"model": model, "init": init, **row})
    return _table(rows, ["model", "init"], "difference")


def source_rank(results: xr.Dataset) -> metrics.Correlation:
    """Rank correlation over networks between accuracy on the source task and test AUC after
    transfer (E4); of networks pretrained on the same source."""
    if "source_auc" not in results:
        return metrics.rank_correlation(np.array([]), np.array([]))
    target = _having(results, init=BOTH)["test_auc"].sel(init="transfer").mean("seed")
    return metrics.rank_correlation(results["source_auc"].values, target.values)


def loose(rho: metrics.Correlation) -> metrics.Decision:
    """`holds` if the interval lies within +-LOOSE: no more than a loose relation, which takes 16
    networks at least. `differs` if it does not, and there is a relation."""
    if rho.n < 4 or np.isnan(rho.mean):
        return metrics.Decision("inconclusive", 1.0)
    inside = np.arctanh(LOOSE) - np.arctanh(min(abs(rho.mean), 1 - 1e-9))
    p = min(1.0, 2 * float(stats.norm.sf(inside * np.sqrt(rho.n - 3))))
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
    results = _having(results, model=[large], init=BOTH)
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
    return _table(rows, ["model", "train_images"], "difference")


def slopes(results: xr.Dataset) -> pd.DataFrame:
    """Change of the gain from transfer with each doubling of the training set, points of AUC, by
    model (E7): the least-squares slope, over seeds that have all its sizes. `holds` if below 0: the
    gain shrinks."""
    results = _having(results, init=BOTH)
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
        rows.append({"model": model, **effect_row("slope", combined(arms), _signed(-1))})
    return _table(rows, ["model"], "slope")


def fine_tuning(results: xr.Dataset) -> pd.DataFrame:
    """Fine-tuned minus frozen pretrained features, test AUC in points, by model, number of training
    images and how much is frozen (E7). `holds` if above 0."""
    results = _having(results, init=BOTH)
    frozen = [i for i in results.init.values if str(i).startswith("frozen:")]
    sizes = results.train_images.values
    rows = []
    for model, size, init in itertools.product(results.model.values, sizes, frozen):
        one = results.sel(model=model, train_images=size)
        row = contrast(one.sel(init="transfer"), one.sel(init=init), "difference", above)
        rows.append({"model": model, "train_images": int(size), "init": init, **row})
    return _table(rows, ["model", "train_images", "init"], "difference")


# --- similarity ------------------------------------------------------------------------------


def gaps(results: xr.Dataset, top: int = 2, measure: str = "cca") -> pd.DataFrame:
    """Similarity random-random minus random-transfer over the `top` blocks, above chance (E8), with
    an interval over seeds."""
    rows = []
    for model in results.model.values:
        one = figures.blocks_of(results, model, measure)
        pairs = _top_pairs(one, top)
        row = {"model": model, **_kinds(pairs), "null": _top_null(one, top)}
        rows.append({**row, **effect_row("gap", _over_seeds(pairs, _gap))})
    return _table(rows, ["model"], "gap")


def _excess(one: xr.Dataset) -> xr.DataArray:
    """Above chance, like with like: both without the bias of few datapoints."""
    return one["corrected"] - one["corrected_null"]


def _top_pairs(one: xr.Dataset, top: int) -> pd.DataFrame:
    """Mean over the top blocks of each pair that has a random network, and its seeds."""
    excess = _excess(one).isel(block=slice(-top, None)).mean("block")
    parts = []
    for kind in BOTH:
        chosen = figures.between(one, "random", kind)
        ends = {"a": one.seed_a.values[chosen], "b": one.seed_b.values[chosen]}
        parts.append(pd.DataFrame({"kind": kind, **ends, "value": excess.values[chosen]}))
    return pd.concat(parts).dropna()


def _kinds(pairs: pd.DataFrame) -> dict[str, float]:
    return {f"random, {k}": pairs["value"][pairs["kind"] == k].mean() for k in BOTH}


def _gap(pairs: pd.DataFrame) -> float:
    alike, apart = _kinds(pairs).values()
    return alike - apart


def _over_seeds(
    pairs: pd.DataFrame, statistic: Callable[[pd.DataFrame], float]
) -> metrics.Interval:
    """A statistic of pairs of networks (columns `a` and `b` are their seeds) by the jackknife.

    A network is in many pairs, so pairs are no repetitions of each other, and neither are means
    over the pairs of a seed; each seed is left out in turn, with all pairs that it is in (Arvesen,
    Ann. Math. Stat. 40:2076, 1969). Noise of single pairs alone is overrated, at most doubled.
    """
    seeds = sorted({*pairs["a"], *pairs["b"]})
    whole = statistic(pairs)
    n = len(seeds) if np.isfinite(whole) else 0
    parts = [statistic(pairs[(pairs["a"] != s) & (pairs["b"] != s)]) for s in seeds]
    if n < 2 or not np.isfinite(parts).all():
        return metrics.Interval(whole, -np.inf, np.inf, np.nan, n)
    return metrics.interval(whole + (n - 1) * (np.mean(parts) - np.array(parts)))


def _top_null(one: xr.Dataset, top: int) -> float:
    between = figures.between(one, "random", "random") | figures.between(one, "random", "transfer")
    return float(one["corrected_null"].isel(block=slice(-top, None), pair=between).mean())


def thin_blocks(results: xr.Dataset) -> str:
    """Which blocks have too few datapoints a neuron to be read by themselves, in words."""
    found = []
    for model in results.model.values:
        one = results.sel(model=model)
        few = one["datapoints"] < similarity.ENOUGH * one["neurons"]
        names = ", ".join(str(name) for name in one.block.values[few.values])
        found += [f"{figures.title(str(model))} ({names})"] if names else []
    rule = f"{similarity.ENOUGH} datapoints a neuron"
    return f"Fewer than {rule}: {'; '.join(found)}." if found else f"All blocks have {rule}."


def gap_verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """With verdicts. Large networks: gap above 0. Small ones: gap within the margin of 0 (the
    paper's Figure 2)."""
    decided = []
    for model, row in table.iterrows():
        effect = as_interval(row, "gap")
        none = metrics.decide_equivalent(effect, CCA_MARGIN)
        decided.append(above(effect) if model in NOT_SMALL else none)
    return table.assign(verdict=[d.verdict for d in decided], p=[d.p for d in decided])


def kept(results: xr.Dataset, measure: str = "cca") -> xr.DataArray:
    """Similarity of each network to itself before training, above chance: (model, init, seed,
    depth), at depths from 0, its first block, to 1, its last, so that networks can be compared."""
    models, inits = results.model.values, list(dict.fromkeys(results.init_a.values))
    seeds = sorted(set(results.seed_a.values), key=int)
    shape = (len(models), len(inits), len(seeds), len(DEPTHS))
    coords = {"model": models, "init": inits, "seed": list(map(int, seeds)), "depth": DEPTHS}
    found = xr.DataArray(np.full(shape, np.nan), coords, tuple(coords))
    for model, init in itertools.product(models, inits):
        one = figures.blocks_of(results, model, measure)
        one = one.isel(pair=figures.before_after(one, init))
        place = np.linspace(0, 1, one.sizes["block"])
        for seed, row in zip(one.seed_a.values, _excess(one).transpose("pair", ...), strict=True):
            if len(place):
                found.loc[model, init, int(seed)] = np.interp(DEPTHS, place, row)
    return found


def stays_low(results: xr.Dataset) -> pd.DataFrame:
    """How much more of its start the lowest place keeps than the highest, by model and init (E9).

    `holds` if the interval over seeds lies above 0.
    """
    found = kept(results)
    low, high = found.isel(depth=0), found.isel(depth=-1)
    return _paired({"model": found.model, "init": found.init}, low - high, "low minus high")


def reuse(results: xr.Dataset) -> pd.DataFrame:
    """The excess that pretrained networks keep over random ones, lowest two places minus the rest,
    by model (E9). `holds` if the interval lies above 0."""
    found = kept(results)
    found = found.reindex(init=BOTH)
    gap = found.sel(init="transfer", drop=True) - found.sel(init="random", drop=True)
    low, rest = gap.isel(depth=slice(0, 2)), gap.isel(depth=slice(2, None))
    return _paired({"model": gap.model}, low.mean("depth") - rest.mean("depth"), "low minus rest")


def size_effects(results: xr.Dataset, depth: int | None = None) -> pd.DataFrame:
    """How much more of its start the largest network keeps than each other, by init, at one of the
    DEPTHS or as their mean (E10). `holds` if the interval over seeds lies above 0."""
    found = kept(results)
    found = found.mean("depth") if depth is None else found.isel(depth=depth, drop=True)
    largest = str(results.model.values[np.argmax(results["parameters"].values)])
    others = found.drop_sel(model=largest)
    difference = found.sel(model=largest, drop=True) - others
    return _paired({"model": others.model, "init": others.init}, difference, "difference")


def _paired(labels: dict[str, xr.DataArray], values: xr.DataArray, name: str) -> pd.DataFrame:
    """Mean over seeds with its interval, one row a combination of labels; holds if above 0."""
    rows = []
    for combination in itertools.product(*(label.values for label in labels.values())):
        chosen = dict(zip(labels, combination, strict=True))
        effect = metrics.interval(values.sel(chosen).values)
        rows.append({**chosen, **effect_row(name, effect, above)})
    return _table(rows, list(labels), name)


def foretold(results: xr.Dataset) -> pd.DataFrame:
    """R2 between how well each neuron is predicted from another network before and after training
    (E11), by model, block (first and last) and kind of pair; mean over pairs of networks, with an
    interval over seeds."""
    rows = []
    for model in results.model.values:
        one = figures.blocks_of(results, model, "cca")
        for (place, block), kind in itertools.product({"first": 0, "last": -1}.items(), BOTH):
            if one.sizes["block"]:
                effect = _over_seeds(_foretold_pairs(one.isel(block=block), kind), _mean)
                row = {"model": model, "block": place, "kind": f"random, {kind}"}
                rows.append({**row, **effect_row("R2", effect)})
    return _table(rows, ["model", "block", "kind"], "R2")


def _foretold_pairs(one: xr.Dataset, kind: str) -> pd.DataFrame:
    """R2 of each pair of networks in one block, and their seeds."""
    before, after = figures.neurons(one, kind)
    chosen = one.isel(pair=figures.between(one, "random", kind))
    # The order of `figures.neurons`.
    order = np.lexsort([chosen.seed_b, chosen.init_b, chosen.seed_a, chosen.init_a])
    values = [_r2(x, y) for x, y in zip(before, after, strict=True)]
    ends = {"a": chosen.seed_a.values[order], "b": chosen.seed_b.values[order]}
    return pd.DataFrame({**ends, "value": np.array(values, float)}).dropna()


def _mean(pairs: pd.DataFrame) -> float:
    return float(pairs["value"].mean())


def _r2(x: np.ndarray, y: np.ndarray) -> float:
    there = np.isfinite(x) & np.isfinite(y)
    if there.sum() < 3 or np.ptp(x[there]) == 0 or np.ptp(y[there]) == 0:
        return np.nan
    return float(np.corrcoef(x[there], y[there])[0, 1] ** 2)


def foretold_decision(table: pd.DataFrame, large: str = LARGE) -> metrics.Decision:
    """Whether the large network's first block, from random init, is foretold better than its last
    block, and than the first block of every other network (Welch's t test for each)."""
    alike = table[table.index.get_level_values("kind") == "random, random"].droplevel("kind")
    if (large, "first") not in alike.index:
        return metrics.Decision("inconclusive", np.nan)
    mine = as_interval(alike.loc[(large, "first")], "R2")
    rest = alike.drop(index=[(large, "first")])
    rest = rest[(rest.index.get_level_values("block") == "first") | (rest.index == (large, "last"))]
    rows = [
        {"to": place, **effect_row("more", _welch(mine, as_interval(row, "R2")), above)}
        for place, row in rest.iterrows()
    ]
    return overall(_table(rows, ["to"], "more"))


def _welch(a: metrics.Interval, b: metrics.Interval) -> metrics.Interval:
    """Difference of two independent means."""
    if not np.isfinite(a.se + b.se):
        return metrics.Interval(a.mean - b.mean, -np.inf, np.inf, np.nan, min(a.n, b.n))
    both = a._replace(mean=a.mean - b.mean, low=a.low - b.mean, high=a.high - b.mean)
    return metrics.with_patients(both, b.se, b.n)


def movements(results: xr.Dataset) -> pd.DataFrame:
    """First layer, by model and init (E12): how far filters move, and the share of Gabors."""
    gabors = 100 * (results["gabor"] > results["gabor_level"]).where(results["gabor"].notnull())
    share = gabors.mean("filter")
    rows = []
    for model, init in itertools.product(results.model.values, results.init.values):
        chosen = {"model": model, "init": init}
        before, after = (share.sel(chosen).sel(state=s) for s in ("initial", "final"))
        far = metrics.interval(100 * results["moved"].sel(chosen).mean("filter").values)
        change = metrics.interval((after - before).values)
        row = {**chosen, "gabors before": float(before.mean()), "gabors after": float(after.mean())}
        row |= {"moved": far.mean, "moved low": far.low, "moved high": far.high}
        rows.append(row | effect_row("change", change))
    return _table(rows, ["model", "init"], "change")


def further(results: xr.Dataset, large: str = LARGE) -> pd.DataFrame:
    """How much further the filters of each small network move than the large one's, percent of
    their length, by init (E12). `holds` if the interval over seeds lies above 0."""
    far = 100 * _having(results, model=[large])["moved"].mean("filter")
    others = far.sel(model=[m for m in far.model.values if m not in NOT_SMALL])
    difference = others - far.sel(model=large, drop=True)
    return _paired({"model": others.model, "init": others.init}, difference, "further")


def gabor_changes(table: pd.DataFrame, init: str) -> pd.DataFrame:
    """Small networks, by model: from random init the share of Gabors stays within GABORS of what
    it was, and from pretrained weights some are lost (the paper's Figure 5)."""
    rows = []
    for (model, start), row in table.iterrows():
        if start == init and model not in NOT_SMALL:
            decide = no_gabors if init == "random" else _signed(-1)
            rows.append(
                {"model": model, **effect_row("change", as_interval(row, "change"), decide)}
            )
    return _table(rows, ["model"], "change")


def no_gabors(effect: metrics.Interval) -> metrics.Decision:
    """In percent of the filters: none learned or lost beyond GABORS."""
    return metrics.decide_equivalent(effect, 100 * GABORS)


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
    area = ahead(_having(results, init=["mean_var", than]))
    rows = []
    for model in results.model.values:
        effect = _lead(area.sel(model=model), "mean_var", than)
        rows.append({"model": model, **effect_row("difference", effect, above)})
    return _table(rows, ["model"], "difference")


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
    results = _having(results, init=BOTH)
    rows = []
    for model in results.model.values:
        one = results.sel(model=model)
        for without, with_ in itertools.pairwise(prefixes(one)):
            effect = _lead(ahead(one), with_, without)
            rows.append({"model": model, "init": with_, **effect_row("added", effect, above)})
    return _table(rows, ["model", "init"], "added")


def first_block(results: xr.Dataset) -> pd.DataFrame:
    """What the first pretrained block adds, minus what each later one adds (E15). `holds` if above
    0."""
    results = _having(results, init=BOTH)
    rows = []
    for model in results.model.values:
        one = results.sel(model=model)
        added = ahead(one).sel(init=prefixes(one)).diff("init")
        for init in added.init.values[1:]:
            effect = metrics.interval((added.isel(init=0) - added.sel(init=init)).values)
            rows.append({"model": model, "init": init, **effect_row("difference", effect, above)})
    return _table(rows, ["model", "init"], "difference")


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
    return _table(rows, ["model", "init"], "difference")


def slim(results: xr.Dataset) -> pd.DataFrame:
    """Slim ResNet-50 with two pretrained blocks minus others, test AUC in points (E17): against
    full transfer (`holds` within the margin), and against its own random init (`holds` above 0)."""
    cut = "transfusion:block2"
    results = _having(results, model=[config.SLIM, LARGE], init=[*BOTH, cut])
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
    return _table(rows, ["model", "init"], "difference")


def synthetic_gabors(results: xr.Dataset) -> pd.DataFrame:
    """Synthetic Gabors as first layer, the rest random, minus others, by model: points of mean
    validation AUC over training (E18). Against the pretrained first layer, `holds` within the
    margin; against a Gaussian one of the same moments and against random init, above 0."""
    others = {"transfusion:conv1": equivalent, "mean_var:conv1": above, "random": above}
    area = ahead(_having(results, init=["gabor", *others]))
    rows = []
    for model, (init, decide) in itertools.product(results.model.values, others.items()):
        effect = _lead(area.sel(model=model), "gabor", init)
        rows.append({"model": model, "init": init, **effect_row("difference", effect, decide)})
    return _table(rows, ["model", "init"], "difference")


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


def _having(results: xr.Dataset, **labels: list[str]) -> xr.Dataset:
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


def _table(rows: list[dict], keys: list[str], name: str) -> pd.DataFrame:
    """Without what no seed tells of: arms that were never run, or failed each time."""
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
    telling = {"holds in part": "holds", "differs": "differs"}.get(verdict)
    chosen = table if telling is None else table[table["verdict"] == telling]
    return metrics.Decision(verdict, min(1.0, len(table) * float(chosen["p"].min())))


def spread(mean: float, low: float, high: float, n: int, digits: int = 1, unit: str = "") -> str:
    """`+0.4 points [-0.1, 0.9] (n = 4)`: a number never travels alone."""
    values = f"{mean:+.{digits}f}{unit} [{low:+.{digits}f}, {high:+.{digits}f}]"
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
