"""What a page says in words and tables: effects beside the paper's, verdicts, provenance."""

from __future__ import annotations

import html
import json

import numpy as np
import pandas as pd
import xarray as xr
from IPython.display import HTML

from transfusion import figures, metrics, paper

# Fixed before the runs, with their reasons in book/scope.md.
MARGIN = 0.01  # AUC: one point, the paper's gains on full data being at most 0.3
REACH = 0.9  # of the random init's final gain over chance, as 0.91 is of the paper's 0.953
LEARNED = 0.05  # a gain over chance below this is not worth a threshold
CCA_MARGIN = 0.01  # the gaps of the paper's small networks are at most 0.006


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


def gaps(results: xr.Dataset, top: int = 2) -> pd.DataFrame:
    """Mean CCA random-random minus random-transfer over the `top` blocks, less their nulls (E8).

    One value a seed: a random network against the other random ones, and against the transferred
    ones. Seeds share partners, so the interval over seeds is a little too narrow.
    """
    rows = []
    for model in results.model.values:
        one = results.sel(model=model).dropna("block", how="all", subset=["cca"]).sortby("depth")
        excess = (one["cca"] - one["null"]).isel(block=slice(-top, None)).mean("block")
        alike = _by_seed(excess, one, "random", "random")
        apart = _by_seed(excess, one, "random", "transfer")
        effect = metrics.interval(alike - apart)
        row = {"model": model, "random, random": alike.mean(), "random, transfer": apart.mean()}
        rows.append({**row, "null": float(one["null"][-top:].mean()), **_effect("gap", effect)})
    return pd.DataFrame(rows).set_index("model")


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


def gap_verdicts(table: pd.DataFrame, large: str = "resnet50") -> list[str]:
    """Large network: gap above 0. Small ones: gap within the margin of 0 (the paper's Figure 2)."""
    verdicts = []
    for model, row in table.iterrows():
        effect = metrics.Interval(row["gap"], row["low"], row["high"], row["sd"], int(row["n"]))
        equal = metrics.equivalence(effect, CCA_MARGIN)
        verdicts.append(metrics.positive(effect) if model == large else equal)
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


# --- words and tables ------------------------------------------------------------------------


def verdict_box(claim: str, found: str, verdict: str) -> HTML:
    """The claim as the paper has it, what was found, and the verdict, in a box atop the page."""
    return HTML(
        f'<div class="verdict {_slug(verdict)}"><p><b>Paper.</b> {claim}</p>'
        f"<p><b>Here.</b> {found}</p><p><b>Verdict.</b> {badge(verdict)}</p></div>"
    )


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
            "gap, here": _spread(row, "gap", 3),
            "gap, paper": f"{theirs:+.3f}" if known else "–",
            "verdict": badge(row["verdict"]),
        }
    return look(pd.DataFrame(rows).T)


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
