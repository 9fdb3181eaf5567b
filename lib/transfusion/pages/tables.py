"""Tables of what was measured, and where a page's numbers come from."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import pandas as pd
import xarray as xr
from IPython.display import HTML

from transfusion import terms
from transfusion.experiments import accuracy, features, paper, tuning
from transfusion.experiments.tables import knobs_of
from transfusion.figures import representations
from transfusion.pages import verdicts
from transfusion.statistics import contrasts, gate, intervals

# --- words and tables ------------------------------------------------------------------------


def counted(verdicts: list[str], names: Iterable[str] = ()) -> str:
    """`holds for CBR-Tiny and CBR-Small; differs for CBR-LargeT`, or, without names, how often."""
    names = list(names)
    found = []
    for verdict in intervals.VERDICTS:
        chosen = [i for i, v in enumerate(verdicts) if v == verdict]
        if chosen and names:
            found.append(f"{verdict} for {_listed(terms.title(names[i]) for i in chosen)}")
        elif chosen:
            found.append(f"{verdict} {len(chosen)} of {len(verdicts)} times")
    return "; ".join(found)


def _listed(names: Iterable[str]) -> str:
    """`A`, `A and B`, `A, B and C`."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def levels_table(results: xr.Dataset) -> HTML:
    """Test AUC in percent: first what needs no training, then every network and init, with what it
    is above both simple baselines, whether it has learned and, of retinas, the paper's Table 1."""
    printed = paper.numbers("Table 1", "auc")
    rows = []
    for (model, init), row in gate.baseline_levels(results).iterrows():
        name = terms.title(init) + (f", {terms.title(model)}" if model else "")
        rows.append({"network": name, "AUC (%)": _level(row)})
    for (model, init), row in gate.levels(results).iterrows():
        name = f"{terms.title(model)}, {terms.title(init)}"
        told = {"network": name, "AUC (%)": _level(row), "n": str(int(row["n"]))}
        for simple in gate.SIMPLE:
            if f"above {simple}" in row:
                more, least = row[f"above {simple}"], row[f"above {simple} from"]
                told[f"above {terms.title(simple)}"] = f"{more:+z.1f} [{least:+z.1f}, …]"
        told["learned"] = "yes" if row["learned"] else verdicts.badge("not learned")
        if _of_retinas(results):
            told["paper"] = _printed(printed, model, init)
        rows.append(told)
    return styled(pd.DataFrame(rows).fillna(""), index=False)


def _of_retinas(results: xr.Dataset) -> bool:
    """Whether the task is the paper's first one, diabetic retinopathy of real eyes."""
    return knobs_of(results).get("study") in ("retina", "paper")


def _level(row: pd.Series) -> str:
    return f"{row['AUC']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"


def _printed(numbers: pd.DataFrame, model, init: str) -> str:
    """A number of the paper; marked where no source seen confirms it."""
    if (model, init) not in numbers.index:
        return "–"
    row = numbers.loc[(model, init)]
    mark = "" if row["confidence"] != "unconfirmed" else "†"
    return f"{row['value']:g}{mark}"


def effect_table(measure: Callable[[xr.Dataset], contrasts.Effect], results: xr.Dataset) -> HTML:
    """What decides a claim: the row of every network, and their mean, at each equal rate."""
    parts = []
    for rate, one in contrasts.rates(results).items():
        effect = measure(one)
        rows = contrasts.table(effect)
        shown = _rows(rows, effect.name, effect.digits) if len(rows) else pd.DataFrame()
        found = contrasts.contrast(effect)
        if found is not None and len(rows):
            told = dict.fromkeys(shown.columns[: len(effect.keys)], "")
            told |= {shown.columns[0]: "<b>mean, decides</b>"}
            told |= _cells(found, effect.name, effect.digits)
            shown.loc[len(shown)] = told | {"verdict": verdicts.badge(effect.decide(found).verdict)}
        if rate is not None and len(shown):
            shown.insert(0, "learning rate", f"{rate:g}")
        parts.append(shown)
    parts = [part for part in parts if len(part)]
    return styled(pd.concat(parts), index=False) if parts else HTML(NO_RUN)


NO_RUN = "<p>No run of this study speaks to it.</p>"


def difference_table(table: pd.DataFrame, name: str, digits: int = 1) -> HTML:
    """Any table of effects: interval, n, the smallest effect that it could have shown with a power
    of 80 %, and what each row would say by itself."""
    if table.empty:
        return HTML(NO_RUN)
    return styled(_rows(table, name, digits), index=False)


def _rows(table: pd.DataFrame, name: str, digits: int) -> pd.DataFrame:
    shown = _labels(table)
    found = [_cells(contrasts.as_interval(row, name), name, digits) for _, row in table.iterrows()]
    shown = shown.join(pd.DataFrame(found))
    if "verdict" in table:
        shown["verdict"] = [verdicts.badge(v) for v in table["verdict"]]
    return shown


def _cells(effect: intervals.Interval, name: str, digits: int) -> dict[str, str]:
    detectable = intervals.detectable(effect)
    shown = contrasts.decimals(effect, digits)
    could = f"{detectable:.{shown}f}" if np.isfinite(detectable) else "nothing"
    return {terms.title(name): contrasts.interval_text(effect, digits), "could show": could}


def _labels(table: pd.DataFrame) -> pd.DataFrame:
    """The index as columns, in words."""
    labels = table.index.to_frame(index=False)
    labels = labels.rename(columns={"train_images": "training images", "lr": "learning rate"})
    return labels.map(_named)


def _named(label: str | float) -> str:
    if isinstance(label, str):
        return terms.title(label)
    return f"{label:g}" if label < 1 else f"{label:,}"


def _spread(row: pd.Series, name: str, digits: int = 1) -> str:
    return contrasts.interval_text(contrasts.as_interval(row, name), digits)


def _ends(row: pd.Series, name: str, digits: int) -> str:
    """Value and interval, for a table that gives n elsewhere."""
    return _spread(row, name, digits).rpartition(" (")[0]


def finding_table(results: xr.Dataset) -> HTML:
    """Gain of each finding by model, with p for their number; the paper's where confirmed."""
    table = accuracy.finding_gains(results)
    if table.empty:
        return HTML("<p>This study's task has one question, not several findings.</p>")
    shown = _labels(table)
    shown["gain, here"] = [_spread(row, "gain") for _, row in table.iterrows()]
    shown["gain, paper"] = [_paper_gain(m, f) for m, f in table.index]
    shown["p, adjusted"] = table["adjusted"].map(verdicts._p).to_numpy()
    return styled(shown, index=False)


def _paper_gain(model: str, finding: str) -> str:
    printed = paper.numbers("Table 2", f"auc {finding.lower()}")["value"]
    if (model, "transfer") not in printed.index:
        return "–"
    return f"{printed[model, 'transfer'] - printed[model, 'random']:+.2f}"


def source_table(results: xr.Dataset) -> HTML:
    """What each network reached on its source task, beside its AUC after transfer."""
    if "source_auc" not in results:
        return HTML("<p>No network of this study was pretrained here.</p>")
    columns = [n for n in ("source_top1", "source_top5", "source_auc") if n in results]
    names = {"source_top1": "top-1 (%)", "source_top5": "top-5 (%)", "source_auc": "AUC (%)"}
    table = 100 * results[columns].to_dataframe()[columns]
    reached = 100 * results["test_auc"].sel(init="transfer").mean(["fold", "seed"])
    table["transfer"] = reached.to_series()
    table = table.rename(columns=names | {"transfer": "medical AUC, transfer (%)"})
    table.index = [terms.title(str(m)) for m in table.index]
    return styled(table.map(lambda v: "named weights" if np.isnan(v) else f"{v:.1f}"))


def tuning_table(results: xr.Dataset) -> HTML:
    """Last validation AUC of each arm at each learning rate, in percent, mean over repetitions; the
    chosen one is bold."""
    reached, ends = tuning.last_validation(results), tuning.at_an_end(results)
    rows = []
    for arm, top in tuning.best_rates(results).items():
        model, init = arm.split(" ")
        values = reached.sel(model=model, init=init)
        at = {f"{rate:g}": float(values.sel(lr=rate)) for rate in reached.lr.values}
        cells = {rate: "–" if np.isnan(value) else f"{value:.2f}" for rate, value in at.items()}
        cells[f"{top:g}"] = f"<b>{cells[f'{top:g}']}</b>"
        told = {"best lies": "at an end" if arm in ends else "inside"}
        rows.append({"model": terms.title(model), "init": terms.title(init)} | cells | told)
    return styled(pd.DataFrame(rows), index=False)


def cost_table(results: xr.Dataset) -> HTML:
    """What each network costs, and what it reaches after transfer."""
    rows = []
    for model in results.model.values:
        one = results.sel(model=model)
        reached = intervals.interval(100 * one["test_auc"].sel(init="transfer").values)
        rows.append(
            {
                "model": terms.title(str(model)),
                "parameters (M)": f"{float(one['parameters']) / 1e6:.2f}",
                "multiply-adds (G)": f"{float(one['multiply_adds']) / 1e9:.3f}",
                "memory an image (MB)": f"{float(one['memory']) / 1e6:.1f}",
                "seconds a training": f"{float(one['seconds'].median()):.0f}",
                "AUC, transfer (%)": f"{reached.mean:.1f} ± {reached.sd:.1f}",
                "n": reached.n,
            }
        )
    return styled(pd.DataFrame(rows), index=False)


def gap_table(results: xr.Dataset) -> HTML:
    """Mean CCA above chance by model, before and after training and what training adds, beside the
    gap of the paper's Figure 2."""
    table = contrasts.by_rate(features.gaps, results)
    if table.empty:
        return HTML(NO_RUN)
    printed = paper.numbers("Figure 2", "cca")["value"]
    shown = _labels(table)
    columns = ["random, random", "random, transfer", "before", "after"]
    names = dict(zip(columns, [*columns[:2], "gap before", "gap after"], strict=True))
    for column, name in names.items():
        shown[name] = [f"{value:.3f}" for value in table[column]]
    shown["added"] = [_spread(row, "added", 3) for _, row in table.iterrows()]
    models = table.index.get_level_values("model")
    known = [(model, "random") in printed.index for model in models]
    shown["gap, paper"] = [
        f"{printed[m, 'random'] - printed[m, 'transfer']:+.3f}" if there else "–"
        for m, there in zip(models, known, strict=True)
    ]
    return styled(shown, index=False)


def measures_table(results: xr.Dataset) -> HTML:
    """What training adds to the gap, by each measure."""
    tables = {
        representations.MEASURES[m]: contrasts.by_rate(partial(features.gaps, measure=m), results)
        for m in results.measure.values
    }
    shown = _labels(next(iter(tables.values())))
    if shown.empty:
        return HTML(NO_RUN)
    for name, table in tables.items():
        shown[name] = [_ends(row, "added", 3) for _, row in table.iterrows()]
    return styled(shown, index=False)


def effects_table(table: pd.DataFrame, name: str, digits: int = 1) -> HTML:
    """A measured value with interval and n, one row a combination of labels."""
    shown = table.reset_index()
    ends = shown[[name, "low", "high"]].map(lambda value: f"{value:z.{digits}f}")
    values = [f"{mean} [{low}, {high}]" for mean, low, high in ends.values]
    named = {terms.title(name): values, "n": shown["n"]}
    return styled(_labels(table).assign(**named), index=False)


def movement_table(table: pd.DataFrame) -> HTML:
    """First layers by model and init: how far filters moved, and the share of Gabors."""
    shown = _labels(table)
    moved = table[["moved", "moved low", "moved high"]].to_numpy()
    shown["moved (%)"] = [f"{mean:.0f} [{low:.0f}, {high:.0f}]" for mean, low, high in moved]
    shares = table[["gabors before", "gabors after"]].to_numpy()
    shown["Gabors before, after (%)"] = [f"{b:.0f}, {a:.0f}" for b, a in shares]
    shown["change"] = [_ends(row, "change", 0) for _, row in table.iterrows()]
    shown["n"] = table["n"].astype(int).to_numpy()
    return styled(shown, index=False)


def speedup_table(table: pd.DataFrame) -> HTML:
    """Speed-up over random init, beside the reading of the paper's Figure 6."""
    if table.empty:
        return HTML(NO_RUN)
    printed = paper.numbers("Figure 6", "speedup")["value"]
    shown = _labels(table)
    shown["AUC"] = [f"{v:.3f}" for v in table["level"]]
    shown["speed-up"] = [_ratio(row) for _, row in table.iterrows()]
    shown["n"], shown["never"] = table["n"].to_numpy(), table["never"].to_numpy()
    if "init" in table.index.names:
        arms = table.index.to_frame()[["model", "init"]].itertuples(index=False, name=None)
        known = [key if key in printed.index else None for key in arms]
        if any(known):
            shown["paper"] = [f"{printed[key]:g}" if key else "–" for key in known]
    shown["verdict"] = [verdicts.badge(v) for v in table["verdict"]]
    return styled(shown, index=False)


def _ratio(row: pd.Series) -> str:
    """`2.3 [1.1, 4.6]`, a bound where runs never got there, or nothing."""
    if row["bound"] == "unknown":
        return "–"
    if row["bound"]:
        return f"{'≥' if row['bound'] == 'at least' else '≤'} {row['speed-up']:.1f}"
    return f"{row['speed-up']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"


def styled(frame: pd.DataFrame, *, index: bool = True) -> HTML:
    """A table, styled by the book; where it is wider than a phone, keys can scroll it too."""
    table = verdicts.unbroken(frame.to_html(border=0, index=index, escape=False))
    return HTML(f'<div class="table-wrap" tabindex="0">{table}</div>')


def glue(**values: object) -> None:
    """Name values for prose here and on other pages; numpy numbers as Python's (glue formats)."""
    from myst_nb import glue as keep

    for name, value in values.items():
        keep(name, value.item() if isinstance(value, np.generic) else value, display=False)


def _effort(hours: float, device: str = "cpu") -> str:
    """`1.3 core-hours`, `27 core-minutes`; of trainings that share a GPU, `27 minutes of them`."""
    minutes = round(60 * hours)
    if device != "cpu":
        return f"{max(1, minutes)} minutes of trainings on {device}"
    if hours > 1:
        return f"{hours:.1f} core-hours"
    return f"{minutes} core-minutes" if minutes > 1 else "about a core-minute"


COLUMNS = (
    *("key", "model", "init", "baseline", "probe", "target", "variant", "train_images", "lr"),
    *("fold", "seed"),
    *("status", "seconds"),
)


def _devices(runs: pd.DataFrame) -> str:
    """`12 of 20 on cpu (float32), 8 of 20 on ...`: which share of the runs came from what."""
    kinds = runs["device"]
    if "precision" in runs:
        kinds = kinds + " (" + runs["precision"].fillna("float32") + ")"
    counts = kinds.value_counts()
    return ", ".join(f"{n} of {len(runs)} on {kind}" for kind, n in counts.items())


def footer(results: xr.Dataset, chapter: str) -> HTML:
    """How to compute the page anew, and where its numbers come from: runs, device, versions, hours,
    and every key."""
    runs = pd.DataFrame(json.loads(results.attrs["runs"]))
    study, hours = knobs_of(results)["study"], runs["seconds"].sum() / 3600
    by_device = runs.groupby("device")["seconds"].sum() / 3600
    spent = " and ".join(_effort(each, str(device)) for device, each in by_device.items())
    facts = {
        "results": f"{len(runs)}, of which {int((runs['status'] != 'done').sum())} failed",
        "device": _devices(runs),
        "computing time": f"{hours:.2f} h",
        "commit": ", ".join(sorted(set(runs["commit"]))),
        "torch": ", ".join(sorted(set(runs["torch"]))),
        "parameters": results.attrs["parameters"],
    }
    lines = "".join(
        f"<dt>{name}</dt><dd>{html.escape(value)}</dd>" for name, value in facts.items()
    )
    columns = [c for c in COLUMNS if c in runs]
    table = styled(runs[columns].round({"seconds": 1}), index=False).data
    return HTML(
        f'<p class="again">Run it again: <code>transfusion run {study} --chapter {chapter}</code>, '
        f"{spent} where these numbers were made.</p>"
        '<details class="provenance"><summary>Where these numbers come from</summary>'
        f"<dl>{lines}</dl>{table}</details>"
    )
