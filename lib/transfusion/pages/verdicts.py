"""What a page says of claims: boxes, the table of all, and sentences for prose."""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
import xarray as xr
from IPython.display import HTML

from transfusion import records, terms
from transfusion.experiments import claims, deciding, tuning
from transfusion.experiments.tables import knobs_of
from transfusion.statistics import gate, intervals
from transfusion.studies import collected, params


def beside(study: str, found: dict[str, deciding.Finding]) -> pd.DataFrame:
    """`all_verdicts` of these findings, which replace what is collected, and of what else they are
    corrected for: not of what is counted, which takes torch to count."""
    names = [name for name, claim in claims.CLAIMS.items() if name in found or not claim.counted]
    return all_verdicts(study, found, names)


def all_verdicts(
    study: str, found: dict[str, deciding.Finding] | None = None, names: Iterable[str] = ()
) -> pd.DataFrame:
    """All claims that a study has results for: verdict, p, found, beside, and `adjusted`, p for the
    number of claims of its family. What p alone decided and `adjusted` does not is inconclusive,
    and `alone` keeps the verdict that it would have by itself. `found` replaces what is collected,
    `names` are those asked, by default all.
    """
    rows: dict[str, deciding.Finding] = {}
    not_asked = set()
    results = functools.cache(functools.partial(collected.results, study))
    for name in names or claims.CLAIMS:
        claim = claims.CLAIMS[name]
        try:
            told = (found or {}).get(name) or claims.decide(name, results(claim.chapter))
        except FileNotFoundError:
            continue
        if told is deciding.NOTHING:
            not_asked.add(name)
        else:
            rows[name] = told
    there = {claim.chapter for claim in claims.CLAIMS.values()} & set(_chapters(study))
    asked = [n for n in names or claims.CLAIMS if n in rows or claims.CLAIMS[n].chapter in there]
    return claims.corrected(rows, [name for name in asked if name not in not_asked])


def _chapters(study: str) -> list[str]:
    return params.chapters(study) if study in params.studies() else []


def verdict_box(results: xr.Dataset, *names: str) -> HTML:
    """Each claim as the paper has it, what was found, and the verdict, corrected for the number of
    claims of the study, in a box; claims that no run of it speaks to are left out."""
    found = {name: claims.decide(name, results) for name in names}
    study = knobs_of(results).get("study", "")
    table = beside(study, found)
    told = [name for name in names if name in table.index]
    return HTML("".join(_box(claims.CLAIMS[name], table.loc[name]) for name in told))


def _box(claim: deciding.Claim, row: pd.Series) -> str:
    beside = f" <small>{unbroken(row['beside'])}.</small>" if row["beside"] else ""
    return (
        f'<div class="verdict {_slug(row["verdict"])}">'
        f"<p>{badge(row['verdict'])} <b>{claim.says}.</b></p>"
        f"<p>Paper: {claim.paper()}.</p>"
        f"<p>Here: {unbroken(row['found'])}.{_corrected(row)}{beside}</p></div>"
    )


def _corrected(row: pd.Series) -> str:
    """p for the number of claims, and what p alone would say where that is another verdict."""
    if np.isnan(row["adjusted"]) or row["verdict"] == "not testable":
        return ""
    alone = "" if row["alone"] == row["verdict"] else f", by itself {row['alone']}"
    return f" <small>(p&nbsp;{p_words(row['adjusted'])} for all claims{alone})</small>"


def answers(table: pd.DataFrame, study: str, *names: str) -> HTML:
    """Each claim with its verdict out of `all_verdicts`, which leads to the study's page."""
    lines = []
    for name in names:
        claim = claims.CLAIMS[name]
        page = f"{study}/{claim.chapter}.html"
        told = _told(table.loc[name], page) if name in table.index else _to_come(page)
        lines.append(f"<p>{claim.says}: {told}</p>")
    return HTML(f'<div class="answers">{"".join(lines)}</div>')


def unbroken(found: str) -> str:
    """No line ends within `n = 4`, `60.0 ± 1.3` or an interval."""
    found = found.replace("n = ", "n&nbsp;=&nbsp;").replace(" ± ", "&nbsp;±&nbsp;")
    return re.sub(r"\[(\S+), (\S+)\]", r"[\1,&nbsp;\2]", found)


def p_words(p: float) -> str:
    return "below 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def claims_table(columns: Iterable[str], main: str) -> HTML:
    """All claims: the paper's number, and each study's verdict, corrected for their number, with
    what was found. `main` is the study on the main pages; pages of the others lie in its folder."""
    tables = {study: all_verdicts(study) for study in columns}
    heads = ["Claim of the paper", "Paper", *(_heading(study) for study in tables)]
    rows = []
    for name, claim in claims.CLAIMS.items():
        cells = f'<th scope="row">{claim.says}</th><td>{claim.paper()}</td>'
        for study, table in tables.items():
            page = f"{'' if study == main else f'{study}/'}{claim.chapter}.html"
            told = _told(table.loc[name], page) if name in table.index else ""
            asked = name != "findings" or _has_findings(study)
            if not told and asked and _is_to_come(study, claim.chapter):
                told = _to_come(page)
            cells += f"<td>{told or '–'}</td>"
        rows.append(f"<tr>{cells}</tr>")
    head = "".join(f'<th scope="col">{words}</th>' for words in heads)
    return HTML(
        f'<div class="claims"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _has_findings(study: str) -> bool:
    """Whether a study's task has several, by what is recorded of it."""
    return any(facts.get("task") == "findings" for facts in records.facts(study).values())


def _is_to_come(study: str, chapter: str) -> bool:
    known = study in params.studies() and chapter in params.chapters(study)
    return known and not collected.is_collected(study, chapter)


def _to_come(page: str) -> str:
    return f'<a href="{page}">still to come</a>'


def shown(study: str, chapter: str, draw: Callable[[xr.Dataset], object]) -> object:
    """What is drawn of a study's chapter, or the words that it is still to come."""
    try:
        return draw(collected.results(study, chapter))
    except FileNotFoundError:
        command = f"<code>transfusion run {study} --chapter {chapter}</code>"
        return HTML(f"<p>Still to come: {command}.</p>")


def _heading(study: str) -> str:
    title = params.TITLES.get(study, study)
    return title[:1].upper() + title[1:]  # not `capitalize`, which makes Nih of NIH


def _told(row: pd.Series, page: str) -> str:
    alone = "" if row["alone"] == row["verdict"] else f" (by itself: {row['alone']})"
    beside = f"<br><small>{unbroken(row['beside'])}</small>" if row["beside"] else ""
    found = f"<br>{unbroken(row['found'])}{beside}"
    return f'<a href="{page}">{badge(row["verdict"])}</a>{alone}{found}'


PLURAL = {"holds": "hold", "differs": "differ"}


def tally(study: str) -> str:
    """How many of a study's claims hold, and so on, corrected for their number: for prose."""
    verdicts = list(all_verdicts(study)["verdict"])
    words = ", ".join(_count(verdicts, v) for v in intervals.VERDICTS if v in verdicts)
    return f"of {len(verdicts)} claims, {words}" if words else "no claim was tested yet"


def _count(verdicts: list[str], verdict: str) -> str:
    count = verdicts.count(verdict)
    be = "" if verdict in PLURAL else "is " if count == 1 else "are "
    return f"{count} {be}{verdict if count == 1 else PLURAL.get(verdict, verdict)}"


def how_good(columns: Iterable[str]) -> dict[str, str]:
    """How good each study's networks are, in a sentence for prose: `cells_reached`."""
    return {f"{study}_reached": _reached(study) for study in columns}


def _reached(study: str) -> str:
    on = f"On {params.TITLES.get(study, study)}"
    try:
        results = collected.results(study, "performance")
    except FileNotFoundError:
        return f"{on}, the trainings are still to come."
    table = gate.levels(results)
    simple = gate.baseline_levels(results).loc[""].loc[gate.SIMPLE, "AUC"]
    learned = int(table["learned"].sum())
    return (
        f"{on}, test AUC is {table['AUC'].min():.1f} to {table['AUC'].max():.1f} % by network and "
        f"start, where 18 statistics reach {simple['statistics']:.1f} and a thumbnail "
        f"{simple['thumbnail']:.1f} %; {learned} of {len(table)} have learned the task."
    )


def convergence(study: str) -> str:
    """Whether a study's trainings have converged, in a sentence for prose."""
    try:
        table = tuning.longer(collected.results(study, "convergence"))
    except FileNotFoundError:
        return "Whether the trainings have converged is still to come."
    told = [
        f"{terms.title(m)}, {terms.title(i)} {row['added']:+z.2f} points ({row['verdict']})"
        for (m, i), row in table.iterrows()
    ]
    return f"Twice as many steps add to the last validation AUC: {'; '.join(told)}."


def badge(verdict: str) -> str:
    """The verdict as a coloured word."""
    return f'<span class="badge {_slug(verdict)}">{html.escape(verdict)}</span>'


def _slug(verdict: str) -> str:
    return verdict.replace(" ", "-")
