"""Test AUC: gains by transfer, small networks, few images, findings (rules in book/scope.md)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pandas as pd
import scipy
import xarray as xr

from transfusion import terms
from transfusion.experiments import deciding, paper
from transfusion.experiments.deciding import LARGE
from transfusion.statistics import contrasts, gate, intervals
from transfusion.statistics.contrasts import Arms, Effect
from transfusion.statistics.gate import BOTH

# Fixed before the runs, with their reasons in book/scope.md.
POINT = 1.0  # of AUC: the margin of "no difference", the paper's gains on full data being below 0.3
ERROR_SHARE = 0.25  # of 1 - AUC of the random arms: the margin where that is smaller
LOOSE = 0.5  # a rank correlation
NETWORKS = 16  # of one source, below which no correlation can be called loose


def margin(results: xr.Dataset, models: Iterable[str]) -> float:
    """Points of AUC that make no difference: one, or less where random init leaves little error."""
    there = [m for m in models if contrasts.has(results, model=m, init="random")]
    if not there:
        return POINT
    return margin_at(100 * float(results["test_auc"].sel(model=there, init="random").mean()))


def margin_at(auc: float) -> float:
    """The same where random init reaches this AUC, in percent."""
    return min(POINT, ERROR_SHARE * (100 - auc))


# --- differences in test AUC -----------------------------------------------------------------


def gains(results: xr.Dataset) -> Effect:
    """Transfer minus random, test AUC in points, by model: no difference (E2)."""
    rows = gain_rows(results)
    asked = gate.testable(results, rows, lambda m: gate.each(gate.either(m)))
    rule = contrasts.equivalent(margin(results, [model for (model,) in rows]))
    return Effect("gain", ("model",), rows, asked, rule)


def gain_rows(results: xr.Dataset) -> dict[tuple, Arms]:
    """Of each model that has both: transfer less random, in points."""
    found = {(str(m),): gain(results, m) for m in results.model.values}
    return {label: arms for label, arms in found.items() if arms}


def gain(results: xr.Dataset, model: str) -> Arms:
    """Transfer less random of one network, in points; nothing where one was never run."""
    transfer, random = ({"model": model, "init": init} for init in ("transfer", "random"))
    return contrasts.difference(results, transfer, random)


def keeping_up(results: xr.Dataset, reference: str = deciding.LARGE) -> Effect:
    """Each small network minus the reference, test AUC in points, by init: not behind by more than
    the margin (E3)."""
    rows = {
        (model, init): contrasts.difference(
            results, {"model": model, "init": init}, {"model": reference, "init": init}
        )
        for model, init in itertools.product(deciding.small(results), BOTH)
    }
    rows = {label: arms for label, arms in rows.items() if arms}
    asked = gate.testable(
        results, rows, lambda model, init: gate.each([(model, init), (reference, init)])
    )
    rule = contrasts.not_worse(margin(results, [reference]))
    return Effect("difference", ("model", "init"), rows, asked, rule)


def fine_tuning(results: xr.Dataset) -> Effect:
    """Fine-tuned networks minus a regression on their frozen pretrained features, test AUC in
    points, by model: above 0 (E7)."""
    rows = {}
    for model in map(str, results.model.values if "probe_auc" in results else []):
        if contrasts.has(results, model=model, init="transfer"):
            frozen = contrasts.probe(results, model=model, probe="transfer")
            tuned = contrasts.arm(results, model=model, init="transfer")
            rows[(model,)] = [(100.0, tuned), (-100.0, frozen)]
    asked = gate.testable(results, rows, lambda model: [[(model, "transfer")]])
    return Effect("difference", ("model",), rows, asked, contrasts.above)


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
    rows, there = {}, gate.learned(results)
    models = [m for (m,) in gain_rows(results)]
    able = [m for m in models if any((m, init) in there for init in BOTH)]
    for finding in [f for f in names if str(f).lower() in PAPER_SIGNS]:
        one = of_finding(results, finding)
        sums = [arms for m in able or models if (arms := gain(one, m))]
        if sums:
            rows[(str(finding),)] = contrasts.scaled(
                PAPER_SIGNS[str(finding).lower()], contrasts.mean(sums)
            )
    testable = set(rows) if able else set()
    return Effect("gain with the paper's sign", ("finding",), rows, testable, contrasts.above)


def of_finding(results: xr.Dataset, finding: str) -> xr.Dataset:
    """With the test AUC of one finding in place of the mean over all."""
    one = results.sel(finding=finding, drop=True)
    return one.assign(test_auc=one["finding_auc"], influence=one["finding_influence"])


def finding_gains(results: xr.Dataset) -> pd.DataFrame:
    """Transfer minus random for each finding of chest films, by model (E5, Table 2).

    `adjusted` is p for the number of rows (Benjamini and Hochberg); the verdict, whether there is
    any effect, is by it.
    """
    names = results.finding.values if "finding_auc" in results else []
    rows = {
        (str(model), str(finding)): gain(of_finding(results, finding), str(model))
        for model, finding in itertools.product(results.model.values, names)
    }
    found = contrasts.measured("gain", ("model", "finding"), rows)
    effects = [contrasts.as_interval(row, "gain") for _, row in found.iterrows()]
    found["p"] = [contrasts.above(effect).p for effect in effects]
    found["adjusted"] = intervals.adjusted(found["p"].to_numpy()) if len(found) else found["p"]
    up = np.where(found["gain"] > 0, "up", "down")
    found["verdict"] = np.where(found["adjusted"] < intervals.LEVEL, up, "inconclusive")
    return found


def source_rank(results: xr.Dataset) -> intervals.Correlation:
    """Rank correlation over networks between accuracy on the source task and test AUC after
    transfer (E4); of networks pretrained on the same source that have learned."""
    there = gate.learned(results)
    models = [m for m in results.model.values if (m, "transfer") in there]
    if "source_auc" not in results or not models:
        return intervals.rank_correlation(np.array([]), np.array([]))
    one = results.sel(model=models)
    target = one["test_auc"].sel(init="transfer").mean(["fold", "seed"])
    return intervals.rank_correlation(one["source_auc"].values, target.values)


def loose(rho: intervals.Correlation) -> intervals.Decision:
    """`holds` if the interval lies within +-LOOSE: no more than a loose relation, which takes 16
    networks at least. `differs` if it does not, and there is a relation."""
    if rho.n < 4 or np.isnan(rho.mean):
        return intervals.Decision("not testable", 1.0)
    inside = np.arctanh(LOOSE) - np.arctanh(min(abs(rho.mean), 1 - 1e-9))
    p = min(1.0, 2 * float(scipy.special.ndtr(-inside * np.sqrt(rho.n - 3))))
    if p < intervals.LEVEL:
        return intervals.Decision("holds", p)
    return intervals.Decision("differs" if rho.p < intervals.LEVEL else "inconclusive", rho.p)


def source_accuracy(results: xr.Dataset) -> deciding.Finding:
    if "source_auc" not in results:
        return deciding.NOTHING
    rho = source_rank(results)
    if rho.n < NETWORKS:
        words = f"{rho.n} networks of one source have learned, {NETWORKS} would be needed"
        return deciding.Finding("not testable", 1.0, words)
    ends = f"{rho.mean:+.2f} [{rho.low:+.2f}, {rho.high:+.2f}]"
    return deciding.Finding(*loose(rho), f"rank correlation {ends} over {rho.n} networks")


# --- little data -----------------------------------------------------------------------------


def gains_by_size(results: xr.Dataset) -> pd.DataFrame:
    """`gains` for each number of training images (E6)."""
    parts = {
        int(n): contrasts.listed(gains(results.sel(train_images=n)))
        for n in results.train_images.values
    }
    return contrasts.stacked(parts, "train_images")


def little_data(results: xr.Dataset, images: int | None = None) -> Effect:
    """How much more the large network gains from transfer than each small one, points of AUC, at
    the fewest training images or so many: above 0 (E6)."""
    least = int(results.train_images.min()) if images is None else images
    one = results.sel(train_images=least)
    large, rows = gain(one, deciding.LARGE), {}
    for model in deciding.small(one) if large else []:
        own = gain(one, model)
        if own:
            rows[(model,)] = [*large, *contrasts.scaled(-1, own)]
    asked = gate.testable(
        one, rows, lambda model: [gate.either(model), gate.either(deciding.LARGE)]
    )
    return Effect("difference", ("model",), rows, asked, contrasts.above)


def shrinking(results: xr.Dataset) -> Effect:
    """Change of the gain with each doubling of the training images, by model, in points: below 0
    (E6). The least-squares slope on the logarithm of the number of images."""
    rows = {(str(m),): _slope(results, m) for m in results.model.values}
    rows = {label: arms for label, arms in rows.items() if arms}
    sizes = [results.sel(train_images=n) for n in results.train_images.values]
    asked = set().union(*(gate.testable(one, rows, lambda m: [gate.either(m)]) for one in sizes))
    return Effect("slope", ("model",), rows, asked, contrasts.below, " points a doubling")


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
        for each in contrasts.scaled(weight, arms)
    ]


# --- the paper's numbers ---------------------------------------------------------------------


def _gain() -> str:
    value = paper.numbers("Table 1", "auc")["value"]
    gain = value[LARGE, "transfer"] - value[LARGE, "random"]
    return f"{gain:+.1f} points, {terms.title(LARGE)} (Table 1, retinas)"


def _shortfall() -> str:
    value = paper.numbers("Table 1", "auc")["value"]
    gap = value["cbr_large_t", "transfer"] - value[LARGE, "transfer"]
    return f"{gap:+.1f} points, {terms.title('cbr_large_t')} (Table 1, retinas)"


def _interaction() -> str:
    value = paper.numbers("Table 3", "auc")["value"]
    gain = {m: value[m, "transfer"] - value[m, "random"] for m in (LARGE, "cbr_large_t")}
    more = gain[LARGE] - gain["cbr_large_t"]
    return f"{more:+.1f} points over {terms.title('cbr_large_t')} (Table 3)"


CLAIMS = {
    "transfer": deciding.Claim(
        "performance",
        "Transfer hardly changes the final AUC",
        _gain,
        deciding.by(gains, tuned=True),
    ),
    "small_networks": deciding.Claim(
        "performance",
        "Small networks keep up with ResNet-50",
        _shortfall,
        deciding.by(keeping_up, tuned=True),
    ),
    "source_accuracy": deciding.Claim(
        "performance",
        "Accuracy on the source task does not foretell the medical AUC",
        deciding.stated("Table 1"),
        source_accuracy,
        exploratory=True,
    ),
    "findings": deciding.Claim(
        "performance",
        "On chest films effects are mixed: edema and effusion up, cardiomegaly and consolidation "
        "down",
        deciding.stated("Table 2"),
        deciding.by(findings),
        exploratory=True,
    ),
    "little_data": deciding.Claim(
        "small_data",
        "With little data transfer helps the large network most",
        _interaction,
        deciding.by(little_data, tuned=True),
    ),
    "shrinking": deciding.Claim(
        "small_data",
        "The gain shrinks as data grow",
        deciding.stated("Table 3"),
        deciding.by(shrinking, tuned=True),
    ),
    "frozen_features": deciding.Claim(
        "performance",
        "Fine-tuning beats frozen features",
        lambda: "not confirmed",
        deciding.by(fine_tuning, tuned=True),
    ),
}
