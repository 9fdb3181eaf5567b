"""Whether networks have learned their task: better than what needs no training (book/scope.md)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import pandas as pd
import xarray as xr

from transfusion.statistics import contrasts, intervals

BOTH = ["random", "transfer"]
SIMPLE = ["statistics", "thumbnail"]  # the baselines that a network must exceed to have learned
Arm = tuple[str, str]  # model and init


def learned(results: xr.Dataset) -> set[tuple[str, str]]:
    """The arms (model, init) that have learned: test AUC above that of both simple baselines, each
    difference with its 95 % interval. None where no baseline was computed."""
    found = {key: _above(results, one) for key, one in _arms(results)}
    return {key for key, row in found.items() if row["learned"]}


def _arms(results: xr.Dataset) -> Iterator[tuple[Arm, xr.Dataset]]:
    """Those that were run, by model and init."""
    for model, init in itertools.product(results.model.values, results.init.values):
        if contrasts.has(results, model=model, init=init):
            yield (str(model), str(init)), contrasts.arm(results, model=model, init=init)


def levels(results: xr.Dataset) -> pd.DataFrame:
    """Test AUC of every arm in percent with its 95 % interval, what it is above each simple
    baseline, in points, and whether it has learned."""
    rows = []
    for (model, init), one in _arms(results):
        row = {"model": model, "init": init, **contrasts.effect_row("AUC", level(one))}
        rows.append(row | _above(results, one))
    return contrasts.as_table(rows, ["model", "init"], "AUC")


def _above(results: xr.Dataset, one: xr.Dataset) -> dict:
    if "baseline_auc" not in results:
        return {"learned": False}
    more = {
        name: contrasts.combined([(100, one), (-100, contrasts.baseline(results, name))])
        for name in SIMPLE
        if name in results.baseline.values
    }
    found = {f"above {name}": effect.mean for name, effect in more.items()}
    found |= {f"above {name} from": effect.low for name, effect in more.items()}
    return found | {"learned": len(more) == len(SIMPLE) and all(e.low > 0 for e in more.values())}


def level(one: xr.Dataset) -> intervals.Interval:
    """AUC of an arm in percent, its interval on the scale of log odds."""
    found = intervals.auc_interval(*contrasts.summed([(1.0, one)]))
    ends = {name: 100 * getattr(found, name) for name in ("mean", "low", "high", "sd")}
    return found._replace(**ends)


def baseline_levels(results: xr.Dataset) -> pd.DataFrame:
    """AUC of every baseline in percent: statistics, the thumbnail, and frozen features by model.
    On one split its interval is over patients alone."""
    rows = []
    for name in results.baseline.values if "baseline_auc" in results else []:
        row = contrasts.effect_row("AUC", level(_same_again(contrasts.baseline(results, name))))
        rows.append({"model": "", "init": str(name), **row})
    if "probe_auc" in results:
        for model, init in itertools.product(results.model.values, results.probe.values):
            one = contrasts.probe(results, model=model, probe=init)
            if one["value"].notnull().any():
                row = contrasts.effect_row("AUC", level(_same_again(one)))
                rows.append({"model": str(model), "init": f"probe:{init}", **row})
    return contrasts.as_table(rows, ["model", "init"], "AUC")


def _same_again(one: xr.Dataset) -> xr.Dataset:
    """A baseline of one split as it would come out again: nothing of it is left to chance."""
    return (
        one.assign(value=one["value"].expand_dims(seed=[0, 1])) if one.sizes["fold"] == 1 else one
    )


def testable(
    results: xr.Dataset, rows: Iterable[tuple], compared: Callable[..., list[list[Arm]]]
) -> set[tuple]:
    """The rows whose networks have learned: of every group of arms that `compared` names for the
    labels of a row, one has."""
    there = learned(results)
    return {row for row in rows if all(there.intersection(group) for group in compared(*row))}


def either(model: str) -> list[Arm]:
    """The arms of a network, of which one must have learned."""
    return [(model, init) for init in BOTH]


def each(arms: Iterable[Arm]) -> list[list[Arm]]:
    """Arms of which all must have learned."""
    return [[arm] for arm in arms]
