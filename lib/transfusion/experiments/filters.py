"""First layers: how far filters move, and how many are Gabors (rules in book/scope.md)."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import xarray as xr

from transfusion.experiments import deciding
from transfusion.experiments.deciding import LARGE, small
from transfusion.statistics import contrasts, gate, intervals
from transfusion.statistics.contrasts import Effect

GABORS = 5.0  # percent of the filters: one of 20, what noise at the 99 % level and a slip give


def movements(results: xr.Dataset) -> pd.DataFrame:
    """First layer, by model and init (E12): how far filters move, and the share of Gabors."""
    rows = []
    for model, init in itertools.product(results.model.values, results.init.values):
        chosen = {"model": model, "init": init}
        far = contrasts.combined(deciding.over_seeds(_moved(results).sel(chosen, drop=True)))
        if far.n:
            share = _shares(results, model, init)
            before, after = (float(share.sel(state=s).mean()) for s in ("initial", "final"))
            change = contrasts.combined(deciding.over_seeds(_change(results, model, init)))
            row = {"gabors before": before, "gabors after": after}
            row |= {"moved": far.mean, "moved low": far.low, "moved high": far.high}
            rows.append({**chosen, **row, **contrasts.effect_row("change", change)})
    return contrasts.as_table(rows, ["model", "init"], "change")


def _moved(results: xr.Dataset) -> xr.DataArray:
    """Change in percent of a filter's length, mean over filters."""
    return 100 * results["moved"].mean("filter")


def _shares(results: xr.Dataset, model: str, init: str) -> xr.DataArray:
    """Percent of the filters that are Gabors, (state, fold, seed)."""
    gabors = (results["gabor"] > results["gabor_level"]).where(results["gabor"].notnull())
    return 100 * gabors.sel(model=model, init=init, drop=True).mean("filter")


def _change(results: xr.Dataset, model: str, init: str) -> xr.DataArray:
    share = _shares(results, model, init)
    return share.sel(state="final", drop=True) - share.sel(state="initial", drop=True)


def moving(results: xr.Dataset) -> Effect:
    """How much further the filters of each small network move than the large one's, percent of
    their length, by init: above 0 (E12)."""
    far, rows = _moved(results), {}
    for model, init in itertools.product(small(results), deciding.both_inits(results)):
        if LARGE in far.model.values:
            own, large = (far.sel(model=m, init=init, drop=True) for m in (model, LARGE))
            if (own - large).notnull().any():
                rows[model, init] = [*deciding.over_seeds(own), *deciding.over_seeds(large, -1.0)]
    asked = gate.testable(
        results, rows, lambda model, init: gate.each([(LARGE, init), (model, init)])
    )
    unit = " % of a filter's length"
    return Effect("further", ("model", "init"), rows, asked, contrasts.above, unit, 0)


def gabor_changes(results: xr.Dataset, init: str) -> Effect:
    """Small networks, by model: from random init the share of Gabors stays within GABORS of what
    it was, and from pretrained weights some are lost (the paper's Figure 5)."""
    rows = {}
    for model in small(results):
        if init in results.init.values:
            found = _change(results, model, init)
            if found.notnull().any():
                rows[(model,)] = deciding.over_seeds(found)
    asked = gate.testable(results, rows, lambda model: [[(model, init)]])
    rule = contrasts.equivalent(GABORS) if init == "random" else contrasts.below
    there = results["gabor"].isel(state=0).notnull().any(["init", "fold", "seed"])
    filters = int(there.sum("filter").max())
    decide = _in_steps(rule, 100 / max(1, filters))
    return Effect("change", ("model",), rows, asked, decide, " % of the filters", 0)


def _in_steps(rule: contrasts.Decide, step: float) -> contrasts.Decide:
    """A rule on what is counted in steps: repetitions that happen to agree are not known exactly,
    so the variance within a step (Sheppard's step^2 / 12) is added."""

    def decide(effect: intervals.Interval) -> intervals.Decision:
        se = float(np.hypot(effect.se, step / np.sqrt(12 * max(1, effect.n))))
        return rule(intervals.students(effect.mean, se, effect.sd, effect.n, effect.freedom))

    return decide


def gabor_filters(results: xr.Dataset) -> deciding.Finding:
    """Both halves: none learned from random init, some erased from pretrained weights."""
    names = {"random": "learned", "transfer": "erased"}
    halves = [(name, deciding.of_effect(gabor_changes(results, i))) for i, name in names.items()]
    return deciding.all_of(*halves)


CLAIMS = {
    "moving": deciding.Claim(
        "first_layer",
        "The first filters of large networks hardly move",
        deciding.stated("Figure 5"),
        deciding.by(moving),
    ),
    "gabor_filters": deciding.Claim(
        "first_layer",
        "Small networks learn no Gabor filters, and erase pretrained ones",
        deciding.stated("Figure 5"),
        gabor_filters,
    ),
}
