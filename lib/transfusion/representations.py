"""What is measured of representations and of first filters, and how it is decided (rules in
book/scope.md); tables as those of `effects`."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pandas as pd
import xarray as xr

from transfusion import effects, figures, metrics, similarity
from transfusion.effects import BOTH, LARGE, NOT_SMALL

# Fixed before the runs, with their reasons in book/scope.md.
CCA_MARGIN = 0.01  # the gaps of the paper's small networks are at most 0.006
GABORS = 0.05  # share of filters: one of 20, as many as noise of the 99 % level and a slip give
DEPTHS = np.linspace(0, 1, 5)  # of the blocks at which networks are compared


# --- similarity ------------------------------------------------------------------------------


def gaps(results: xr.Dataset, top: int = 2, measure: str = "cca") -> pd.DataFrame:
    """Similarity random-random minus random-transfer over the `top` blocks, above chance (E8), with
    an interval over seeds."""
    rows = []
    for model in results.model.values:
        one = figures.blocks_of(results, model, measure)
        pairs = _top_pairs(one, top)
        row = {"model": model, **_kinds(pairs), "null": _top_null(one, top)}
        rows.append({**row, **effects.effect_row("gap", _over_seeds(pairs, _gap))})
    return effects.as_table(rows, ["model"], "gap")


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
        effect = effects.as_interval(row, "gap")
        none = metrics.decide_equivalent(effect, CCA_MARGIN)
        decided.append(effects.above(effect) if model in NOT_SMALL else none)
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
        rows.append({**chosen, **effects.effect_row(name, effect, effects.above)})
    return effects.as_table(rows, list(labels), name)


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
                rows.append({**row, **effects.effect_row("R2", effect)})
    return effects.as_table(rows, ["model", "block", "kind"], "R2")


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
    mine = effects.as_interval(alike.loc[(large, "first")], "R2")
    rest = alike.drop(index=[(large, "first")])
    rest = rest[(rest.index.get_level_values("block") == "first") | (rest.index == (large, "last"))]
    rows = []
    for place, row in rest.iterrows():
        effect = _welch(mine, effects.as_interval(row, "R2"))
        rows.append({"to": place, **effects.effect_row("more", effect, effects.above)})
    return effects.overall(effects.as_table(rows, ["to"], "more"))


def _welch(a: metrics.Interval, b: metrics.Interval) -> metrics.Interval:
    """Difference of two independent means."""
    if not np.isfinite(a.se + b.se):
        return metrics.Interval(a.mean - b.mean, -np.inf, np.inf, np.nan, min(a.n, b.n))
    both = a._replace(mean=a.mean - b.mean, low=a.low - b.mean, high=a.high - b.mean)
    return metrics.with_patients(both, b.se, b.n)


# --- first layers ----------------------------------------------------------------------------


def movements(results: xr.Dataset) -> pd.DataFrame:
    """First layer, by model and init (E12): how far filters move, and the share of Gabors."""
    gabors = (results["gabor"] > results["gabor_level"]).where(results["gabor"].notnull())
    rows = []
    for model, init in itertools.product(results.model.values, results.init.values):
        chosen = {"model": model, "init": init}
        far = metrics.interval(100 * results["moved"].sel(chosen).mean("filter").values)
        row = {**chosen, **_gabor_share(gabors.sel(chosen))}
        rows.append(row | {"moved": far.mean, "moved low": far.low, "moved high": far.high})
    return effects.as_table(rows, ["model", "init"], "change")


def _gabor_share(gabors: xr.DataArray) -> dict:
    """Percent of the filters that are Gabors, before and after training, and the change, from
    whether each is one (state, filter, seed; nan where a network has no such filter)."""
    share = 100 * gabors.mean("filter")
    before, after = (share.sel(state=s) for s in ("initial", "final"))
    filters = int(gabors.notnull().any(["state", "seed"]).sum())
    change = metrics.interval((after - before).values, step=100 / max(1, filters))
    shares = {"gabors before": float(before.mean()), "gabors after": float(after.mean())}
    return shares | effects.effect_row("change", change)


def further(results: xr.Dataset, large: str = LARGE) -> pd.DataFrame:
    """How much further the filters of each small network move than the large one's, percent of
    their length, by init (E12). `holds` if the interval over seeds lies above 0."""
    far = 100 * effects.having(results, model=[large])["moved"].mean("filter")
    others = far.sel(model=[m for m in far.model.values if m not in NOT_SMALL])
    difference = others - far.sel(model=large, drop=True)
    return _paired({"model": others.model, "init": others.init}, difference, "further")


def gabor_changes(table: pd.DataFrame, init: str) -> pd.DataFrame:
    """Small networks, by model: from random init the share of Gabors stays within GABORS of what
    it was, and from pretrained weights some are lost (the paper's Figure 5)."""
    rows = []
    for (model, start), row in table.iterrows():
        if start == init and model not in NOT_SMALL:
            decide = no_gabors if init == "random" else effects.signed(-1)
            effect = effects.as_interval(row, "change")
            rows.append({"model": model, **effects.effect_row("change", effect, decide)})
    return effects.as_table(rows, ["model"], "change")


def no_gabors(effect: metrics.Interval) -> metrics.Decision:
    """In percent of the filters: none learned or lost beyond GABORS."""
    return metrics.decide_equivalent(effect, 100 * GABORS)
