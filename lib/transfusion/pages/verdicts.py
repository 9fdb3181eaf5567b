"""What a page says of claims: boxes, the table of all, and sentences for prose."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
import xarray as xr
from IPython.display import HTML
from markupsafe import Markup

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
    return HTML(Markup().join(_box(claims.CLAIMS[name], table.loc[name]) for name in told))


def _box(claim: deciding.Claim, row: pd.Series) -> Markup:
    box = Markup(
        '<div class="verdict {}"><p>{} <b>{}.</b></p><p>Paper: {}.</p><p>Here: {}.{}{}</p></div>'
    )
    beside = Markup(" <small>{}.</small>").format(unbroken(row["beside"])) if row["beside"] else ""
    verdict, found = row["verdict"], unbroken(row["found"])
    head = _slug(verdict), badge(verdict), claim.says, claim.paper()
    return box.format(*head, found, _corrected(row), beside)


def _corrected(row: pd.Series) -> str:
    """p for the number of claims, and what p alone would say where that is another verdict."""
    if np.isnan(row["adjusted"]) or row["verdict"] == "not testable":
        return ""
    alone = "" if row["alone"] == row["verdict"] else f", by itself {row['alone']}"
    told = Markup(" <small>(p\u00a0{} for all claims{})</small>")
    return told.format(p_words(row["adjusted"]), alone)


def answers(table: pd.DataFrame, study: str, *names: str) -> HTML:
    """Each claim with its verdict out of `all_verdicts`, which leads to the study's page."""
    lines = []
    for name in names:
        claim = claims.CLAIMS[name]
        page = f"{study}/{claim.chapter}.html"
        told = _told(table.loc[name], page) if name in table.index else _to_come(page)
        lines.append(Markup("<p>{}: {}</p>").format(claim.says, told))
    return HTML(Markup('<div class="answers">{}</div>').format(Markup().join(lines)))


def unbroken(found: str) -> str:
    """No line ends within `n = 4`, `60.0 ± 1.3` or an interval."""
    found = found.replace("n = ", "n\u00a0=\u00a0").replace(" ± ", "\u00a0±\u00a0")
    return re.sub(r"\[(\S+), (\S+)\]", "[\\1,\u00a0\\2]", found)


def p_words(p: float) -> str:
    return "below 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def claims_table(columns: Iterable[str], main: str) -> HTML:
    """All claims: the paper's number, and each study's verdict, corrected for their number, with
    what was found. `main` is the study on the main pages; pages of the others lie in its folder."""
    tables = {study: all_verdicts(study) for study in columns}
    heads = ["Claim of the paper", "Paper", *(_heading(study) for study in tables)]
    rows = []
    for name, claim in claims.CLAIMS.items():
        cells = Markup('<th scope="row">{}</th><td>{}</td>').format(claim.says, claim.paper())
        for study, table in tables.items():
            page = f"{'' if study == main else f'{study}/'}{claim.chapter}.html"
            told = _told(table.loc[name], page) if name in table.index else ""
            asked = name != "findings" or _has_findings(study)
            if not told and asked and _is_to_come(study, claim.chapter):
                told = _to_come(page)
            cells += Markup("<td>{}</td>").format(told or "–")
        rows.append(Markup("<tr>{}</tr>").format(cells))
    head = Markup().join(Markup('<th scope="col">{}</th>').format(words) for words in heads)
    table = Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>")
    whole = table.format(head, Markup().join(rows))
    return HTML(Markup('<div class="claims">{}</div>').format(whole))


def _has_findings(study: str) -> bool:
    """Whether a study's task has several, by what is recorded of it."""
    return any(facts.get("task") == "findings" for facts in records.facts(study).values())


def _is_to_come(study: str, chapter: str) -> bool:
    known = study in params.studies() and chapter in params.chapters(study)
    return known and not collected.is_collected(study, chapter)


def _to_come(page: str) -> Markup:
    return Markup('<a href="{}">still to come</a>').format(page)


def shown(study: str, chapter: str, draw: Callable[[xr.Dataset], object]) -> object:
    """What is drawn of a study's chapter, or the words that it is still to come."""
    try:
        return draw(collected.results(study, chapter))
    except FileNotFoundError:
        told = Markup("<p>Still to come: <code>transfusion run {} --chapter {}</code>.</p>")
        return HTML(told.format(study, chapter))


def _heading(study: str) -> str:
    title = params.TITLES.get(study, study)
    return title[:1].upper() + title[1:]  # not `capitalize`, which makes Nih of NIH


def _told(row: pd.Series, page: str) -> Markup:
    alone = "" if row["alone"] == row["verdict"] else f" (by itself: {row['alone']})"
    small = Markup("<br><small>{}</small>")
    beside = small.format(unbroken(row["beside"])) if row["beside"] else ""
    told = Markup('<a href="{}">{}</a>{}<br>{}{}')
    return told.format(page, badge(row["verdict"]), alone, unbroken(row["found"]), beside)


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


def badge(verdict: str) -> Markup:
    """The verdict as a coloured word."""
    return Markup('<span class="badge {}">{}</span>').format(_slug(verdict), verdict)


def _slug(verdict: str) -> str:
    return verdict.replace(" ", "-")
