"""What else one may do: hybrids, smaller networks, other recipes (rules in book/scope.md)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pandas as pd
import xarray as xr

from transfusion import terms
from transfusion.experiments import accuracy, deciding, learning
from transfusion.experiments.deciding import LARGE
from transfusion.experiments.tables import knobs_of
from transfusion.statistics import contrasts, gate
from transfusion.statistics.contrasts import Arms, Effect

CUT = "transfusion:block2"  # the two blocks that a hybrid keeps
TWICE = 2  # by how much operations must exceed what parameters suggest, see book/scope.md


def slim(results: xr.Dataset) -> Effect:
    """Slim ResNet-50 with two pretrained blocks minus full transfer, test AUC in points: no
    difference (E17)."""
    arms = _slim_less(results, deciding.LARGE, "transfer")
    rows = {(deciding.LARGE, "transfer"): arms} if arms else {}
    asked = gate.testable(results, rows, lambda *other: gate.each([(terms.SLIM, CUT), other]))
    rule = contrasts.equivalent(accuracy.margin(results, [terms.SLIM, deciding.LARGE]))
    return Effect("difference", ("model", "init"), rows, asked, rule)


def _slim_less(results: xr.Dataset, model: str, init: str) -> Arms:
    hybrid = {"model": terms.SLIM, "init": CUT}
    return contrasts.difference(results, hybrid, {"model": model, "init": init})


def slim_beside(results: xr.Dataset) -> pd.DataFrame:
    """The slim hybrid minus others, test AUC in points: full transfer, the large network with as
    many pretrained blocks, and its own random init."""
    others = [(deciding.LARGE, "transfer"), (deciding.LARGE, CUT), (terms.SLIM, "random")]
    rows = {other: _slim_less(results, *other) for other in others}
    return contrasts.measured("difference", ("model", "init"), rows)


def synthetic_gabors(results: xr.Dataset) -> Effect:
    """Synthetic Gabors as first layer, the rest random, minus a pretrained first layer, area, by
    model: no difference (E18)."""
    rows, testable = learning.by_area(
        results, lambda _: [("gabor", 1.0), ("transfusion:conv1", -1.0)]
    )
    return Effect("difference", ("model",), rows, testable, contrasts.equivalent(accuracy.POINT))


def gabors_beside(results: xr.Dataset) -> pd.DataFrame:
    """Synthetic Gabors minus others, area, by model: a pretrained first layer, a Gaussian one of
    the same moments, and random init."""
    others = ("transfusion:conv1", "mean_var:conv1", "random")
    rows = {
        (model, init): learning.area_sum(results, model, [("gabor", 1.0), (init, -1.0)])
        for model, init in itertools.product(map(str, results.model.values), others)
    }
    return contrasts.measured("difference", ("model", "init"), rows)


def small_in_size_alone(results: xr.Dataset) -> deciding.Finding:
    """`holds` for smaller networks whose share of the large one's multiply-adds is at least twice
    their share of the parameters. Both are counted, so there is nothing to estimate."""
    costs = results[["parameters", "multiply_adds"]].to_dataframe()
    if LARGE not in costs.index:
        return deciding.NOTHING
    shares = (costs / costs.loc[LARGE])[costs["parameters"] < costs.loc[LARGE, "parameters"]]
    if shares.empty:
        return deciding.NOTHING
    excess = shares["multiply_adds"] / shares["parameters"]
    small, work = shares.loc[excess.idxmin()]
    words = f"{small:.2f} of the parameters, {work:.2f} of the operations"
    verdict = "holds" if excess.min() >= TWICE else "differs"
    return deciding.Finding(verdict, np.nan, f"{words}, {terms.title(str(excess.idxmin()))}")


def gains_by_variant(results: xr.Dataset) -> pd.DataFrame:
    """`gains` under each variant of the recipe (E19)."""
    parts = {
        str(v): contrasts.listed(accuracy.gains(results.sel(variant=v)))
        for v in results.variant.values
    }
    return contrasts.stacked(parts, "variant")


def any_recipe(results: xr.Dataset, own: str, others: Iterable[str]) -> Effect:
    """Mean gain under another recipe minus that under the study's own, points of AUC, each: no
    difference (E19)."""
    usual = results.sel(variant=own)
    rows, asked = {}, set()
    for variant in map(str, others):
        one = results.sel(variant=variant)
        models = [m for (m,) in accuracy.gain_rows(one) if accuracy.gain(usual, m)]
        if models:
            here, there = (
                contrasts.mean(accuracy.gain(r, m) for m in models) for r in (one, usual)
            )
            rows[(variant,)] = [*here, *contrasts.scaled(-1, there)]
            arms = [pair for m in models for pair in gate.either(m)]
            both = (
                gate.testable(r, [(variant,)], lambda _, arms=arms: gate.each(arms))
                for r in (one, usual)
            )
            asked |= set.intersection(*both)
    rule = contrasts.equivalent(accuracy.margin(usual, map(str, results.model.values)))
    return Effect("difference", ("variant",), rows, asked, rule)


def every_recipe(results: xr.Dataset) -> deciding.Finding:
    """The first variant is the study's own recipe; those that replace the task are left out."""
    own, *others = [v for v in map(str, results.variant.values) if v not in _tasks(results)]
    each = [(v, deciding.of_effect(any_recipe(results, own, [v]))) for v in others]
    return deciding.all_of(*each) if each else deciding.NOTHING


def _tasks(results: xr.Dataset) -> list[str]:
    """Variants that replace the task: their answers may differ."""
    variants = knobs_of(results).get("variants", {})
    return [name for name, knobs in variants.items() if "target" in knobs]


def speedups_by_variant(results: xr.Dataset) -> pd.DataFrame:
    """`speedups` of Mean Var under each variant (E19, E20)."""
    parts = {}
    for variant in results.variant.values:
        one = results.sel(variant=variant).dropna("step", how="all", subset=["auc"])
        found = (
            learning.speedups(one)
            if one.sizes["step"]
            else contrasts.as_table([], ["model", "init"], "speed-up")
        )
        of_mean_var = found.index.get_level_values("init") == "mean_var"
        parts[str(variant)] = found[of_mean_var].droplevel("init")
    return contrasts.stacked(parts, "variant")


CLAIMS = {
    "slim_tops": deciding.Claim(
        "hybrids",
        "A slim ResNet-50 with two pretrained blocks keeps the AUC of full transfer",
        deciding.stated("Figure 8"),
        deciding.by(slim),
    ),
    "made_gabors": deciding.Claim(
        "hybrids",
        "Synthetic Gabors do as well as a pretrained first layer",
        deciding.stated("Figure 8"),
        deciding.by(synthetic_gabors),
    ),
    "small_in_size_alone": deciding.Claim(
        "efficiency",
        "Small networks are small in parameters, not in computation",
        lambda: "not discussed",
        small_in_size_alone,
        exploratory=True,
        counted=True,
    ),
    "any_recipe": deciding.Claim(
        "robustness",
        "The answer on transfer does not hang on the recipe",
        lambda: "not tested",
        every_recipe,
        exploratory=True,
    ),
}
