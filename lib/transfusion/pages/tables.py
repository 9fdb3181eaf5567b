"""Tables of what was measured, and where a page's numbers come from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pandas as pd
import xarray as xr
from IPython.display import HTML
from markupsafe import Markup, escape

from transfusion import terms
from transfusion.experiments import accuracy, features, paper, tuning
from transfusion.experiments.tables import knobs_of
from transfusion.pages import verdicts
from transfusion.statistics import contrasts, gate, intervals


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
        rows = contrasts.listed(effect)
        shown = _rows(rows, effect.name, effect.digits) if len(rows) else pd.DataFrame()
        found = contrasts.contrast(effect)
        if found is not None and len(rows):
            told = dict.fromkeys(shown.columns[: len(effect.keys)], "")
            told |= {shown.columns[0]: Markup("<b>mean, decides</b>")}
            told |= _cells(found, effect.name, effect.digits)
            shown.loc[len(shown)] = told | {"verdict": verdicts.badge(effect.decide(found).verdict)}
        if rate is not None and len(shown):
            shown.insert(0, "learning rate", f"{rate:g}")
        parts.append(shown)
    parts = [part for part in parts if len(part)]
    return styled(pd.concat(parts), index=False) if parts else HTML(NO_RUN)


NO_RUN = "<p>No run of this study speaks to it.</p>"
Tell = Callable[[pd.Series], object]  # of a row, what stands in one column


def table(frame: pd.DataFrame, columns: Mapping[str, Tell]) -> HTML:
    """A row of a page's table for each of the frame's: its labels in words, and what each column
    tells of it."""
    if frame.empty:
        return HTML(NO_RUN)
    shown = _labels(frame)
    for name, tell in columns.items():
        shown[name] = [tell(row) for _, row in frame.iterrows()]
    return styled(shown, index=False)


def difference_table(frame: pd.DataFrame, name: str, digits: int = 1) -> HTML:
    """Any table of effects: interval, n, the smallest effect that it could have shown with a power
    of 80 %, and what each row would say by itself."""
    if frame.empty:
        return HTML(NO_RUN)
    return styled(_rows(frame, name, digits), index=False)


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
    gains = accuracy.finding_gains(results)
    if gains.empty:
        return HTML("<p>This study's task has one question, not several findings.</p>")
    columns: dict[str, Tell] = {
        "gain, here": lambda row: _spread(row, "gain"),
        "gain, paper": lambda row: _paper_gain(*row.name),
        "p, adjusted": lambda row: verdicts.p_words(row["adjusted"]),
    }
    return table(gains, columns)


def _paper_gain(model: str, finding: str) -> str:
    asked = f"auc {finding.lower().removeprefix('pleural ')}"  # as CheXpert calls an effusion
    if asked not in paper.measures("Table 2"):
        return "–"
    printed = paper.numbers("Table 2", asked)["value"]
    if (model, "transfer") not in printed.index:
        return "–"
    return f"{printed[model, 'transfer'] - printed[model, 'random']:+.2f}"


def source_table(results: xr.Dataset) -> HTML:
    """What each network reached on its source task, beside its AUC after transfer."""
    if "source_auc" not in results:
        return HTML("<p>No network of this study was pretrained here.</p>")
    columns = [n for n in ("source_top1", "source_top5", "source_auc") if n in results]
    names = {"source_top1": "top-1 (%)", "source_top5": "top-5 (%)", "source_auc": "AUC (%)"}
    reached_by = 100 * results[columns].to_dataframe()[columns]
    reached = 100 * results["test_auc"].sel(init="transfer").mean(["fold", "seed"])
    reached_by["transfer"] = reached.to_series()
    reached_by = reached_by.rename(columns=names | {"transfer": "medical AUC, transfer (%)"})
    reached_by.index = [terms.title(str(m)) for m in reached_by.index]
    return styled(reached_by.map(lambda v: "named weights" if np.isnan(v) else f"{v:.1f}"))


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
        cells[f"{top:g}"] = Markup("<b>{}</b>").format(cells[f"{top:g}"])
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
    gaps = contrasts.by_rate(features.gaps, results)
    columns: dict[str, Tell] = {
        "random, random": lambda row: f"{row['random, random']:.3f}",
        "random, transfer": lambda row: f"{row['random, transfer']:.3f}",
        "gap before": lambda row: f"{row['before']:.3f}",
        "gap after": lambda row: f"{row['after']:.3f}",
        "added": lambda row: _spread(row, "added", 3),
        "gap, paper": lambda row: _paper_gap(_arm(gaps, row.name)[0]),
    }
    return table(gaps, columns)


def _paper_gap(model: str) -> str:
    printed = paper.numbers("Figure 2", "cca")["value"]
    if (model, "random") not in printed.index:
        return "–"
    return f"{printed[model, 'random'] - printed[model, 'transfer']:+.3f}"


def measures_table(results: xr.Dataset) -> HTML:
    """What training adds to the gap, by each measure."""
    tables = {
        terms.MEASURES[m]: contrasts.by_rate(partial(features.gaps, measure=m), results)
        for m in results.measure.values
    }
    shown = _labels(next(iter(tables.values())))
    if shown.empty:
        return HTML(NO_RUN)
    for name, gaps in tables.items():
        shown[name] = [_ends(row, "added", 3) for _, row in gaps.iterrows()]
    return styled(shown, index=False)


def effects_table(frame: pd.DataFrame, name: str, digits: int = 1) -> HTML:
    """A measured value with interval and n, one row a combination of labels."""

    def value(row: pd.Series) -> str:
        mean, low, high = (f"{row[end]:z.{digits}f}" for end in (name, "low", "high"))
        return f"{mean} [{low}, {high}]"

    return table(frame, {terms.title(name): value, "n": _n})


def _n(row: pd.Series) -> int:
    return int(row["n"])


def movement_table(frame: pd.DataFrame) -> HTML:
    """First layers by model and init: how far filters moved, and the share of Gabors."""
    columns: dict[str, Tell] = {
        "moved (%)": lambda row: (
            f"{row['moved']:.0f} [{row['moved low']:.0f}, {row['moved high']:.0f}]"
        ),
        "Gabors before, after (%)": lambda row: (
            f"{row['gabors before']:.0f}, {row['gabors after']:.0f}"
        ),
        "change": lambda row: _ends(row, "change", 0),
        "n": _n,
    }
    return table(frame, columns)


def speedup_table(frame: pd.DataFrame) -> HTML:
    """Speed-up over random init, beside the reading of the paper's Figure 6."""
    columns: dict[str, Tell] = {
        "AUC": lambda row: f"{row['level']:.3f}",
        "speed-up": _ratio,
        "n": _n,
        "never": lambda row: int(row["never"]),
    }
    printed = paper.numbers("Figure 6", "speedup")["value"]
    known = {label: printed.get(_arm(frame, label)) for label in frame.index}
    if any(known.values()):
        columns["paper"] = lambda row: f"{known[row.name]:g}" if known[row.name] else "–"
    columns["verdict"] = lambda row: verdicts.badge(row["verdict"])
    return table(frame, columns)


def _arm(frame: pd.DataFrame, label: object) -> tuple:
    """Model and init of a row, None for what its labels do not name."""
    names = frame.index.names
    labels = dict(zip(names, label if isinstance(label, tuple) else (label,), strict=True))
    return labels.get("model"), labels.get("init")


def _ratio(row: pd.Series) -> str:
    """`2.3 [1.1, 4.6]`, a bound where runs never got there, or nothing."""
    if row["bound"] == "unknown":
        return "–"
    if row["bound"]:
        return f"{'≥' if row['bound'] == 'at least' else '≤'} {row['speed-up']:.1f}"
    return f"{row['speed-up']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"


def styled(frame: pd.DataFrame, *, index: bool = True) -> HTML:
    """A table, styled by the book; where it is wider than a phone, keys can scroll it too. What is
    no markup of ours is escaped: names of findings come from people's tables."""
    safe = frame.map(_escaped).rename(index=_escaped, columns=_escaped)
    table = verdicts.unbroken(safe.to_html(border=0, index=index, escape=False))
    return HTML(f'<div class="table-wrap" tabindex="0">{table}</div>')


def _escaped(value: object) -> object:
    return escape(value) if isinstance(value, str) else value


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
    lines = [Markup("<dt>{}</dt><dd>{}</dd>").format(*fact) for fact in facts.items()]
    columns = [c for c in COLUMNS if c in runs]
    every = styled(runs[columns].round({"seconds": 1}), index=False).data
    page = Markup(
        '<p class="again">Run it again: <code>transfusion run {} --chapter {}</code>, '
        "{} where these numbers were made.</p>"
        '<details class="provenance"><summary>Where these numbers come from</summary>'
        "<dl>{}</dl>{}</details>"
    )
    return HTML(page.format(study, chapter, spent, Markup().join(lines), Markup(every)))
