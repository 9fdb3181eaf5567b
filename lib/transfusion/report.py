"""What a page says in words and tables: claims and their verdicts, effects, provenance."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable

import numpy as np
import pandas as pd
import xarray as xr
from IPython.display import HTML

from transfusion import claims, effects, figures, metrics, paper, representations, studies

# --- claims ----------------------------------------------------------------------------------


def verdict_box(results: xr.Dataset, *names: str) -> HTML:
    """Each claim as the paper has it, what was found, and the verdict, in a box; claims that no run
    of the study speaks to are left out."""
    found = {name: claims.decide(name, results) for name in names}
    told = {name: finding for name, finding in found.items() if finding is not claims.NOTHING}
    return HTML("".join(_box(claims.CLAIMS[name], finding) for name, finding in told.items()))


def _box(claim: claims.Claim, finding: claims.Finding) -> str:
    p = "" if np.isnan(finding.p) else f" <small>(p&nbsp;{_p(finding.p)})</small>"
    return (
        f'<div class="verdict {_slug(finding.verdict)}">'
        f"<p>{badge(finding.verdict)} <b>{claim.says}.</b></p>"
        f"<p>Paper: {claim.paper()}.</p><p>Here: {_whole(finding.found)}.{p}</p></div>"
    )


def answers(table: pd.DataFrame, study: str, *names: str) -> HTML:
    """Each claim with its verdict out of `claims.table`, which leads to the study's page."""
    found = {claims.CLAIMS[name]: table.loc[name] for name in names}
    lines = [
        f"<p>{claim.says}: {_told(row, f'{study}/{claim.chapter}.html')}</p>"
        for claim, row in found.items()
    ]
    return HTML(f'<div class="answers">{"".join(lines)}</div>')


def _whole(found: str) -> str:
    """No line ends within `n = 4`, `60.0 ± 1.3` or an interval."""
    found = found.replace("n = ", "n&nbsp;=&nbsp;").replace(" ± ", "&nbsp;±&nbsp;")
    return re.sub(r"\[(\S+), (\S+)\]", r"[\1,&nbsp;\2]", found)


def _p(p: float) -> str:
    return "below 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def claims_table(columns: Iterable[str], main: str) -> HTML:
    """All claims: the paper's number, and each study's verdict, corrected for their number, with
    what was found. `main` is the study on the main pages; pages of the others lie in its folder."""
    tables = {study: claims.table(study) for study in columns}
    heads = ["Claim of the paper", "Paper", *(_heading(study) for study in tables)]
    rows = []
    for name, claim in claims.CLAIMS.items():
        cells = f'<th scope="row">{claim.says}</th><td>{claim.paper()}</td>'
        for study, table in tables.items():
            page = f"{'' if study == main else f'{study}/'}{claim.chapter}.html"
            told = _told(table.loc[name], page) if name in table.index else ""
            cells += f"<td>{told or '–'}</td>"
        rows.append(f"<tr>{cells}</tr>")
    head = "".join(f'<th scope="col">{words}</th>' for words in heads)
    return HTML(
        f'<div class="claims"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _heading(study: str) -> str:
    return studies.TITLES.get(study, study).capitalize()


def _told(row: pd.Series, page: str) -> str:
    alone = "" if row["alone"] == row["verdict"] else f" (by itself: {row['alone']})"
    return f'<a href="{page}">{badge(row["verdict"])}</a>{alone}<br>{_whole(row["found"])}'


PLURAL = {"holds": "hold", "holds in part": "hold in part", "differs": "differ"}


def tally(study: str) -> str:
    """How many of a study's claims hold, and so on, corrected for their number: for prose."""
    verdicts = list(claims.table(study)["verdict"])
    words = ", ".join(_count(verdicts, v) for v in metrics.VERDICTS if v in verdicts)
    return f"of {len(verdicts)} claims, {words}" if words else "no claim was tested yet"


def _count(verdicts: list[str], verdict: str) -> str:
    count = verdicts.count(verdict)
    be = "" if verdict in PLURAL else "is " if count == 1 else "are "
    return f"{count} {be}{verdict if count == 1 else PLURAL.get(verdict, verdict)}"


def scale(columns: Iterable[str]) -> dict[str, str]:
    """How many training images each study has, for prose: `retina_images`."""
    found = {}
    for study in columns:
        try:
            images = f"{studies.results(study, 'performance').attrs['train_images']:,}"
        except FileNotFoundError:
            images = "no (not yet run)"
        found[f"{study}_images"] = images
    return found


# --- words and tables ------------------------------------------------------------------------


def counted(verdicts: list[str], names: Iterable[str] = ()) -> str:
    """`holds for CBR-Tiny and CBR-Small; differs for CBR-LargeT`, or, without names, how often."""
    names = list(names)
    found = []
    for verdict in metrics.VERDICTS:
        chosen = [i for i, v in enumerate(verdicts) if v == verdict]
        if chosen and names:
            found.append(f"{verdict} for {_listed(figures.title(names[i]) for i in chosen)}")
        elif chosen:
            found.append(f"{verdict} {len(chosen)} of {len(verdicts)} times")
    return "; ".join(found)


def _listed(names: Iterable[str]) -> str:
    """`A`, `A and B`, `A, B and C`."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def badge(verdict: str) -> str:
    """The verdict as a coloured word."""
    return f'<span class="badge {_slug(verdict)}">{html.escape(verdict)}</span>'


def _slug(verdict: str) -> str:
    return verdict.replace(" ", "-")


def performance_table(results: xr.Dataset) -> HTML:
    """Test AUC in percent by model and init: ours and, of retinas, the paper's Table 1."""
    table, printed = effects.gains(results), paper.numbers("Table 1", "auc")
    retinas = "finding_auc" not in results
    rows = {}
    for model, row in table.iterrows():
        ours = {
            f"{init}, here": f"{row[init]:.1f} ± {row[f'{init} sd']:.1f}"
            for init in ("random", "transfer")
        }
        theirs = {f"{i}, paper": _printed(printed, model, i) for i in ("random", "transfer")}
        shown = theirs | ours if retinas else ours
        rows[figures.title(str(model))] = {**shown, "n": int(row["n"])}
    return look(pd.DataFrame(rows).T)


def _printed(numbers: pd.DataFrame, model, init: str) -> str:
    """A number of the paper; marked where no source seen confirms it."""
    if (model, init) not in numbers.index:
        return "–"
    row = numbers.loc[(model, init)]
    mark = "" if row["confidence"] != "unconfirmed" else "†"
    return f"{row['value']:g}{mark}"


def difference_table(table: pd.DataFrame, name: str, digits: int = 1) -> HTML:
    """Any table of effects: interval, n, the smallest effect that it could have shown with a power
    of 80 %, and the verdict."""
    if table.empty:
        return HTML("<p>No run of this study speaks to it.</p>")
    shown = _labels(table)
    shown[name] = [_spread(row, name, digits) for _, row in table.iterrows()]
    shown["could show"] = [
        f"{metrics.detectable(effects.as_interval(row, name)):.{digits}f}"
        for _, row in table.iterrows()
    ]
    if "verdict" in table:
        shown["verdict"] = [badge(v) for v in table["verdict"]]
    return look(shown, index=False)


def _labels(table: pd.DataFrame) -> pd.DataFrame:
    """The index as columns, in words."""
    labels = table.index.to_frame(index=False)
    labels = labels.rename(columns={"train_images": "training images"})
    return labels.map(lambda v: figures.title(v) if isinstance(v, str) else f"{v:,}")


def _spread(row: pd.Series, name: str, digits: int = 1) -> str:
    return effects.spread(row[name], row["low"], row["high"], int(row["n"]), digits=digits)


def _ends(row: pd.Series, name: str, digits: int) -> str:
    """Value and interval, for a table that gives n elsewhere."""
    return _spread(row, name, digits).rpartition(" (")[0]


def finding_table(results: xr.Dataset) -> HTML:
    """Gain of each finding by model, with p for their number; the paper's where confirmed."""
    table = effects.finding_gains(results)
    if table.empty:
        return HTML("<p>This study's task has one question, not several findings.</p>")
    shown = _labels(table)
    shown["gain, here"] = [_spread(row, "gain") for _, row in table.iterrows()]
    shown["gain, paper"] = [_paper_gain(m, f) for m, f in table.index]
    shown["p, adjusted"] = table["adjusted"].map(_p).to_numpy()
    return look(shown, index=False)


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
    table["transfer"] = 100 * results["test_auc"].sel(init="transfer").mean("seed").to_series()
    table = table.rename(columns=names | {"transfer": "medical AUC, transfer (%)"})
    table.index = [figures.title(str(m)) for m in table.index]
    return look(table.map(lambda v: "named weights" if np.isnan(v) else f"{v:.1f}"))


def tuning_table(results: xr.Dataset) -> HTML:
    """Best validation AUC of each arm at each learning rate, in percent; the chosen one is bold."""
    best = figures.best_validation(results)
    rows = []
    for arm, top in effects.best_rates(results).items():
        model, init = arm.split(" ")
        values = best.sel(model=model, init=init)
        cells = {f"{rate:g}": f"{float(values.sel(lr=rate)):.1f}" for rate in best.lr.values}
        cells[f"{top:g}"] = f"<b>{cells[f'{top:g}']}</b>"
        rows.append({"model": figures.title(model), "init": figures.title(init)} | cells)
    return look(pd.DataFrame(rows), index=False)


def cost_table(results: xr.Dataset) -> HTML:
    """What each network costs, and what it reaches after transfer."""
    rows = []
    for model in results.model.values:
        one = results.sel(model=model)
        reached = metrics.interval((100 * one["test_auc"].sel(init="transfer")).values)
        rows.append(
            {
                "model": figures.title(str(model)),
                "parameters (M)": f"{float(one['parameters']) / 1e6:.2f}",
                "multiply-adds (G)": f"{float(one['multiply_adds']) / 1e9:.3f}",
                "memory an image (MB)": f"{float(one['memory']) / 1e6:.1f}",
                "seconds a training": f"{float(one['seconds'].median()):.0f}",
                "AUC, transfer (%)": f"{reached.mean:.1f} ± {reached.sd:.1f}",
                "n": reached.n,
            }
        )
    return look(pd.DataFrame(rows), index=False)


def gap_table(results: xr.Dataset) -> HTML:
    """Mean CCA above chance by model, beside the gap of the paper's Figure 2."""
    table = representations.gap_verdicts(representations.gaps(results))
    printed = paper.numbers("Figure 2", "cca")["value"]
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
    measures = results.measure.values
    tables = {figures.MEASURES[m]: representations.gaps(results, measure=m) for m in measures}
    rows = {
        figures.title(str(model)): {
            n: _ends(t.loc[model], "gap", 3) if model in t.index else "–" for n, t in tables.items()
        }
        for model in results.model.values
    }
    return look(pd.DataFrame(rows).T)


def effects_table(table: pd.DataFrame, name: str, digits: int = 1) -> HTML:
    """A measured value with interval and n, one row a combination of labels."""
    shown = table.reset_index()
    ends = shown[[name, "low", "high"]].map(lambda value: f"{value:z.{digits}f}")
    values = [f"{mean} [{low}, {high}]" for mean, low, high in ends.values]
    named = {figures.title(name): values, "n": shown["n"]}
    return look(_labels(table).assign(**named), index=False)


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


def speedup_table(table: pd.DataFrame) -> HTML:
    """Speed-up over random init, beside the reading of the paper's Figure 6."""
    printed = paper.numbers("Figure 6", "speedup")["value"]
    shown = _labels(table)
    shown["AUC"] = ["–" if np.isnan(v) else f"{v:.3f}" for v in table["level"]]
    shown["speed-up"] = [_ratio(row) for _, row in table.iterrows()]
    shown["n"], shown["never"] = table["n"].to_numpy(), table["never"].to_numpy()
    known = [key if key in printed.index else None for key in table.index]
    if any(known):
        shown["paper"] = [f"{printed[key]:g}" if key else "–" for key in known]
    shown["verdict"] = [badge(v) for v in table["verdict"]]
    return look(shown, index=False)


def _ratio(row: pd.Series) -> str:
    """`2.3 [1.1, 4.6]`, a bound where runs never got there, or nothing."""
    if np.isnan(row["level"]) or row["bound"] == "unknown":
        return "–"
    if row["bound"]:
        return f"{'≥' if row['bound'] == 'at least' else '≤'} {row['speed-up']:.1f}"
    return f"{row['speed-up']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"


def look(frame: pd.DataFrame, *, index: bool = True) -> HTML:
    """A table, styled by the book; where it is wider than a phone, keys can scroll it too."""
    table = _whole(frame.to_html(border=0, index=index, escape=False))
    return HTML(f'<div class="table-wrap" tabindex="0">{table}</div>')


def glue(**values: object) -> None:
    """Name values for prose here and on other pages; numpy numbers as Python's (glue formats)."""
    from myst_nb import glue as keep

    for name, value in values.items():
        keep(name, value.item() if isinstance(value, np.generic) else value, display=False)


def _effort(hours: float) -> str:
    """`1.3 core-hours`, `27 core-minutes`."""
    if hours > 1:
        return f"{hours:.1f} core-hours"
    minutes = round(60 * hours)
    return f"{minutes} core-minutes" if minutes > 1 else "about a core-minute"


COLUMNS = (
    *("key", "model", "init", "target", "variant", "train_images", "lr", "seed"),
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
    study, hours = json.loads(results.attrs["parameters"])["study"], runs["seconds"].sum() / 3600
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
    table = look(runs[columns].round({"seconds": 1}), index=False).data
    return HTML(
        f'<p class="again">Run it again: <code>transfusion run {study} --chapter {chapter}</code>, '
        f"{_effort(hours)} where these numbers were made.</p>"
        '<details class="provenance"><summary>Where these numbers come from</summary>'
        f"<dl>{lines}</dl>{table}</details>"
    )
