"""What a page says in words and tables: effects beside the paper's, verdicts, provenance."""

from __future__ import annotations

import html
import itertools
import json
from collections.abc import Iterable

import numpy as np
import pandas as pd
import xarray as xr
from IPython.display import HTML

from transfusion import figures, metrics, paper, similarity

# Fixed before the runs, with their reasons in book/scope.md.
MARGIN = 0.01  # AUC: one point, the paper's gains on full data being at most 0.3
REACH = 0.9  # of the random init's final gain over chance, as 0.91 is of the paper's 0.953
LEARNED = 0.05  # a gain over chance below this is not worth a threshold
CCA_MARGIN = 0.01  # the gaps of the paper's small networks are at most 0.006
GABORS = 0.05  # share of filters: one of 20, as many as noise of the 99 % level and a slip give
DEPTHS = np.linspace(0, 1, 5)  # of the blocks at which networks are compared


# --- effects ---------------------------------------------------------------------------------


def gains(results: xr.Dataset) -> pd.DataFrame:
    """Transfer minus random, test AUC in points, by model: paired over seeds, with verdict (E2)."""
    auc = 100 * results["test_auc"]
    rows = []
    for model in results.model.values:
        both = auc.sel(model=model)
        effect = metrics.interval((both.sel(init="transfer") - both.sel(init="random")).values)
        verdict = metrics.equivalence(effect, 100 * MARGIN)
        rows.append({"model": model, **_means(both), **_effect("gain", effect), "verdict": verdict})
    return pd.DataFrame(rows).set_index("model")


def clearest(table: pd.DataFrame) -> pd.Series:
    """The row whose interval lies farthest from 0: the one that decides, not the largest mean."""
    return table.loc[np.maximum(table["low"], -table["high"]).idxmax()]


def keeping_up(results: xr.Dataset, reference: str = "resnet50") -> pd.DataFrame:
    """Each small network minus the reference, test AUC in points, by init, paired over seeds (E3).

    `holds` if the interval lies above minus the margin: not worse by more than that.
    """
    auc = 100 * results["test_auc"]
    rows = []
    for model in [m for m in results.model.values if m != reference]:
        for init in results.init.values:
            difference = auc.sel(model=model, init=init) - auc.sel(model=reference, init=init)
            effect = metrics.interval(difference.values)
            verdict = metrics.positive(effect, -100 * MARGIN)
            rows.append(
                {"model": model, "init": init, **_effect("difference", effect), "verdict": verdict}
            )
    return pd.DataFrame(rows).set_index(["model", "init"])


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
        rows.append({**row, "null": _top_null(one, top), **_effect("gap", effect)})
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


def gap_verdicts(table: pd.DataFrame, large: str = "resnet50") -> list[str]:
    """Large network: gap above 0. Small ones: gap within the margin of 0 (the paper's Figure 2)."""
    verdicts = []
    for model, row in table.iterrows():
        effect = _interval(row, "gap")
        equal = metrics.equivalence(effect, CCA_MARGIN)
        verdicts.append(metrics.positive(effect) if model == large else equal)
    return verdicts


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
    """Mean over seeds with its interval, one row a combination of labels."""
    rows = []
    for combination in itertools.product(*(label.values for label in labels.values())):
        chosen = dict(zip(labels, combination, strict=True))
        effect = metrics.interval(values.sel(chosen).values)
        rows.append({**chosen, **_effect(name, effect), "verdict": metrics.positive(effect)})
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
                rows.append({**row, **_effect("R2", metrics.interval(np.array(pairs)))})
    return pd.DataFrame(rows).set_index(["model", "block", "kind"])


def _r2(x: np.ndarray, y: np.ndarray) -> float:
    there = np.isfinite(x) & np.isfinite(y)
    if there.sum() < 3 or np.ptp(x[there]) == 0 or np.ptp(y[there]) == 0:
        return np.nan
    return float(np.corrcoef(x[there], y[there])[0, 1] ** 2)


def foretold_verdict(table: pd.DataFrame, large: str = "resnet50") -> str:
    """Whether the large network's first block, from random init, is foretold better than its last
    block, and than the first block of every other network: intervals that do not overlap."""
    alike = table.xs("random, random", level="kind")
    mine = alike.loc[(large, "first")]
    rest = alike.drop(index=[(large, "first")])
    rest = rest[(rest.index.get_level_values("block") == "first") | (rest.index == (large, "last"))]
    verdicts = np.where(rest["high"] < mine["low"], "holds", "inconclusive")
    verdicts = np.where(rest["low"] > mine["high"], "differs", verdicts)
    return metrics.overall(verdicts.tolist())


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
        rows.append(row | _effect("change", change))
    return pd.DataFrame(rows).set_index(["model", "init"])


def further(results: xr.Dataset, large: str = "resnet50") -> pd.DataFrame:
    """How much further the filters of each small network move than the large one's, percent of
    their length, by init (E12). `holds` if the interval over seeds lies above 0."""
    far = 100 * results["moved"].mean("filter")
    others = far.drop_sel(model=large)
    difference = others - far.sel(model=large, drop=True)
    return _paired({"model": others.model, "init": others.init}, difference, "further")


def gabor_verdicts(table: pd.DataFrame, init: str, large: str = "resnet50") -> dict[str, str]:
    """Small networks, by model: from random init the share of Gabors stays within GABORS of what
    it was, and from pretrained weights some are lost (the paper's Figure 5)."""
    verdicts = {}
    for model, row in table.xs(init, level="init").drop(index=large).iterrows():
        effect = _interval(row, "change")
        lost = metrics.Interval(-effect.mean, -effect.high, -effect.low, effect.sd, effect.n)
        none = metrics.equivalence(effect, 100 * GABORS)
        verdicts[str(model)] = none if init == "random" else metrics.positive(lost)
    return verdicts


def level(results: xr.Dataset, model: str) -> float:
    """The AUC that counts as converged: REACH of the random init's mean final gain over chance."""
    final = results["auc"].sel(model=model, init="random").isel(step=-1).mean().item()
    return 0.5 + REACH * (final - 0.5)


def speedups(results: xr.Dataset) -> pd.DataFrame:
    """Steps of the random init over steps of another, to the same validation AUC (E13).

    A geometric mean over seeds with its 95 % interval. A run that never gets there counts with
    its whole length, so ratios are bounds then; `never` says how many. `holds` if the interval lies
    above 1; where random init learned too little to set a level, there is no ratio.
    """
    rows = []
    for model in results.model.values:
        goal = level(results, model)
        steps = figures.reached(results.sel(model=model), goal)
        capped = xr.ufuncs.log2(steps.where(np.isfinite(steps), int(results.step[-1])))
        for init in [i for i in results.init.values if i != "random"]:
            effect = metrics.interval((capped.sel(init="random") - capped.sel(init=init)).values)
            never = int(np.isinf(steps.sel(init=["random", init])).sum())
            row = {"model": model, "init": init, "level": goal, "n": effect.n, "never": never}
            rows.append(row | _ratio(effect, learned=goal - 0.5 >= REACH * LEARNED))
    return pd.DataFrame(rows).set_index(["model", "init"])


def _ratio(effect: metrics.Interval, *, learned: bool) -> dict[str, float | str]:
    """Ratio, interval and verdict of log2 ratios; none where there is no level to reach."""
    if not learned:
        return {"speed-up": np.nan, "low": np.nan, "high": np.nan, "verdict": "inconclusive"}
    ends = {"speed-up": 2**effect.mean, "low": 2**effect.low, "high": 2**effect.high}
    return {**ends, "verdict": metrics.positive(effect)}


def _means(both: xr.DataArray) -> dict[str, float]:
    found: dict[str, float] = {}
    for init in ("random", "transfer"):
        values = metrics.interval(both.sel(init=init).values)
        found |= {init: values.mean, f"{init} sd": values.sd}
    return found


def _effect(name: str, effect: metrics.Interval) -> dict[str, float]:
    return {
        name: effect.mean,
        "low": effect.low,
        "high": effect.high,
        "sd": effect.sd,
        "n": effect.n,
    }


def _interval(row: pd.Series, name: str) -> metrics.Interval:
    """What `_effect` spread over columns."""
    return metrics.Interval(row[name], row["low"], row["high"], row["sd"], int(row["n"]))


# --- words and tables ------------------------------------------------------------------------


def verdict_box(claim: str, found: str, verdict: str) -> HTML:
    """The claim as the paper has it, what was found, and the verdict, in a box atop the page."""
    return HTML(
        f'<div class="verdict {_slug(verdict)}"><p><b>Paper.</b> {claim}</p>'
        f"<p><b>Here.</b> {found}</p><p><b>Verdict.</b> {badge(verdict)}</p></div>"
    )


def counted(verdicts: list[str], names: Iterable[str] = ()) -> str:
    """`holds for CBR-Tiny and CBR-Small; differs for CBR-LargeT`, or, without names, how often."""
    names = list(names)
    found = []
    for verdict in metrics.VERDICTS:
        chosen = [i for i, v in enumerate(verdicts) if v == verdict]
        if chosen and names:
            found.append(f"{verdict} for {' and '.join(figures.title(names[i]) for i in chosen)}")
        elif chosen:
            found.append(f"{verdict} {len(chosen)} of {len(verdicts)} times")
    return "; ".join(found)


def badge(verdict: str) -> str:
    """The verdict as a coloured word."""
    return f'<span class="badge {_slug(verdict)}">{html.escape(verdict)}</span>'


def _slug(verdict: str) -> str:
    return verdict.replace(" ", "-")


def spread(mean: float, low: float, high: float, n: int, digits: int = 1, unit: str = "") -> str:
    """`+0.4 points [-0.1, 0.9] (n = 4)`: a number never travels alone."""
    values = f"{mean:+.{digits}f}{unit} [{low:+.{digits}f}, {high:+.{digits}f}]"
    return f"{values} (n = {n})"


def ratio(row: pd.Series) -> str:
    """`2.3 times [1.1, 4.6] (n = 4)`, or why there is no such number."""
    if np.isnan(row["speed-up"]):
        return f"no level to reach, random init stayed near chance (n = {int(row['n'])})"
    return (
        f"{row['speed-up']:.1f} times [{row['low']:.1f}, {row['high']:.1f}] (n = {int(row['n'])})"
    )


def performance_table(results: xr.Dataset) -> HTML:
    """Test AUC in percent by model and init: the paper's Table 1 and ours."""
    table, printed = gains(results), paper.numbers("Table 1", "auc")
    rows = {}
    for model, row in table.iterrows():
        ours = {
            f"{init}, here": f"{row[init]:.1f} ± {row[f'{init} sd']:.1f}"
            for init in ("random", "transfer")
        }
        theirs = {f"{i}, paper": _printed(printed, model, i) for i in ("random", "transfer")}
        rows[figures.title(str(model))] = {**theirs, **ours, "n": int(row["n"])}
    return look(pd.DataFrame(rows).T)


def _printed(numbers: pd.DataFrame, model, init: str) -> str:
    """A number of the paper; marked where no source seen confirms it."""
    if (model, init) not in numbers.index:
        return "–"
    row = numbers.loc[(model, init)]
    mark = "" if row["confidence"] != "unconfirmed" else " (unconfirmed)"
    return f"{row['value']:g}{mark}"


def difference_table(table: pd.DataFrame, name: str, digits: int = 1) -> HTML:
    """Any table of effects with interval, n and verdict."""
    shown = table.reset_index()
    keys = [n for n in ("model", "init") if n in shown]
    shown[keys] = shown[keys].map(figures.title)
    effects = [_spread(row, name, digits) for _, row in table.iterrows()]
    verdicts = [badge(v) for v in shown["verdict"]] if "verdict" in shown else []
    columns = {k: shown[k] for k in keys} | {name: effects}
    return look(pd.DataFrame(columns | ({"verdict": verdicts} if verdicts else {})), index=False)


def _spread(row: pd.Series, name: str, digits: int = 1) -> str:
    return spread(row[name], row["low"], row["high"], int(row["n"]), digits=digits)


def _ends(row: pd.Series, name: str, digits: int) -> str:
    """Value and interval, for a table that gives n elsewhere."""
    return spread(row[name], row["low"], row["high"], int(row["n"]), digits).rpartition(" (")[0]


def gap_table(results: xr.Dataset) -> HTML:
    """Mean CCA above chance by model, beside the gap of the paper's Figure 2."""
    table, printed = gaps(results), paper.numbers("Figure 2", "cca")["value"]
    table["verdict"] = gap_verdicts(table)
    rows = {}
    for model, row in table.iterrows():
        known = (model, "random") in printed.index
        theirs = printed[(model, "random")] - printed[(model, "transfer")] if known else np.nan
        rows[figures.title(str(model))] = {
            "random, random": f"{row['random, random']:.3f}",
            "random, transfer": f"{row['random, transfer']:.3f}",
            "null": f"{row['null']:.3f}",
            "gap, here": _ends(row, "gap", 3),
            "gap, paper": f"{theirs:+.3f}" if known else "–",
            "verdict": badge(row["verdict"]),
        }
    return look(pd.DataFrame(rows).T)


def measures_table(results: xr.Dataset) -> HTML:
    """The gap by each measure, with its interval over seeds."""
    tables = {figures.MEASURES[m]: gaps(results, measure=m) for m in results.measure.values}
    rows = {
        figures.title(str(model)): {n: _ends(t.loc[model], "gap", 3) for n, t in tables.items()}
        for model in results.model.values
    }
    return look(pd.DataFrame(rows).T)


def effects_table(table: pd.DataFrame, name: str, digits: int = 1) -> HTML:
    """A measured value with interval and n, one row a combination of labels."""
    shown = table.reset_index()
    labels = shown[list(table.index.names)].map(figures.title)
    ends = shown[[name, "low", "high"]].map(lambda value: f"{value:.{digits}f}")
    values = [f"{mean} [{low}, {high}]" for mean, low, high in ends.values]
    return look(labels.assign(**{name: values, "n": shown["n"]}), index=False)


def movement_table(table: pd.DataFrame) -> HTML:
    """First layers by model and init: how far filters moved, and the share of Gabors."""
    rows = []
    for (model, init), row in table.iterrows():
        moved = f"{row['moved']:.0f} [{row['moved low']:.0f}, {row['moved high']:.0f}]"
        gabors = f"{row['gabors before']:.0f}, {row['gabors after']:.0f}"
        rows.append(
            {
                "model": figures.title(model),
                "init": figures.title(init),
                "moved (%)": moved,
                "Gabors before, after (%)": gabors,
                "change": _ends(row, "change", 0),
                "n": int(row["n"]),
            }
        )
    return look(pd.DataFrame(rows), index=False)


def speedup_table(results: xr.Dataset) -> HTML:
    """Speed-up over random init by model, beside the reading of the paper's Figure 6."""
    table, printed = speedups(results), paper.numbers("Figure 6", "speedup")["value"]
    rows = []
    for (model, init), row in table.iterrows():
        theirs = f"{printed[(model, init)]:g}" if (model, init) in printed.index else "–"
        rows.append(
            {
                "model": figures.title(model),
                "init": figures.title(init),
                "AUC to reach": f"{row['level']:.3f}",
                "speed-up, here": "–" if np.isnan(row["speed-up"]) else ratio(row),
                "never reached": row["never"],
                "speed-up, paper": theirs,
                "verdict": badge(row["verdict"]),
            }
        )
    return look(pd.DataFrame(rows), index=False)


def look(frame: pd.DataFrame, *, index: bool = True) -> HTML:
    """A table with a stable id, styled by the book."""
    table = frame.to_html(classes="dataframe", border=0, index=index, escape=False)
    return HTML(f'<div class="table-wrap">{table}</div>')


def glue(**values: object) -> None:
    """Name values for prose here and on other pages; numpy numbers as Python's (glue formats)."""
    from myst_nb import glue as keep

    for name, value in values.items():
        keep(name, value.item() if isinstance(value, np.generic) else value, display=False)


def glue_verdicts(**verdicts: str) -> None:
    """Name verdicts, as coloured words, for the front page: `transfer` becomes `transfer_badge`."""
    glue(**{f"{name}_badge": HTML(badge(verdict)) for name, verdict in verdicts.items()})


def footer(results: xr.Dataset) -> HTML:
    """Where the numbers come from: runs, device, versions, hours, and every key."""
    runs = pd.DataFrame(json.loads(results.attrs["runs"]))
    facts = {
        "results": f"{len(runs)}, of which {int((runs['status'] != 'done').sum())} failed",
        "device": ", ".join(sorted(set(runs["device"]))),
        "computing time": f"{runs['seconds'].sum() / 3600:.2f} h",
        "commit": ", ".join(sorted(set(runs["commit"]))),
        "torch": ", ".join(sorted(set(runs["torch"]))),
        "parameters": results.attrs["parameters"],
    }
    lines = "".join(
        f"<dt>{name}</dt><dd>{html.escape(value)}</dd>" for name, value in facts.items()
    )
    columns = [
        c for c in ("key", "model", "init", "target", "seed", "status", "seconds") if c in runs
    ]
    table = look(runs[columns].round(1), index=False).data
    return HTML(
        '<details class="provenance"><summary>Where these numbers come from</summary>'
        f"<dl>{lines}</dl>{table}</details>"
    )
