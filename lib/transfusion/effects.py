"""What is measured of collected results, and how it is decided (rules in book/scope.md).

An effect is a table, one row a network (or network and init), with its mean, 95 % interval (`low`,
`high`), `sd` and `n` over seeds, and where a rule decides it, `verdict` and `p`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pandas as pd
import xarray as xr

from transfusion import config, figures, metrics, similarity

# Fixed before the runs, with their reasons in book/scope.md.
MARGIN = 0.01  # AUC: one point, the paper's gains on full data being at most 0.3
REACH = 0.9  # of the random init's final gain over chance, as 0.91 is of the paper's 0.953
LEARNED = 0.05  # a gain over chance below this is not worth a threshold
CCA_MARGIN = 0.01  # the gaps of the paper's small networks are at most 0.006
GABORS = 0.05  # share of filters: one of 20, as many as noise of the 99 % level and a slip give
DEPTHS = np.linspace(0, 1, 5)  # of the blocks at which networks are compared
LARGE = "resnet50"

Decide = Callable[[metrics.Interval], metrics.Decision]


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
    rows = []
    for model in results.model.values:
        one = results.sel(model=model)
        row = contrast(one.sel(init="transfer"), one.sel(init="random"), "gain", equivalent)
        rows.append({"model": model, **_means(100 * one["test_auc"]), **row})
    return pd.DataFrame(rows).set_index("model")


def contrast(one: xr.Dataset, other: xr.Dataset, name: str, decide: Decide) -> dict:
    """One arm's test AUC minus another's, in points, paired over seeds; patients count too."""
    effect = metrics.interval((100 * (one["test_auc"] - other["test_auc"])).values)
    if "score" in one:
        error, patients = _patients([(1, one), (-1, other)])
        effect = metrics.with_patients(effect, 100 * error, patients)
    return effect_row(name, effect, decide)


def _patients(arms: list[tuple[int, xr.Dataset]]) -> tuple[float, int]:
    """What a weighted sum of mean AUCs owes to its test patients (DeLong, clustered)."""
    first = arms[0][1]
    target = first["target"].transpose(..., "image").values
    placed = 0
    for weight, arm in arms:
        scores = arm["score"].transpose("seed", ..., "image")
        scores = scores.dropna("seed", how="all").values  # failed runs
        placed = placed + weight * metrics.placements(target, scores).mean(0)
    return metrics.patients_error(target, np.asarray(placed), first["patient"].values)


def finding_gains(results: xr.Dataset) -> pd.DataFrame:
    """Transfer minus random for each finding of chest films, by model (E5, Table 2).

    `adjusted` is p for the number of rows (Benjamini and Hochberg); the verdict, whether there is
    any effect, is by it.
    """
    rows = []
    for model, finding in itertools.product(results.model.values, results.finding.values):
        one = _of_finding(results.sel(model=model, finding=finding))
        row = contrast(one.sel(init="transfer"), one.sel(init="random"), "gain", above)
        rows.append({"model": model, "finding": finding, **row})
    table = pd.DataFrame(rows).set_index(["model", "finding"])
    table["adjusted"] = metrics.adjusted(table["p"].to_numpy())
    up = np.where(table["gain"] > 0, "up", "down")
    table["verdict"] = np.where(table["adjusted"] < metrics.LEVEL, up, "inconclusive")
    return table


def _of_finding(one: xr.Dataset) -> xr.Dataset:
    """With the test AUC of one finding in place of the mean over all."""
    target = one["target"].values
    auc = xr.apply_ufunc(
        lambda scores: metrics.aucs(target[:, None], scores[:, None])[0],
        one["score"],
        input_core_dims=[["image"]],
        vectorize=True,
    )
    return one.assign(test_auc=auc.where(one["test_auc"].notnull()))


def mean_finding_gains(results: xr.Dataset) -> pd.DataFrame:
    """Each finding's gain as a mean over models, and whether its sign is the paper's (E5)."""
    rows = []
    for finding in [f for f in results.finding.values if str(f).lower() in PAPER_SIGNS]:
        one = _of_finding(results.sel(finding=finding))
        gain = 100 * (one["test_auc"].sel(init="transfer") - one["test_auc"].sel(init="random"))
        effect = metrics.interval(gain.mean("model").values)
        arms = [
            (sign, one.sel(model=model, init=init))
            for model in one.model.values
            for sign, init in ((1, "transfer"), (-1, "random"))
        ]
        error, patients = _patients(arms)
        effect = metrics.with_patients(effect, 100 * error / one.sizes["model"], patients)
        sign = PAPER_SIGNS[str(finding).lower()]
        rows.append({"finding": finding, **effect_row("gain", effect, _signed(sign))})
    return pd.DataFrame(rows).set_index("finding")


# Of Table 2 as the paper's text sums it up.
PAPER_SIGNS = {"edema": 1, "effusion": 1, "cardiomegaly": -1, "consolidation": -1}


def _signed(sign: int) -> Decide:
    def decide(effect: metrics.Interval) -> metrics.Decision:
        ends = sorted([sign * effect.low, sign * effect.high])
        return above(effect._replace(mean=sign * effect.mean, low=ends[0], high=ends[1]))

    return decide


def keeping_up(results: xr.Dataset, reference: str = LARGE) -> pd.DataFrame:
    """Each small network minus the reference, test AUC in points, by init, paired over seeds (E3).

    `holds` if the interval lies above minus the margin: not worse by more than that.
    """
    rows = []
    for model in [m for m in results.model.values if m != reference]:
        for init in results.init.values:
            one, other = (results.sel(model=m, init=init) for m in (model, reference))
            row = contrast(one, other, "difference", not_worse)
            rows.append({"model": model, "init": init, **row})
    return pd.DataFrame(rows).set_index(["model", "init"])


def source_rank(results: xr.Dataset) -> metrics.Correlation:
    """Rank correlation over networks between accuracy on the source task and test AUC after
    transfer (E4); of networks pretrained on the same source."""
    if "source_auc" not in results:
        return metrics.rank_correlation(np.array([]), np.array([]))
    target = results["test_auc"].sel(init="transfer").mean("seed")
    return metrics.rank_correlation(results["source_auc"].values, target.values)


def clearest(table: pd.DataFrame) -> pd.Series:
    """The row whose interval lies farthest from 0: the one that decides, not the largest mean."""
    return table.loc[np.maximum(table["low"], -table["high"]).idxmax()]


# --- little data -----------------------------------------------------------------------------


def gains_by_size(results: xr.Dataset) -> pd.DataFrame:
    """`gains` for each number of training images (E6)."""
    parts = {int(n): gains(results.sel(train_images=n)) for n in results.train_images.values}
    return pd.concat(parts, names=["train_images"]).reorder_levels(["model", "train_images"])


def interactions(results: xr.Dataset, large: str = LARGE) -> pd.DataFrame:
    """How much more the large network gains from transfer than each other, points of AUC, at each
    number of training images (E6). `holds` if above 0."""
    rows = []
    for size, model in itertools.product(results.train_images.values, results.model.values):
        if model == large:
            continue
        one = results.sel(train_images=size)
        arms = [
            (1, one.sel(model=large, init="transfer")),
            (-1, one.sel(model=large, init="random")),
            (-1, one.sel(model=model, init="transfer")),
            (1, one.sel(model=model, init="random")),
        ]
        values = sum(weight * 100 * arm["test_auc"] for weight, arm in arms)
        error, patients = _patients(arms)
        effect = metrics.with_patients(metrics.interval(values.values), 100 * error, patients)
        row = effect_row("difference", effect, above)
        rows.append({"model": model, "train_images": int(size), **row})
    return pd.DataFrame(rows).set_index(["model", "train_images"])


def slopes(results: xr.Dataset) -> pd.DataFrame:
    """Change of the gain from transfer with each doubling of the training set, points of AUC, by
    model (E7): a least-squares slope a seed. `holds` if below 0: the gain shrinks."""
    doublings = np.log2(results.train_images.values)
    auc = 100 * results["test_auc"].transpose("seed", "train_images", ...)
    gain = auc.sel(init="transfer") - auc.sel(init="random")
    rows = []
    for model in results.model.values:
        values = [np.polyfit(doublings, row, 1)[0] for row in gain.sel(model=model).values]
        rows.append({"model": model, **effect_row("slope", metrics.interval(values), _signed(-1))})
    return pd.DataFrame(rows).set_index("model")


def fine_tuning(results: xr.Dataset) -> pd.DataFrame:
    """Fine-tuned minus frozen pretrained features, test AUC in points, by model and number of
    training images (E7). `holds` if above 0."""
    rows = []
    for model, size in itertools.product(results.model.values, results.train_images.values):
        one = results.sel(model=model, train_images=size)
        frozen = [i for i in one.init.values if str(i).startswith("frozen") and _ran(one, i)]
        for init in frozen:
            row = contrast(one.sel(init="transfer"), one.sel(init=init), "difference", above)
            rows.append({"model": model, "train_images": int(size), **row})
    return pd.DataFrame(rows).set_index(["model", "train_images"])


def _ran(one: xr.Dataset, init: str) -> bool:
    """Whether a model has this init: not every network of a chapter need have each."""
    return bool(one["auc"].sel(init=init).notnull().any())


# --- similarity ------------------------------------------------------------------------------


def gaps(results: xr.Dataset, top: int = 2, measure: str = "cca") -> pd.DataFrame:
    """Similarity random-random minus random-transfer over the `top` blocks, above chance (E8).

    One value a seed: a random network against the other random ones, and against the transferred
    ones. Seeds share partners, so the interval over seeds is a little too narrow.
    """
    rows = []
    for model in results.model.values:
        one = figures.blocks_of(results, model, measure)
        excess = _excess(one).isel(block=slice(-top, None)).mean("block")
        alike = _by_seed(excess, one, "random", "random")
        apart = _by_seed(excess, one, "random", "transfer")
        effect = metrics.interval(alike - apart)
        row = {"model": model, "random, random": alike.mean(), "random, transfer": apart.mean()}
        rows.append({**row, "null": _top_null(one, top), **effect_row("gap", effect)})
    return pd.DataFrame(rows).set_index("model")


def _excess(one: xr.Dataset) -> xr.DataArray:
    """Above chance, like with like: both without the bias of few datapoints."""
    return one["corrected"] - one["corrected_null"]


def _top_null(one: xr.Dataset, top: int) -> float:
    between = figures.between(one, "random", "random") | figures.between(one, "random", "transfer")
    return float(one["corrected_null"].isel(block=slice(-top, None), pair=between).mean())


def _by_seed(excess: xr.DataArray, one: xr.Dataset, a: str, b: str) -> np.ndarray:
    """Mean over partners, for each seed of the random network (all pairs that it is part of)."""
    chosen = one.isel(pair=figures.between(one, a, b))
    values = excess.isel(pair=figures.between(one, a, b)).values
    seeds = np.unique(one.seed_a.values)
    member = [
        ((chosen.init_a == "random") & (chosen.seed_a == s)).values
        | ((chosen.init_b == "random") & (chosen.seed_b == s)).values
        for s in seeds
    ]
    return np.array([values[m].mean() for m in member])


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


def gap_verdicts(table: pd.DataFrame, large: str = LARGE) -> pd.DataFrame:
    """With verdicts. Large network: gap above 0. Small ones: gap within the margin of 0 (the
    paper's Figure 2)."""
    decided = []
    for model, row in table.iterrows():
        effect = as_interval(row, "gap")
        none = metrics.decide_equivalent(effect, CCA_MARGIN)
        decided.append(above(effect) if model == large else none)
    return table.assign(verdict=[d.verdict for d in decided], p=[d.p for d in decided])


def kept(results: xr.Dataset, measure: str = "cca") -> xr.DataArray:
    """Similarity of each network to itself before training, above chance: (model, init, seed,
    depth), at depths from 0, its first block, to 1, its last, so that networks can be compared."""
    models, inits = results.model.values, list(dict.fromkeys(results.init_a.values))
    found = []
    for model in models:
        one = figures.blocks_of(results, model, measure)
        place = np.linspace(0, 1, one.sizes["block"])
        for init in inits:
            rows = _excess(one).isel(pair=figures.before_after(one, init)).transpose("pair", ...)
            found.append([np.interp(DEPTHS, place, row) for row in rows.values])
    values = np.reshape(found, (len(models), len(inits), -1, len(DEPTHS)))
    coords = {"model": models, "init": inits, "seed": range(values.shape[2]), "depth": DEPTHS}
    return xr.DataArray(values, coords, ("model", "init", "seed", "depth"))


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
    gap = kept(results).sel(init="transfer", drop=True) - kept(results).sel(init="random")
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
    return pd.DataFrame(rows).set_index(list(labels))


def foretold(results: xr.Dataset) -> pd.DataFrame:
    """R2 between how well each neuron is predicted from another network before and after training
    (E11), by model, block (first and last) and kind of pair; over pairs of networks."""
    rows = []
    for model in results.model.values:
        one = figures.blocks_of(results, model, "cca")
        for place, block in (("first", 0), ("last", -1)):
            for kind in ("random", "transfer"):
                before, after = figures.neurons(one.isel(block=block), kind)
                pairs = [_r2(x, y) for x, y in zip(before, after, strict=True)]
                row = {"model": model, "block": place, "kind": f"random, {kind}"}
                rows.append({**row, **effect_row("R2", metrics.interval(np.array(pairs)))})
    return pd.DataFrame(rows).set_index(["model", "block", "kind"])


def _r2(x: np.ndarray, y: np.ndarray) -> float:
    there = np.isfinite(x) & np.isfinite(y)
    if there.sum() < 3 or np.ptp(x[there]) == 0 or np.ptp(y[there]) == 0:
        return np.nan
    return float(np.corrcoef(x[there], y[there])[0, 1] ** 2)


def foretold_decision(table: pd.DataFrame, large: str = LARGE) -> metrics.Decision:
    """Whether the large network's first block, from random init, is foretold better than its last
    block, and than the first block of every other network (Welch's t test for each)."""
    alike = table.xs("random, random", level="kind")
    mine = as_interval(alike.loc[(large, "first")], "R2")
    rest = alike.drop(index=[(large, "first")])
    rest = rest[(rest.index.get_level_values("block") == "first") | (rest.index == (large, "last"))]
    rows = [
        effect_row("more", _welch(mine, as_interval(r, "R2")), above) for _, r in rest.iterrows()
    ]
    return overall(pd.DataFrame(rows))


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
    return pd.DataFrame(rows).set_index(["model", "init"])


def further(results: xr.Dataset, large: str = "resnet50") -> pd.DataFrame:
    """How much further the filters of each small network move than the large one's, percent of
    their length, by init (E12). `holds` if the interval over seeds lies above 0."""
    far = 100 * results["moved"].mean("filter")
    others = far.drop_sel(model=large)
    difference = others - far.sel(model=large, drop=True)
    return _paired({"model": others.model, "init": others.init}, difference, "further")


def gabor_changes(table: pd.DataFrame, init: str, large: str = LARGE) -> pd.DataFrame:
    """Small networks, by model: from random init the share of Gabors stays within GABORS of what
    it was, and from pretrained weights some are lost (the paper's Figure 5)."""
    rows = []
    for model, row in table.xs(init, level="init").drop(index=large).iterrows():
        effect = as_interval(row, "change")
        none = metrics.decide_equivalent(effect, 100 * GABORS)
        decision = none if init == "random" else _signed(-1)(effect)
        rows.append({"model": model, "change": effect.mean, **decision._asdict()})
    return pd.DataFrame(rows).set_index("model")


# --- convergence -----------------------------------------------------------------------------


def level(results: xr.Dataset, model: str) -> float:
    """The AUC that counts as converged: REACH of the random init's mean final gain over chance, or
    of transfer's where random init did not learn; nan where neither did."""
    final = results["auc"].sel(model=model).isel(step=-1).mean("seed")
    for init in ("random", "transfer"):
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
        for init in [i for i in one.init.values if i != "random" and _ran(one, i)]:
            rows.append({"model": model, "init": init, **faster(results, model, "random", init)})
    return pd.DataFrame(rows).set_index(["model", "init"])


def faster(results: xr.Dataset, model: str, slow: str, fast: str) -> dict:
    """One row of `speedups`: steps of one init over those of another."""
    goal = level(results, model)
    steps = figures.reached(results.sel(model=model), goal)
    if np.isnan(goal):
        steps = steps * np.nan
    end = float(results.step[-1])
    found = metrics.speedup(steps.sel(init=slow).values, steps.sel(init=fast).values, end)
    ends = {n: 2.0 ** getattr(found.log2, n) for n in ("low", "high")}
    row = {"speed-up": 2.0**found.log2.mean, **ends, "n": found.log2.n, "level": goal}
    return row | {"bound": found.bound, "never": found.never, **found.decision._asdict()}


def ahead(results: xr.Dataset) -> xr.DataArray:
    """Mean validation AUC over the whole training, in points: early learning counts, and no run
    need reach a level."""
    return 100 * results["auc"].mean("step")


def variants(results: xr.Dataset, than: str = "batch_norm") -> pd.DataFrame:
    """Mean Var against the control that keeps pretrained batch norm over random weights, by model:
    mean validation AUC over training, in points (E14). `holds` if Mean Var is ahead."""
    area = ahead(results)
    models = [m for m in results.model.values if _ran(results.sel(model=m), than)]
    rows = []
    for model in models:
        one = area.sel(model=model)
        effect = metrics.interval((one.sel(init="mean_var") - one.sel(init=than)).values)
        rows.append({"model": model, **effect_row("difference", effect, above)})
    return pd.DataFrame(rows).set_index("model")


# --- transfusion and hybrids -----------------------------------------------------------------


def prefixes(one: xr.Dataset) -> list[str]:
    """The inits of one model from nothing pretrained to everything, block by block."""
    cuts = [str(i) for i in one.init.values if str(i).startswith("transfusion:") and _ran(one, i)]
    return ["random", *cuts, "transfer"]


def marginal(results: xr.Dataset) -> pd.DataFrame:
    """What each further pretrained block adds, by model: points of mean validation AUC over
    training (E15)."""
    rows = []
    for model in results.model.values:
        one = results.sel(model=model)
        for without, with_ in itertools.pairwise(prefixes(one)):
            both = ahead(one).sel(init=[without, with_])
            effect = metrics.interval(both.diff("init").values)
            rows.append({"model": model, "init": with_, **effect_row("added", effect, above)})
    return pd.DataFrame(rows).set_index(["model", "init"])


def first_block(results: xr.Dataset) -> pd.DataFrame:
    """What the first pretrained block adds, minus what each later one adds (E15). `holds` if above
    0."""
    rows = []
    for model in results.model.values:
        one = results.sel(model=model)
        added = ahead(one).sel(init=prefixes(one)).diff("init")
        for init in added.init.values[1:]:
            effect = metrics.interval((added.isel(init=0) - added.sel(init=init)).values)
            rows.append({"model": model, "init": init, **effect_row("difference", effect, above)})
    return pd.DataFrame(rows).set_index(["model", "init"])


def low_against_many(results: xr.Dataset) -> pd.DataFrame:
    """The first pretrained block alone, few weights, minus the last one alone, most weights: points
    of mean validation AUC over training, by model (E16). `holds` if above 0."""
    rows = []
    for model in results.model.values:
        one = results.sel(model=model)
        last = [str(i) for i in one.init.values if str(i).startswith("suffix:") and _ran(one, i)]
        if last:
            low, high = prefixes(one)[1], last[-1]
            effect = metrics.interval((ahead(one).sel(init=low) - ahead(one).sel(init=high)).values)
            rows.append({"model": model, "init": high, **effect_row("difference", effect, above)})
    return pd.DataFrame(rows, columns=rows[0] if rows else ["model", "init"]).set_index(
        ["model", "init"]
    )


def slim(results: xr.Dataset) -> pd.DataFrame:
    """Slim ResNet-50 with two pretrained blocks minus others, test AUC in points (E17): against
    full transfer (`holds` within the margin), and against its own random init (`holds` above 0)."""
    hybrid = results.sel(model=config.SLIM, init="transfusion:block2")
    others = {
        (LARGE, "transfer"): equivalent,
        (LARGE, "transfusion:block2"): equivalent,
        (config.SLIM, "random"): above,
    }
    rows = []
    for (model, init), decide in others.items():
        row = contrast(hybrid, results.sel(model=model, init=init), "difference", decide)
        rows.append({"model": model, "init": init, **row})
    return pd.DataFrame(rows).set_index(["model", "init"])


def synthetic_gabors(results: xr.Dataset) -> pd.DataFrame:
    """Synthetic Gabors as first layer, the rest random, minus others, by model: points of mean
    validation AUC over training (E18). Against the pretrained first layer, `holds` within the
    margin; against a Gaussian one of the same moments and against random init, above 0."""
    others = {"transfusion:conv1": equivalent, "mean_var:conv1": above, "random": above}
    rows = []
    for model in [m for m in results.model.values if _ran(results.sel(model=m), "gabor")]:
        area = ahead(results.sel(model=model))
        for init, decide in others.items():
            effect = metrics.interval((area.sel(init="gabor") - area.sel(init=init)).values)
            rows.append({"model": model, "init": init, **effect_row("difference", effect, decide)})
    return pd.DataFrame(rows).set_index(["model", "init"])


# --- other conditions ------------------------------------------------------------------------


def gains_by_variant(results: xr.Dataset) -> pd.DataFrame:
    """`gains` under each variant of the recipe (E19)."""
    parts = {str(v): gains(results.sel(variant=v)) for v in results.variant.values}
    return pd.concat(parts, names=["variant"]).reorder_levels(["model", "variant"])


def speedups_by_variant(results: xr.Dataset) -> pd.DataFrame:
    """`speedups` of Mean Var under each variant (E19, E20)."""
    parts = {}
    for variant in results.variant.values:
        one = results.sel(variant=variant).dropna("step", how="all", subset=["auc"])
        parts[str(variant)] = speedups(one).xs("mean_var", level="init")
    return pd.concat(parts, names=["variant"]).reorder_levels(["model", "variant"])


def stable(table: pd.DataFrame) -> metrics.Decision:
    """Whether all variants give each model the same decided answer: `differs` if two decided
    answers contradict each other, `inconclusive` if any is undecided.

    Nothing is estimated, so there is no p.
    """
    answers = [set(group["verdict"]) for _, group in table.groupby(level="model")]
    if any({"holds", "differs"} <= found for found in answers):
        return metrics.Decision("differs", np.nan)
    same = all(len(found) == 1 and "inconclusive" not in found for found in answers)
    return metrics.Decision("holds" if same else "inconclusive", np.nan)


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
    for init in ("random", "transfer"):
        values = metrics.interval(auc.sel(init=init).values)
        found |= {init: values.mean, f"{init} sd": values.sd}
    return found


def overall(table: pd.DataFrame) -> metrics.Decision:
    """One decision on a claim about all rows. p is that of all holding together, or of any row
    being as it is, times the number of rows (Bonferroni)."""
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
