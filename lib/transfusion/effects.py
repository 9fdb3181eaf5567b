"""What is measured of test AUC and of learning, and the rule of each (book/scope.md)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
import scipy
import xarray as xr

from transfusion import config, figures
from transfusion.statistics import contrasts, gate, intervals
from transfusion.statistics.contrasts import Arms, Effect
from transfusion.statistics.gate import BOTH

# Fixed before the runs, with their reasons in book/scope.md.
POINT = 1.0  # of AUC: the margin of "no difference", the paper's gains on full data being below 0.3
ERROR_SHARE = 0.25  # of 1 - AUC of the random arms: the margin where that is smaller
REACH = 0.9  # of the random init's final gain over chance, as 0.91 is of the paper's 0.953
LOOSE = 0.5  # a rank correlation
UNDECIDED = intervals.Decision("inconclusive", 1.0)
LARGE = "resnet50"
NOT_SMALL = (LARGE, "inception_v3", config.SLIM)


def margin(results: xr.Dataset, models: Iterable[str]) -> float:
    """Points of AUC that make no difference: one, or less where random init leaves little error."""
    there = [m for m in models if contrasts.has(results, model=m, init="random")]
    if not there:
        return POINT
    return margin_at(100 * float(results["test_auc"].sel(model=there, init="random").mean()))


def margin_at(auc: float) -> float:
    """The same where random init reaches this AUC, in percent."""
    return min(POINT, ERROR_SHARE * (100 - auc))


def small(results: xr.Dataset) -> list[str]:
    return [str(m) for m in results.model.values if m not in NOT_SMALL]


# --- differences in test AUC -----------------------------------------------------------------


def gains(results: xr.Dataset) -> Effect:
    """Transfer minus random, test AUC in points, by model: no difference (E2)."""
    rows = _gain_rows(results)
    asked = gate.testable(results, rows, lambda m: gate.each(gate.either(m)))
    rule = contrasts.equivalent(margin(results, [model for (model,) in rows]))
    return Effect("gain", ("model",), rows, asked, rule)


def _gain_rows(results: xr.Dataset) -> dict[tuple, Arms]:
    """Of each model that has both: transfer less random, in points."""
    found = {(str(m),): gain(results, m) for m in results.model.values}
    return {label: arms for label, arms in found.items() if arms}


def gain(results: xr.Dataset, model: str) -> Arms:
    """Transfer less random of one network, in points; nothing where one was never run."""
    transfer, random = ({"model": model, "init": init} for init in ("transfer", "random"))
    return contrasts.difference(results, transfer, random)


def keeping_up(results: xr.Dataset, reference: str = LARGE) -> Effect:
    """Each small network minus the reference, test AUC in points, by init: not behind by more than
    the margin (E3)."""
    rows = {
        (model, init): contrasts.difference(
            results, {"model": model, "init": init}, {"model": reference, "init": init}
        )
        for model, init in itertools.product(small(results), BOTH)
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
    models = [m for (m,) in _gain_rows(results)]
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


# --- little data -----------------------------------------------------------------------------


def gains_by_size(results: xr.Dataset) -> pd.DataFrame:
    """`gains` for each number of training images (E6)."""
    parts = {
        int(n): contrasts.table(gains(results.sel(train_images=n)))
        for n in results.train_images.values
    }
    return contrasts.stacked(parts, "train_images")


def little_data(results: xr.Dataset, images: int | None = None) -> Effect:
    """How much more the large network gains from transfer than each small one, points of AUC, at
    the fewest training images or so many: above 0 (E6)."""
    least = int(results.train_images.min()) if images is None else images
    one = results.sel(train_images=least)
    large, rows = gain(one, LARGE), {}
    for model in small(one) if large else []:
        own = gain(one, model)
        if own:
            rows[(model,)] = [*large, *contrasts.scaled(-1, own)]
    asked = gate.testable(one, rows, lambda model: [gate.either(model), gate.either(LARGE)])
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


# --- convergence -----------------------------------------------------------------------------


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


def _area_sum(results: xr.Dataset, model: str, parts: list[tuple[str, float]]) -> Arms:
    """A weighted sum of the areas of a model's inits; nothing where one was never run."""
    if not all(contrasts.has(results, model=model, init=init) for init, _ in parts):
        return []
    found = area(results.sel(model=model))
    return [(w, found.sel(init=init, drop=True).to_dataset(name="value")) for init, w in parts]


def _by_area(
    results: xr.Dataset, parts: Callable[[str], list[tuple[str, float]]]
) -> tuple[dict[tuple, Arms], set[tuple]]:
    """Rows by model of weighted areas, and those of which an arm has learned."""
    wanted = {str(model): parts(str(model)) for model in results.model.values}
    rows = {(model,): _area_sum(results, model, of) for model, of in wanted.items() if of}
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
    decision = UNDECIDED if never[1] else contrasts.above(found)
    return row | {"level": start_level(results, model)} | decision._asdict()


def _steps(results: xr.Dataset, model: str, init: str) -> xr.DataArray:
    one = results.sel(model=model, init=init, drop=True)
    return figures.reached(one, start_level(results, model))


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
    rule = (lambda effect: UNDECIDED) if late else contrasts.above
    return Effect("faster", ("model",), rows, asked, rule, " doublings of speed", 2)


def scale_alone(results: xr.Dataset) -> Effect:
    """Mean Var against the control that keeps pretrained batch norm over random weights, area, by
    model: above 0 (E14)."""
    rows, testable = _by_area(results, lambda _: [("mean_var", 1.0), ("batch_norm", -1.0)])
    return Effect("difference", ("model",), rows, testable, contrasts.above)


# --- transfusion and hybrids -----------------------------------------------------------------


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
        (model, more): _area_sum(results, model, [(more, 1.0), (less, -1.0)])
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

    rows, testable = _by_area(results, parts)
    return Effect("difference", ("model",), rows, testable, contrasts.above)


def low_against_many(results: xr.Dataset) -> Effect:
    """The first pretrained block alone, few weights, minus the last one alone, most weights, area,
    by model: above 0 (E16)."""

    def parts(model: str) -> list[tuple[str, float]]:
        first = _blockwise(results, model, "transfusion")[:1]
        last = _blockwise(results, model, "suffix")[-1:]
        return [(first[0], 1.0), (last[0], -1.0)] if first and last else []

    rows, testable = _by_area(results, parts)
    return Effect("difference", ("model",), rows, testable, contrasts.above)


CUT = "transfusion:block2"  # the two blocks that a hybrid keeps


def slim(results: xr.Dataset) -> Effect:
    """Slim ResNet-50 with two pretrained blocks minus full transfer, test AUC in points: no
    difference (E17)."""
    arms = _slim_less(results, LARGE, "transfer")
    rows = {(LARGE, "transfer"): arms} if arms else {}
    asked = gate.testable(results, rows, lambda *other: gate.each([(config.SLIM, CUT), other]))
    rule = contrasts.equivalent(margin(results, [config.SLIM, LARGE]))
    return Effect("difference", ("model", "init"), rows, asked, rule)


def _slim_less(results: xr.Dataset, model: str, init: str) -> Arms:
    hybrid = {"model": config.SLIM, "init": CUT}
    return contrasts.difference(results, hybrid, {"model": model, "init": init})


def slim_beside(results: xr.Dataset) -> pd.DataFrame:
    """The slim hybrid minus others, test AUC in points: full transfer, the large network with as
    many pretrained blocks, and its own random init."""
    others = [(LARGE, "transfer"), (LARGE, CUT), (config.SLIM, "random")]
    rows = {other: _slim_less(results, *other) for other in others}
    return contrasts.measured("difference", ("model", "init"), rows)


def synthetic_gabors(results: xr.Dataset) -> Effect:
    """Synthetic Gabors as first layer, the rest random, minus a pretrained first layer, area, by
    model: no difference (E18)."""
    rows, testable = _by_area(results, lambda _: [("gabor", 1.0), ("transfusion:conv1", -1.0)])
    return Effect("difference", ("model",), rows, testable, contrasts.equivalent(POINT))


def gabors_beside(results: xr.Dataset) -> pd.DataFrame:
    """Synthetic Gabors minus others, area, by model: a pretrained first layer, a Gaussian one of
    the same moments, and random init."""
    others = ("transfusion:conv1", "mean_var:conv1", "random")
    rows = {
        (model, init): _area_sum(results, model, [("gabor", 1.0), (init, -1.0)])
        for model, init in itertools.product(map(str, results.model.values), others)
    }
    return contrasts.measured("difference", ("model", "init"), rows)


# --- other conditions ------------------------------------------------------------------------


def gains_by_variant(results: xr.Dataset) -> pd.DataFrame:
    """`gains` under each variant of the recipe (E19)."""
    parts = {str(v): contrasts.table(gains(results.sel(variant=v))) for v in results.variant.values}
    return contrasts.stacked(parts, "variant")


def any_recipe(results: xr.Dataset, own: str, others: Iterable[str]) -> Effect:
    """Mean gain under another recipe minus that under the study's own, points of AUC, each: no
    difference (E19)."""
    usual = results.sel(variant=own)
    rows, asked = {}, set()
    for variant in map(str, others):
        one = results.sel(variant=variant)
        models = [m for (m,) in _gain_rows(one) if gain(usual, m)]
        if models:
            here, there = (contrasts.mean(gain(r, m) for m in models) for r in (one, usual))
            rows[(variant,)] = [*here, *contrasts.scaled(-1, there)]
            arms = [pair for m in models for pair in gate.either(m)]
            both = (
                gate.testable(r, [(variant,)], lambda _, arms=arms: gate.each(arms))
                for r in (one, usual)
            )
            asked |= set.intersection(*both)
    rule = contrasts.equivalent(margin(usual, map(str, results.model.values)))
    return Effect("difference", ("variant",), rows, asked, rule)


def speedups_by_variant(results: xr.Dataset) -> pd.DataFrame:
    """`speedups` of Mean Var under each variant (E19, E20)."""
    parts = {}
    for variant in results.variant.values:
        one = results.sel(variant=variant).dropna("step", how="all", subset=["auc"])
        found = (
            speedups(one)
            if one.sizes["step"]
            else contrasts.as_table([], ["model", "init"], "speed-up")
        )
        of_mean_var = found.index.get_level_values("init") == "mean_var"
        parts[str(variant)] = found[of_mean_var].droplevel("init")
    return contrasts.stacked(parts, "variant")


def ratio(row: pd.Series) -> str:
    """`2.3 times [1.1, 4.6] (n = 4)`, `at least ...` where runs never got there, or why there is no
    such number."""
    if row["bound"] == "unknown":
        return f"not to be told, {row['never']} of {2 * int(row['n'])} runs never got there"
    bound = f"{row['bound']} " if row["bound"] else ""
    ends = "" if row["bound"] else f" [{row['low']:.1f}, {row['high']:.1f}]"
    return f"{bound}{row['speed-up']:.1f} times{ends} (n = {int(row['n'])})"
