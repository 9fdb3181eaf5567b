"""How fast networks learn: speed-ups, weight scaling, transfusion (rules in book/scope.md)."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pandas as pd
import xarray as xr

from transfusion import terms
from transfusion.experiments import deciding, paper
from transfusion.experiments.deciding import LARGE
from transfusion.statistics import contrasts, gate
from transfusion.statistics.contrasts import Arms, Effect

REACH = 0.9  # of the random init's final gain over chance, as 0.91 is of the paper's 0.953


def steps_to(level: float, steps: np.ndarray, curve: np.ndarray) -> float:
    """First step at which a curve reaches `level`, linear between points; inf if it never does."""
    reached = np.flatnonzero(curve >= level)
    if len(reached) == 0:
        return np.inf
    i = int(reached[0])
    if i == 0:
        return float(steps[0])
    share = (level - curve[i - 1]) / (curve[i] - curve[i - 1])
    return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))


def reached(results: xr.Dataset, level: float) -> xr.DataArray:
    """Steps to a validation AUC by model, init and seed; inf where a run never gets there, nan
    where it failed."""
    steps = xr.apply_ufunc(
        lambda curve: steps_to(level, results.step.values, curve),
        results["auc"],
        input_core_dims=[["step"]],
        vectorize=True,
    )
    return steps.where(results["auc"].notnull().all("step"))


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


def area_sum(results: xr.Dataset, model: str, parts: list[tuple[str, float]]) -> Arms:
    """A weighted sum of the areas of a model's inits; nothing where one was never run."""
    if not all(contrasts.has(results, model=model, init=init) for init, _ in parts):
        return []
    found = area(results.sel(model=model))
    return [(w, found.sel(init=init, drop=True).to_dataset(name="value")) for init, w in parts]


def by_area(
    results: xr.Dataset, parts: Callable[[str], list[tuple[str, float]]]
) -> tuple[dict[tuple, Arms], set[tuple]]:
    """Rows by model of weighted areas, and those of which an arm has learned."""
    wanted = {str(model): parts(str(model)) for model in results.model.values}
    rows = {(model,): area_sum(results, model, of) for model, of in wanted.items() if of}
    rows = {label: arms for label, arms in rows.items() if arms}
    return rows, gate.testable(
        results, rows, lambda model: [[(model, init) for init, _ in wanted[model]]]
    )


def start_level(results: xr.Dataset, model: str) -> float:
    """The AUC that counts as converged: REACH of the random init's mean final gain over chance."""
    final = results["auc"].sel(model=model, init="random").dropna("step", how="all").isel(step=-1)
    return 0.5 + REACH * (float(final.mean()) - 0.5)


def speedups(results: xr.Dataset) -> pd.DataFrame:
    """Steps of the random init over steps of another, to the same validation AUC (E13).

    A geometric mean over folds with its 95 % interval, or a bound where a run never gets there;
    `never` says how many. `holds` if the other is faster.
    """
    rows, there = [], gate.learned(results)
    for model, init in itertools.product(results.model.values, results.init.values):
        if init == "random" or not all(
            contrasts.has(results, model=model, init=i) for i in ("random", init)
        ):
            continue
        row = _speedup(results, str(model), str(init))
        if not {(model, "random"), (model, init)} & there:
            row |= {"verdict": "not testable", "p": 1.0}
        rows.append({"model": str(model), "init": str(init), **row})
    return contrasts.as_table(rows, ["model", "init"], "speed-up")


def _speedup(results: xr.Dataset, model: str, init: str) -> dict:
    slow, late = (_steps(results, model, name) for name in ("random", init))
    found = contrasts.combined(_faster(results, model, init))
    never = int(np.isinf(slow).sum()), int(np.isinf(late).sum())
    bound = "unknown" if all(never) else "at least" if never[0] else "at most" if never[1] else ""
    ends = {name: 2.0 ** getattr(found, name) for name in ("low", "high")}
    row = {"speed-up": 2.0**found.mean, **ends, "n": found.n, "bound": bound, "never": sum(never)}
    decision = deciding.UNDECIDED if never[1] else contrasts.above(found)
    return row | {"level": start_level(results, model)} | decision._asdict()


def _steps(results: xr.Dataset, model: str, init: str) -> xr.DataArray:
    one = results.sel(model=model, init=init, drop=True)
    return reached(one, start_level(results, model))


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
        if all(contrasts.has(results, model=m, init=i) for i in ("random", "mean_var"))
    ]
    rows = {(m,): _faster(results, m, "mean_var") for m in models}
    asked = gate.testable(results, rows, lambda model: [[(model, "random"), (model, "mean_var")]])
    late = any(bool(np.isinf(_steps(results, m, "mean_var")).any()) for (m,) in asked)
    rule = (lambda effect: deciding.UNDECIDED) if late else contrasts.above
    return Effect("faster", ("model",), rows, asked, rule, " doublings of speed", 2)


def scaling_by_network(results: xr.Dataset) -> deciding.Finding:
    found = deciding.of_effect(scaling(results))
    if found is deciding.NOTHING or found.verdict == "not testable":
        return found
    table = speedups(results).xs("mean_var", level="init")
    words = [f"{terms.title(str(m))} {ratio(row)}" for m, row in table.iterrows()]
    return found._replace(beside="; ".join([found.beside, *words]).strip("; "))


def ratio(row: pd.Series) -> str:
    """`2.3 times [1.1, 4.6] (n = 4)`, `at least ...` where runs never got there, or why there is no
    such number."""
    if row["bound"] == "unknown":
        return f"not to be told, {row['never']} of {2 * int(row['n'])} runs never got there"
    bound = f"{row['bound']} " if row["bound"] else ""
    ends = "" if row["bound"] else f" [{row['low']:.1f}, {row['high']:.1f}]"
    return f"{bound}{row['speed-up']:.1f} times{ends} (n = {int(row['n'])})"


def scale_alone(results: xr.Dataset) -> Effect:
    """Mean Var against the control that keeps pretrained batch norm over random weights, area, by
    model: above 0 (E14)."""
    rows, testable = by_area(results, lambda _: [("mean_var", 1.0), ("batch_norm", -1.0)])
    return Effect("difference", ("model",), rows, testable, contrasts.above)


def prefixes(results: xr.Dataset, model: str) -> list[str]:
    """The inits of one model from nothing pretrained to everything, block by block."""
    return ["random", *_blockwise(results, model, "transfusion"), "transfer"]


def _blockwise(results: xr.Dataset, model: str, base: str) -> list[str]:
    """The inits of one model that are written `base:block`, in their order."""
    names = [str(i) for i in results.init.values if str(i).startswith(f"{base}:")]
    return [init for init in names if contrasts.has(results, model=model, init=init)]


def marginal(results: xr.Dataset) -> pd.DataFrame:
    """What each further pretrained block adds, by model, in area (E15)."""
    rows = {
        (model, more): area_sum(results, model, [(more, 1.0), (less, -1.0)])
        for model in map(str, results.model.values)
        for less, more in itertools.pairwise(prefixes(results, model))
    }
    return contrasts.measured("added", ("model", "init"), rows)


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

    rows, testable = by_area(results, parts)
    return Effect("difference", ("model",), rows, testable, contrasts.above)


def low_against_many(results: xr.Dataset) -> Effect:
    """The first pretrained block alone, few weights, minus the last one alone, most weights, area,
    by model: above 0 (E16)."""

    def parts(model: str) -> list[tuple[str, float]]:
        first = _blockwise(results, model, "transfusion")[:1]
        last = _blockwise(results, model, "suffix")[-1:]
        return [(first[0], 1.0), (last[0], -1.0)] if first and last else []

    rows, testable = by_area(results, parts)
    return Effect("difference", ("model",), rows, testable, contrasts.above)


def _mean_var() -> str:
    value = paper.numbers("Figure 6", "speedup")["value"][LARGE, "mean_var"]
    return f"{value:g} times, ResNet-50 (Figure 6)"


CLAIMS = {
    "scaling": deciding.Claim(
        "weight_scaling",
        "The scale of pretrained weights alone speeds convergence",
        _mean_var,
        scaling_by_network,
    ),
    "scale_alone": deciding.Claim(
        "weight_scaling",
        "It is the scale of the weights, not batch norm",
        deciding.stated("section 5"),
        deciding.by(scale_alone),
    ),
    "first_layer_most": deciding.Claim(
        "transfusion",
        "The first pretrained layer adds most",
        deciding.stated("Figure 7"),
        deciding.by(first_block),
    ),
    "low_layers": deciding.Claim(
        "transfusion",
        "Low layers matter, not how many weights are pretrained",
        deciding.stated("Figure 7"),
        deciding.by(low_against_many),
    ),
}
