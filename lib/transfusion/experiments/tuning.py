"""What is told by trainings that come before the others: each arm's learning rate, and whether the
study's length is enough (rules in book/scope.md)."""

from __future__ import annotations

import itertools

import pandas as pd
import xarray as xr

from transfusion.experiments import accuracy
from transfusion.statistics import contrasts, intervals


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
    rate = xr.full_like(results["test_auc"].isel(lr=0, fold=0, seed=0, drop=True), results.lr[0])
    for name, best in best_rates(results).items():
        model, init = name.split(" ")
        rate.loc[{"model": model, "init": init}] = best
    return results.sel(lr=rate).drop_vars("lr")


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
    whether that is less than half the margin: then a training counts as converged."""
    last, rows = 100 * results["last_auc"], []
    for model, init in itertools.product(results.model.values, results.init.values):
        usual, twice = (last.sel(model=model, init=init, length=n) for n in (1, 2))
        found = intervals.interval((twice - usual).values)
        enough = found.mean < accuracy.margin_at(float(usual.mean())) / 2
        row = {"model": str(model), "init": str(init), **contrasts.effect_row("added", found)}
        rows.append(row | {"verdict": "converged" if enough else "not converged"})
    return contrasts.as_table(rows, ["model", "init"], "added")
