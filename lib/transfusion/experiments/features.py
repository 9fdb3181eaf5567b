"""What networks compute, before and after training: other features, reuse, size (book/scope.md)."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pandas as pd
import xarray as xr

from transfusion import terms
from transfusion.experiments import deciding, paper, tables
from transfusion.experiments.deciding import LARGE, small
from transfusion.similarity import second_moments
from transfusion.statistics import contrasts, gate
from transfusion.statistics.contrasts import Arms, Effect
from transfusion.statistics.gate import BOTH

DEPTHS = np.linspace(0, 1, 5)  # of the blocks at which networks are compared
TOP = 2  # blocks, from the last, whose similarity is compared
CCA = " CCA"


def gaps(results: xr.Dataset, measure: str = "cca") -> pd.DataFrame:
    """Similarity random-random minus random-transfer over the top blocks, above chance, by model:
    after training, before it, and what training adds, which alone has an interval (E8)."""
    rows = []
    for model in map(str, results.model.values):
        pairs = _top_pairs(results, model, measure)
        if not len(pairs):
            continue
        final, initial = (pairs[pairs["state"] == state] for state in ("final", "initial"))
        row = {"model": model, **_kinds(final), "after": _gap(final), "before": _gap(initial)}
        found = contrasts.combined(deciding.over_seeds(_pseudo_values(pairs, _added)))
        rows.append(row | contrasts.effect_row("added", found))
    return contrasts.as_table(rows, ["model"], "added")


def other_features(results: xr.Dataset, measure: str = "cca") -> Effect:
    """What training adds to the gap of the large network minus what it adds to each small one's:
    above 0 (E8)."""
    added = {m: _pseudo_values(_top_pairs(results, m, measure), _added) for m in _models(results)}
    return _large_minus_small(results, added, BOTH)


def _models(results: xr.Dataset) -> list[str]:
    return [m for m in map(str, results.model.values) if m in (LARGE, *small(results))]


def _large_minus_small(
    results: xr.Dataset, values: dict[str, xr.DataArray], inits: list[str]
) -> Effect:
    """Of a CCA a repetition of each network, of which one of these inits must have learned."""
    rows: dict[tuple, Arms] = {}
    for model in small(results) if LARGE in values else []:
        both = [*deciding.over_seeds(values[LARGE]), *deciding.over_seeds(values[model], -1.0)]
        if all(one["value"].notnull().any() for _, one in both):
            rows[(model,)] = both
    asked = gate.testable(
        results, rows, lambda model: [[(m, init) for init in inits] for m in (LARGE, model)]
    )
    return Effect("difference", ("model",), rows, asked, contrasts.above, CCA, 3)


def _excess(one: xr.Dataset) -> xr.DataArray:
    """Above chance, like with like: both without the bias of few datapoints."""
    return one["corrected"] - one["corrected_null"]


def _top_pairs(results: xr.Dataset, model: str, measure: str) -> pd.DataFrame:
    """Mean over the top blocks of each pair that has a random network: its `kind` (what the other
    one is), state, and seeds `a` and `b`."""
    one = tables.blocks_of(results, model, measure)
    excess = _excess(one).isel(block=slice(-TOP, None)).mean("block")
    parts = []
    for kind, state in itertools.product(BOTH, ("initial", "final")):
        chosen = tables.between(one, "random", kind, state)
        ends = {"a": one.seed_a.values[chosen], "b": one.seed_b.values[chosen]}
        found = {"kind": kind, "state": state, **ends, "value": excess.values[chosen]}
        parts.append(pd.DataFrame(found))
    return pd.concat(parts).dropna()


def _kinds(pairs: pd.DataFrame) -> dict[str, float]:
    return {f"random, {k}": pairs["value"][pairs["kind"] == k].mean() for k in BOTH}


def _gap(pairs: pd.DataFrame) -> float:
    alike, apart = _kinds(pairs).values()
    return alike - apart


def _added(pairs: pd.DataFrame) -> float:
    """The gap after training less that before."""
    return _gap(pairs[pairs["state"] == "final"]) - _gap(pairs[pairs["state"] == "initial"])


def _pseudo_values(pairs: pd.DataFrame, statistic: Callable[[pd.DataFrame], float]) -> xr.DataArray:
    """A statistic of pairs of networks (columns `a` and `b` are their seeds) as numbers a seed,
    whose mean it is, by the jackknife.

    A network is in many pairs, so pairs are no repetitions of each other, and neither are means
    over the pairs of a seed; each seed is left out in turn, with all pairs that it is in (Arvesen,
    Ann. Math. Stat. 40:2076, 1969). Noise of single pairs alone is overrated, at most doubled.
    """
    seeds = sorted({*pairs["a"], *pairs["b"]}, key=int)
    whole = statistic(pairs)
    parts = [statistic(pairs[(pairs["a"] != s) & (pairs["b"] != s)]) for s in seeds]
    if not np.isfinite(parts).all():  # of two seeds none can be left out: no error is known
        seeds, parts = seeds[:1], [whole]
    values = whole + (len(seeds) - 1) * (np.mean(parts) - np.array(parts)) if seeds else []
    return xr.DataArray(np.asarray(values, float), {"seed": list(map(int, seeds))}, ("seed",))


def thin_blocks(results: xr.Dataset) -> str:
    """Which blocks have too few datapoints a neuron to be read by themselves, in words."""
    found = []
    for model in results.model.values:
        one = results.sel(model=model)
        few = one["datapoints"] < second_moments.ENOUGH * one["neurons"]
        few = few.any("lr") if "lr" in few.dims else few
        names = ", ".join(str(name) for name in one.block.values[few.values])
        found += [f"{terms.title(str(model))} ({names})"] if names else []
    rule = f"{second_moments.ENOUGH} datapoints a neuron"
    return f"Fewer than {rule}: {'; '.join(found)}." if found else f"All blocks have {rule}."


def kept(results: xr.Dataset, measure: str = "cca") -> xr.DataArray:
    """Similarity of each network to itself before training, above chance: (model, init, seed,
    depth), at depths from 0, its first block, to 1, its last, so that networks can be compared."""
    models, inits = results.model.values, list(dict.fromkeys(results.init_a.values))
    seeds = sorted(set(results.seed_a.values), key=int)
    shape = (len(models), len(inits), len(seeds), len(DEPTHS))
    coords = {"model": models, "init": inits, "seed": list(map(int, seeds)), "depth": DEPTHS}
    found = xr.DataArray(np.full(shape, np.nan), coords, tuple(coords))
    for model, init in itertools.product(models, inits):
        one = tables.blocks_of(results, model, measure)
        one = one.isel(pair=tables.before_after(one, init))
        place = np.linspace(0, 1, one.sizes["block"])
        for seed, row in zip(one.seed_a.values, _excess(one).transpose("pair", ...), strict=True):
            if len(place):
                found.loc[model, init, int(seed)] = np.interp(DEPTHS, place, row)
    return found


def larger_keeps_more(results: xr.Dataset, depth: int | None = None) -> Effect:
    """How much more of its start the large network keeps than each small one, from random init, at
    one of the DEPTHS or as their mean: above 0 (E10)."""
    found = kept(results)
    found = found.mean("depth") if depth is None else found.isel(depth=depth, drop=True)
    if "random" not in found.init:
        return _large_minus_small(results, {}, ["random"])
    found = found.sel(init="random", drop=True)
    values = {m: found.sel(model=m, drop=True) for m in _models(results)}
    return _large_minus_small(results, values, ["random"])


def low_reuse(results: xr.Dataset) -> Effect:
    """The excess that pretrained networks keep over random ones, lowest two of five depths minus
    the rest, by model: above 0 (E9)."""
    found = kept(results).reindex(init=BOTH)
    gap = found.sel(init="transfer", drop=True) - found.sel(init="random", drop=True)
    low, rest = gap.isel(depth=slice(0, 2)), gap.isel(depth=slice(2, None))
    values = low.mean("depth") - rest.mean("depth")
    rows = {
        (str(m),): deciding.over_seeds(values.sel(model=m, drop=True))
        for m in values.model.values
        if values.sel(model=m).notnull().any()
    }
    asked = gate.testable(results, rows, lambda model: [gate.either(model)])
    return Effect("low minus rest", ("model",), rows, asked, contrasts.above, CCA, 3)


def foretold_r2(results: xr.Dataset) -> pd.DataFrame:
    """R2 between how well each neuron is predicted from another network before and after training
    (E11), by model, block (first and last) and kind of pair; mean over pairs of networks, with an
    interval over seeds."""
    rows = []
    places, kinds = ("first", "last"), BOTH
    for model, place, kind in itertools.product(map(str, results.model.values), places, kinds):
        found = contrasts.combined(deciding.over_seeds(_foretold(results, model, place, kind)))
        row = {"model": model, "block": place, "kind": f"random, {kind}"}
        rows.append({**row, **contrasts.effect_row("R2", found)})
    return contrasts.as_table(rows, ["model", "block", "kind"], "R2")


def _foretold(results: xr.Dataset, model: str, place: str, kind: str = "random") -> xr.DataArray:
    """R2 a repetition (seed,); empty for a network that was not run."""
    none = xr.DataArray(np.array([]), {"seed": []}, ("seed",))
    if model not in results.model.values:
        return none
    one = tables.blocks_of(results, model, "cca")
    if not one.sizes["block"]:
        return none
    pairs = _foretold_pairs(one.isel(block=0 if place == "first" else -1), kind)
    return _pseudo_values(pairs, lambda found: float(found["value"].mean()))


def _foretold_pairs(one: xr.Dataset, kind: str) -> pd.DataFrame:
    """R2 of each pair of networks in one block, and their seeds."""
    before, after = tables.neurons(one, kind)
    chosen = one.isel(pair=tables.between(one, "random", kind))
    # The order of `tables.neurons`.
    order = np.lexsort([chosen.seed_b, chosen.init_b, chosen.seed_a, chosen.init_a])
    values = [_r2(x, y) for x, y in zip(before, after, strict=True)]
    ends = {"a": chosen.seed_a.values[order], "b": chosen.seed_b.values[order]}
    return pd.DataFrame({**ends, "value": np.array(values, float)}).dropna()


def _r2(x: np.ndarray, y: np.ndarray) -> float:
    there = np.isfinite(x) & np.isfinite(y)
    if there.sum() < 3 or np.ptp(x[there]) == 0 or np.ptp(y[there]) == 0:
        return np.nan
    return float(np.corrcoef(x[there], y[there])[0, 1] ** 2)


def foretelling(results: xr.Dataset) -> Effect:
    """How much better the large network's first block is foretold, from random init, than its last
    block and than each small network's first: R2, above 0 (E11)."""
    rows: dict[tuple, Arms] = {}
    places = [(LARGE, "last"), *((m, "first") for m in small(results))]
    mine = _foretold(results, LARGE, "first")
    for model, place in places:
        other = _foretold(results, model, place)
        if len(mine) and len(other):
            rows[model, place] = [*deciding.over_seeds(mine), *deciding.over_seeds(other, -1.0)]
    asked = gate.testable(
        results, rows, lambda model, _: gate.each([(LARGE, "random"), (model, "random")])
    )
    if asked == {(LARGE, "last")}:
        asked = set()  # of large and small nothing can be said without the small
    return Effect("R2", ("model", "block"), rows, asked, contrasts.above, " R²", 2)


def _cca_gap() -> str:
    value = paper.numbers("Figure 2", "cca")["value"]
    return f"{value[LARGE, 'random'] - value[LARGE, 'transfer']:+.3f} CCA, ResNet-50 (Figure 2)"


CLAIMS = {
    "representations": deciding.Claim(
        "representations",
        "Transfer leaves other features behind in large networks, not in small ones",
        _cca_gap,
        deciding.by(other_features),
    ),
    "size": deciding.Claim(
        "overparametrization",
        "Large networks change less than small ones while they learn",
        deciding.stated("Figure 3"),
        deciding.by(larger_keeps_more),
    ),
    "low_reuse": deciding.Claim(
        "overparametrization",
        "Pretrained weights are reused in the lowest blocks alone",
        deciding.stated("Figure 3"),
        deciding.by(low_reuse),
    ),
    "foretelling": deciding.Claim(
        "overparametrization",
        "Similarity at the start foretells the end in large networks' low layers",
        deciding.stated("Figure 4"),
        deciding.by(foretelling),
    ),
}
